"""A clip in one masked pass gives what chunk after chunk with a cache gives."""

import pytest
import torch
from kit.measure import assert_close
from kit.tiny.models import draw, tiny_model
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from plugins.errors import UserError
from vmla.cache import CacheSpec
from vmla.packed_sequence import block_mask, dense_mask, masked_attention
from vmla.train.objectives.cached_rollout import CachedRollout, clip_velocity
from vmla.train.objectives.consistency import Consistency, Networks, consistency_loss
from vmla.train.objectives.packed_clip import pack_clip
from vmla.train.objectives.teacher_forcing import Forcing, forcing_loss, forcing_loss_at_once
from vmla.train.optim.optimizers import DistilSchedule
from vmla.train.stages.denoiser_settings import DenoiserTraining

pytestmark = pytest.mark.cpu

BATCH = 2
FIXED = Forcing(copies=1, own_share=0.0)
WINDOWS = [
    {},
    {"sink": 3, "history": 4},
    {"sink": 0, "chunk": 4},
    {"sink": 5, "history": 1},
    {"history": 0},
    {"chunk": 3, "history": 6, "first_chunk": 1},
    {"sink": 2, "chunk": 1},
]
NUMBERS = [[0], [0, 1, 2, 3, 4], [0, 2, 3, 4], [0, 7, 8, 9]]


def clip_of(model, numbers, seed=1):
    config = model.config
    frames = len(CacheSpec.of(config).chunks.frames_of(numbers))
    shape = (BATCH, config.in_channels, frames, config.sample_height, config.sample_width)
    text = model.encode_text(draw(BATCH, config.text_tokens, config.text_dim, seed=seed + 1))
    return draw(*shape, seed=seed), text


def assert_same_gradients(first, second):
    for (name, one), (_, other) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        scale = float(one.grad.abs().max())
        assert scale > 0, name
        assert_close(other.grad, one.grad, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_teacher_forcing_at_once_has_the_loss_and_gradients_of_a_rollout(layout, window, numbers):
    rolled, at_once = (tiny_model(layout=layout, **window).requires_grad_(True) for _ in range(2))
    losses = []
    passes = (rolled, forcing_loss, rolled), (at_once, forcing_loss_at_once, at_once.forward_packed)
    for model, loss, run in passes:
        latents, text = clip_of(model, numbers)
        generator = torch.Generator().manual_seed(3)
        losses.append(loss(run, CacheSpec.of(model.config), latents, text, numbers, FIXED, generator))
        losses[-1].backward()
    assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    if len(numbers) > 1:  # a lone chunk's keys of clean entries have no gradient
        assert_same_gradients(rolled, at_once)


@pytest.mark.parametrize("numbers", [None, [0, 7, 8, 9]], ids=str)
@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_velocities_of_a_clip_at_one_noise_level(layout, numbers):
    model = tiny_model(layout=layout)
    chunks = 5 if numbers is None else len(numbers)
    (noisy, text), (clean, _) = clip_of(model, range(chunks)), clip_of(model, range(chunks), seed=8)
    spec, sigma = CacheSpec.of(model.config), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        one, other = (
            clip_velocity(CachedRollout(model, spec, text, numbers, forward_packed=run), noisy, clean, sigma)
            for run in (None, model.forward_packed)
        )
    assert_close(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_consistency_at_once_is_that_of_a_rollout(guidance):
    settings, losses, students = Consistency(grid=6, guidance=guidance), [], []
    for at_once in (False, True):
        models = [tiny_model(seed=seed) for seed in (0, 1, 2)]
        students.append(models[0].requires_grad_(True))
        latents, _ = clip_of(models[0], range(5))
        texts = [draw(BATCH, 5, 10, seed=4), draw(BATCH, 5, 10, seed=5)]
        student, target, teacher, free = (
            CachedRollout(model, CacheSpec.of(model.config), model.encode_text(texts[which]),
                   forward_packed=model.forward_packed if at_once else None)
            for model, which in ((models[0], 0), (models[1], 0), (models[2], 0), (models[2], 1))
        )  # fmt: skip
        networks = Networks(student, target, teacher, None if guidance == 1 else free)
        losses.append(consistency_loss(networks, latents, settings, torch.Generator().manual_seed(7)))
        losses[-1].backward()
    assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    assert_same_gradients(*students)


def test_the_sink_is_seen_where_a_window_keeps_it():
    """Sink 1, history 6, chunks of 3: from chunk 3 on frame 0 is nearer than it is."""
    spec = CacheSpec(sink=1, history=6, chunk=3, tokens_per_frame=1, entry_width=1, layers=1)
    clip = pack_clip(spec, range(6))
    assert clip.repeated.tolist() == [0, 0, 0]
    assert clip.positions[:3].tolist() == [2, 5, 8]
    # Each of chunk 5's frames, the last three noisy ones: the sink at 8, frames 9 to 14, itself.
    at = [int(clip.positions[column]) for column in clip.visible[-1].nonzero().flatten()]
    assert at == [8, 9, 10, 11, 12, 13, 14, 15, 16, 17]
    assert int(clip.visible[-1].sum()) == spec.positions
    # A plain pass would have seen it fifteen frames away.
    assert not clip.visible[-1, 3]


def seen_and_drawn():
    """Frames that see each other, and queries, keys and values of two heads, four tokens to a frame."""
    spec = CacheSpec(sink=1, history=6, chunk=3, tokens_per_frame=4, entry_width=1, layers=1)
    visible = pack_clip(spec, range(6)).visible
    rows, columns = (4 * frames for frames in visible.shape)
    return visible, draw(2, 2, rows, 8), draw(2, 2, columns, 8, seed=1), draw(2, 2, columns, 8, seed=2)


def test_flex_attention_is_the_masked_one():
    visible, *inputs = seen_and_drawn()
    flexible = flex_attention(*inputs, block_mask=block_mask(visible, 4))
    assert_close(flexible, masked_attention(*inputs, dense_mask(visible, 4)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [4, 60, 64, 300])
def test_blocks_are_those_that_all_pairs_would_give(tokens):
    visible = pack_clip(CacheSpec(sink=1, history=6, chunk=3, tokens_per_frame=tokens, entry_width=1,
                                    layers=1), range(6)).visible  # fmt: skip
    ours = block_mask(visible, tokens)
    frames, seen = (count * tokens for count in visible.shape)
    pairs = create_block_mask(ours.mask_mod, None, None, frames, seen, device="cpu")
    assert ours.seq_lengths == pairs.seq_lengths
    assert torch.equal(ours.to_dense(), pairs.to_dense())
    for mine, theirs in ((ours.kv_num_blocks, pairs.kv_num_blocks),
                         (ours.full_kv_num_blocks, pairs.full_kv_num_blocks)):  # fmt: skip
        assert torch.equal(mine, theirs)
    assert tokens < 60 or ours.to_dense().float().mean() < 0.6


def test_what_hangs_on_a_prediction_cannot_pass_at_once():
    schedule = DistilSchedule(steps=1, learning_rate=1e-3)
    for forcing in (Forcing(), Forcing(copies=1), Forcing(own_share=0.0)):
        with pytest.raises(UserError, match="at once only with one copy and no estimates"):
            DenoiserTraining(schedule=schedule, forcing=forcing, at_once=True)
    assert DenoiserTraining(schedule=schedule, forcing=FIXED, at_once=True).at_once
