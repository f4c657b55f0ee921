"""A cached rollout equals one full masked forward, in both layouts, under every kind of window."""

import pytest
import torch
from kit.measure import assert_close
from kit.references.equations import Equations, window_of
from kit.tiny.frames import frames_of
from kit.tiny.models import draw, tiny_model
from kit.tiny.passes import window_at

from vmla.cache import CacheSpec

pytestmark = pytest.mark.cpu

LAYOUTS = ["mla", "mha"]
WINDOWS = {
    "one sink": {"sink": 1, "history": 3, "chunk": 2},
    "ring shorter than the chunk": {"sink": 1, "history": 2, "chunk": 3},
    "ring of whole chunks": {"sink": 1, "history": 6, "chunk": 3},
    "no sink": {"sink": 0, "history": 4, "chunk": 3},
    "sink longer than the chunk": {"sink": 3, "history": 3, "chunk": 2},
    "no history": {"sink": 2, "history": 0, "chunk": 2},
    "one frame at a time": {"sink": 1, "history": 2, "chunk": 1},
    "a first chunk of one frame": {"sink": 1, "history": 6, "chunk": 3, "first_chunk": 1},
    "a first chunk shorter than the sink": {"sink": 3, "history": 3, "chunk": 3, "first_chunk": 2},
    "a first chunk longer than the sink": {"sink": 1, "history": 2, "chunk": 3, "first_chunk": 2},
}
CHUNKS, BATCH = 5, 2


def draw_inputs(config, chunks=CHUNKS, seed=0):
    """Clean and noisy latents, timesteps of the noisy ones, text embeddings."""
    frames = CacheSpec.of(config).chunks.start(chunks)
    shape = (BATCH, config.in_channels, frames, config.sample_height, config.sample_width)
    timestep = 1000 * torch.rand(BATCH, frames, generator=torch.Generator().manual_seed(seed))
    text = draw(BATCH, config.text_tokens, config.text_dim, seed=seed + 3)
    return draw(*shape, seed=seed + 1), draw(*shape, seed=seed + 2), timestep, text


def roll(model, clean, noisy, timestep, text, **how):
    """Velocities of both passes of each chunk, joined along time, and all entries [L, B, frames, P, E]."""
    spec, text_kv = CacheSpec.of(model.config), model.encode_text(text)
    cache = spec.allocate(BATCH, dtype=clean.dtype)
    velocities, left = [[], []], []
    for number in range(spec.chunks.count(clean.shape[2])):
        frames = frames_of(model.config, number)
        part, size = slice(frames[0], frames[-1] + 1), len(frames)
        window = window_at(spec, number)
        still = torch.zeros(BATCH, size)
        quiet, entries = model(clean[:, :, part], still, text_kv, cache, *window, **how)
        loud, _ = model(noisy[:, :, part], timestep[:, part], text_kv, cache, *window, **how)
        velocities[0].append(quiet)
        velocities[1].append(loud)
        left.append(entries.unflatten(2, (size, -1)))
        spec.commit_(cache, entries, frames[0])
    return torch.cat([*velocities[0], *velocities[1]], dim=2), torch.cat(left, dim=2)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cached_rollout_equals_one_full_masked_forward(layout, window):
    model = tiny_model(layout=layout, **window)
    inputs = draw_inputs(model.config)
    velocity, entries = roll(model, *inputs)
    expected, left = Equations(model).run(*inputs)
    assert expected.std() > 0.1
    assert_close(velocity, expected, rtol=1e-4, atol=1e-4)
    assert_close(entries, left, rtol=1e-4, atol=1e-4)


def one_pass(model, number, *, seed=0, cache=None):
    """Inputs of a pass over chunk `number`, with random entries in every slot that is not empty."""
    config, spec = model.config, CacheSpec.of(model.config)
    slots, own = window_at(spec, number)
    latents = draw(BATCH, config.in_channels, len(own), config.sample_height, config.sample_width, seed=seed)
    timestep = torch.full((BATCH, len(own)), 437.5)
    text_kv = model.encode_text(draw(BATCH, config.text_tokens, config.text_dim, seed=seed + 1))
    cache = draw(*spec.shape(BATCH), seed=seed + 2) if cache is None else cache
    return [latents, timestep, text_kv, cache, slots, own]


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_ring_equals_naive_concatenation_at_every_fill_level(layout, window):
    """The naive cache is as long as the window is full, in the order of time, and made anew each time."""
    model = tiny_model(layout=layout, **window)
    spec = CacheSpec.of(model.config)
    frames = spec.chunks.start(6)
    entries = draw(model.config.num_layers, BATCH, frames, spec.tokens_per_frame, spec.entry_width)
    ring = spec.allocate(BATCH, dtype=torch.float32)
    for number in range(6):
        inputs = one_pass(model, number, seed=number, cache=ring)
        before, positions = window_of(model.config, number)
        whole = entries[:, :, list(before)].flatten(2, 3)
        index = [torch.tensor(list(at), dtype=torch.int32) for at in (before.values(), positions)]
        for ours, naive in zip(model(*inputs), model(*inputs[:3], whole, *index), strict=True):
            assert_close(ours, naive, rtol=1e-4, atol=1e-5)
        own = frames_of(model.config, number)
        spec.commit_(ring, entries[:, :, own].flatten(2, 3), own[0])


@pytest.mark.parametrize("absorbed", [False, True], ids=["expanded", "absorbed"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_poison_in_empty_slots_changes_nothing(poison, absorbed):
    model = tiny_model()
    for number in range(2):
        inputs = one_pass(model, number)
        empty = (inputs[4] < 0).repeat_interleave(model.config.tokens_per_frame)
        assert empty.any()
        clean = model(*inputs, absorbed=absorbed)
        inputs[3][:, :, empty] = poison
        for ours, others in zip(model(*inputs, absorbed=absorbed), clean, strict=True):
            assert torch.equal(ours, others)


def test_poison_in_empty_slots_changes_no_gradient():
    model, gradients = tiny_model().requires_grad_(True), []
    for poison in (0.0, float("nan")):
        inputs = one_pass(model, 1)
        empty = (inputs[4] < 0).repeat_interleave(model.config.tokens_per_frame)
        inputs[3][:, :, empty] = poison
        velocity, entries = model(*inputs)
        (velocity.square().sum() + entries.square().sum()).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        model.zero_grad(set_to_none=True)
    assert all(torch.equal(ours, others) for ours, others in zip(*gradients, strict=True))


@pytest.mark.parametrize("number", [0, 1, 2, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_order_of_slots_changes_nothing(layout, number):
    model = tiny_model(layout=layout, sink=2)
    *first, cache, slots, chunk = one_pass(model, number)
    order = torch.tensor([3, 0, 4, 2, 1])
    mixed = cache.unflatten(2, (len(order), -1))[:, :, order].flatten(2, 3)
    straight, permuted = model(*first, cache, slots, chunk), model(*first, mixed, slots[order], chunk)
    for ours, others in zip(permuted, straight, strict=True):
        assert_close(ours, others, rtol=1e-4, atol=1e-5)


def test_what_is_cached_matters():
    """Each filled slot, and where it lies: else the equalities above would prove little."""
    model = tiny_model()
    inputs = one_pass(model, 4)
    velocity = model(*inputs)[0]
    for slot in range(4):
        changed = [item.clone() for item in inputs]
        changed[3].unflatten(2, (4, -1))[:, :, slot] += 1.0
        assert (model(*changed)[0] - velocity).abs().max() > 1e-2
    moved = [*inputs[:4], inputs[4].roll(1), inputs[5]]
    assert (model(*moved)[0] - velocity).abs().max() > 1e-2


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_absorbed_equals_expanded(window):
    model = tiny_model(**window)
    for number in range(5):
        inputs = one_pass(model, number, seed=number)
        for ours, others in zip(model(*inputs, absorbed=True), model(*inputs), strict=True):
            assert_close(ours, others, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_window_that_is_known_to_be_full_gives_the_same_without_a_mask(layout, monkeypatch):
    monkeypatch.setattr("plugins.sdpa.readable", lambda valid: False)  # as on a GPU
    model = tiny_model(layout=layout, sink=1, history=3, chunk=2)
    shape = CacheSpec.of(model.config)
    _, noisy, timestep, text = draw_inputs(model.config, chunks=1)
    window = window_at(shape, 4)
    assert -1 not in window[0].tolist()
    inputs = noisy, timestep, model.encode_text(text), draw(*shape.shape(BATCH), seed=9), *window
    for one, other in zip(model(*inputs, full=True), model(*inputs), strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert_close(model.entries(*inputs, full=True), model(*inputs)[1], rtol=1e-5, atol=1e-6)


def test_mha_has_no_absorbed_form():
    model = tiny_model(layout="mha")
    with pytest.raises(ValueError, match="no absorbed form"):
        model(*one_pass(model, 0), absorbed=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shapes_and_types_are_those_of_the_contract(layout):
    model = tiny_model(layout=layout)
    config, inputs = model.config, one_pass(tiny_model(layout=layout), 3)
    assert inputs[2].shape == (config.num_layers, 2, BATCH, config.text_tokens, config.inner_dim)
    velocity, entries = model(*inputs)
    tokens = config.chunk * config.tokens_per_frame
    assert velocity.shape == inputs[0].shape
    assert entries.shape == (config.num_layers, BATCH, tokens, config.entry_width)
    narrow = model.to(torch.bfloat16)
    wide = [0, 2, 3]
    inputs = [item.bfloat16() if i in wide else item for i, item in enumerate(inputs)]
    assert {out.dtype for out in narrow(*inputs)} == {torch.bfloat16}
    # bfloat16 keeps 8 bits, of which two layers lose a few.
    assert_close(narrow(*inputs)[0], velocity, rtol=0, atol=0.1 * float(velocity.abs().max()))


def test_each_video_of_a_batch_is_made_alone():
    model = tiny_model()
    latents, timestep, text_kv, cache, *window = one_pass(model, 4)
    both = model(latents, timestep, text_kv, cache, *window)
    alone = model(latents[1:], timestep[1:], text_kv[:, :, 1:], cache[:, 1:], *window)
    assert_close(alone[0], both[0][1:], rtol=1e-4, atol=1e-5)
    assert_close(alone[1], both[1][:, 1:], rtol=1e-4, atol=1e-5)
