"""Teacher forcing computes what its equations say, on the windows that a rollout meets."""

import pytest
import torch
from kit.measure import assert_close
from kit.references.equations import Equations
from kit.tiny.models import draw, tiny_config, tiny_model

from runtime.prompts.sources import FixedPrompts
from runtime.rollout.decoding import NoDecoder
from runtime.rollout.rollout import rollout
from vmla.cache import CacheSpec
from vmla.scheduler import Sampler
from vmla.train.objectives.packed_clip import remembered
from vmla.train.objectives.teacher_forcing import Forcing, forcing_loss

pytestmark = pytest.mark.cpu

BATCH = 3
EXACT = Forcing(copies=1, context_noise=0.0, own_share=0.0)
"""Nothing but the truth is remembered."""


def draw_batch(config, chunks):
    frames = chunks * config.chunk
    latents = draw(BATCH, config.in_channels, frames, config.sample_height, config.sample_width, seed=1)
    return latents, draw(BATCH, config.text_tokens, config.text_dim, seed=2)


def loss_of(model, latents, text, numbers, forcing, *, seed=0, step=None):
    spec, generator = CacheSpec.of(model.config), torch.Generator().manual_seed(seed)
    return forcing_loss(step or model, spec, latents, model.encode_text(text), numbers, forcing, generator)


class Recorder:
    """A model's step that keeps what it was called with and what it gave."""

    def __init__(self, model):
        self.model, self.calls = model, []

    def __call__(self, *inputs):
        out = self.model(*inputs)
        # A rollout writes into its cache: copies stay as they were.
        self.calls.append(([tensor.clone() for tensor in inputs], out))
        return out

    def passes(self, *, clean):
        """The clean passes, or the predicting ones."""
        return [call for call in self.calls if (call[0][1] == 0).all() == clean]


def check_against_equations(model, numbers, forcing):
    """Loss and gradients, from what the passes were given: one masked forward in float64, no cache."""
    latents, text = draw_batch(model.config, len(numbers))
    recorder, equations = Recorder(model.requires_grad_(True)), Equations(model)
    loss = loss_of(model, latents, text, numbers, forcing, step=recorder)
    loss.backward()
    for weight in equations.weights.values():
        weight.requires_grad_(True)
    expected = loss_by_equations(equations, recorder, latents, text, numbers)
    expected.backward()
    assert_close(loss, expected, rtol=1e-4, atol=0)
    for name, parameter in model.named_parameters():
        scale = float(equations.weights[name].grad.abs().max())
        assert scale > 0, name
        assert_close(parameter.grad, equations.weights[name].grad, rtol=0, atol=1e-3 * scale)


def loss_by_equations(equations, recorder, latents, text, numbers):
    """Mean over chunks that follow another; the noise is what the noisy latents are made of."""
    size = equations.config.chunk
    committed = [inputs[0].detach() for inputs, _ in recorder.passes(clean=True)]
    assert len(committed) == len(numbers) - 1
    # Nothing looks at the last chunk's clean half.
    remembered = torch.cat([*committed, torch.randn_like(latents[:, :, :size])], dim=2)
    follows = [number == 0 or number - 1 in numbers for number in numbers]
    noisy, timestep = torch.randn(latents.shape), torch.ones(BATCH, latents.shape[2])
    places = [place for place, predicted in enumerate(follows) if predicted]
    predicting = recorder.passes(clean=False)
    assert len(predicting) == len(places)
    errors = []
    for copy in range(len(predicting[0][0][0]) // BATCH):
        rows = slice(copy * BATCH, (copy + 1) * BATCH)
        for place, (inputs, _) in zip(places, predicting, strict=True):
            noisy[:, :, place * size : (place + 1) * size] = inputs[0][rows]
            timestep[:, place * size : (place + 1) * size] = inputs[1][rows]
        velocity = equations.run(remembered, noisy, timestep, text, numbers)[0][:, :, latents.shape[2] :]
        sigma = timestep.double()[:, None, :, None, None] / 1000
        noise = (noisy.double() - (1 - sigma) * latents.double()) / sigma
        error = (velocity - (noise - latents.double())).square()
        errors += [error[:, :, place * size : (place + 1) * size].mean() for place in places]
    return torch.stack(errors).mean()


@pytest.mark.parametrize("numbers", [[0, 1, 2, 3, 4], [0, 2, 3, 4], [0, 7, 8, 9]], ids=str)
@pytest.mark.parametrize(
    "forcing",
    [EXACT, Forcing(), Forcing(copies=3, own_share=1.0, own_sigma=1.0)],
    ids=["truth", "default", "own estimates"],
)
def test_loss_and_gradients_are_those_of_one_masked_forward(forcing, numbers):
    check_against_equations(tiny_model(), numbers, forcing)


@pytest.mark.parametrize("window", [{"sink": 3, "history": 4}, {"sink": 0, "chunk": 4}], ids=str)
@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_loss_and_gradients_under_other_windows(layout, window):
    for numbers in ([0, 1, 2, 3], [0, 5, 6, 7]):
        check_against_equations(tiny_model(layout=layout, **window), numbers, Forcing())


@pytest.mark.parametrize("sink", range(5))
@pytest.mark.parametrize("history", [1, 2, 3, 6])
def test_a_jump_forgets_all_but_the_sink_that_was_made(sink, history):
    spec = CacheSpec(sink=sink, history=history, chunk=2, tokens_per_frame=1, entry_width=1, layers=1)
    for numbers in ([0, 1, 2, 3], [0, 3, 4, 5, 6], [0, 9, 10]):
        for number in numbers:
            shown = remembered(spec, number, numbers)
            since = max(n for n in (0, numbers[1]) if n <= number and (n == 0 or n - 1 not in numbers))
            for slot, frame in enumerate(spec.frame_in_slot(2 * number)):
                known = frame >= 0 and frame // 2 in numbers and (frame < sink or frame // 2 >= since)
                assert shown[slot] == (spec.slot_index(2 * number)[slot] if known else -1)


def test_without_a_jump_the_windows_are_those_of_a_rollout():
    model = tiny_model()
    text, chunks = draw(1, model.config.text_tokens, model.config.text_dim), 6

    class Engine(Recorder):
        config, cache_spec = model.config, CacheSpec.of(model.config)
        device, dtype, cache_dtype = torch.device("cpu"), torch.float32, torch.float32

        def step(self, inputs, held):
            return self(*inputs)

        def entries(self, inputs, held):
            return self(*inputs)[1]

        def computation(self, held):
            return held

        def encode_prompt(self, prompts):
            return model.encode_text(text)

    engine, recorder = Engine(model), Recorder(model)
    prompts, sampler = FixedPrompts("a red star"), Sampler(steps=1)
    frames = [c.frames for c in rollout(engine, NoDecoder(), prompts, sampler, seeds=[5], chunks=chunks)]
    latents = torch.cat(frames, dim=1).transpose(1, 2)
    loss_of(model, latents, text, range(chunks), EXACT, step=recorder)
    pairs = list(zip(recorder.passes(clean=True), engine.passes(clean=True), strict=True))
    assert len(pairs) == chunks - 1
    for (trained, (_, entries)), (rolled, (_, others)) in pairs:
        for ours, theirs in zip(trained, rolled, strict=True):
            assert_close(ours, theirs, rtol=0, atol=1e-5)
        assert_close(entries, others, rtol=1e-4, atol=1e-5)


def test_after_a_jump_the_window_grows_into_that_of_a_rollout():
    spec = CacheSpec.of(tiny_config(history=4))
    numbers = [0, 7, 8, 9]
    counts = [int((remembered(spec, number, numbers) >= 0).sum()) for number in numbers]
    assert counts == [0, 1, 3, 5]
    assert torch.equal(remembered(spec, 9, numbers), spec.slot_index(9 * spec.chunk))


def test_what_is_remembered_is_the_truth_under_noise_or_a_trusted_estimate():
    model = tiny_model()
    latents, text = draw_batch(model.config, 4)
    forcing, kinds = Forcing(own_share=0.7, own_sigma=0.8, context_noise=0.25), {"truth": 0, "estimate": 0}
    for seed in range(10):
        recorder = Recorder(model)
        loss_of(model, latents, text, range(4), forcing, seed=seed, step=recorder)
        calls = zip(recorder.passes(clean=False)[:-1], recorder.passes(clean=True), strict=True)
        chunks = latents.split(2, dim=2)[:-1]
        for chunk, ((noisy, (velocity, _)), (kept, _)) in zip(chunks, calls, strict=True):
            for clip in range(BATCH):
                sigma = noisy[1][clip, 0] / 1000
                estimate = noisy[0][clip] - sigma * velocity[clip]
                own = bool(torch.isclose(kept[0][clip], estimate, atol=1e-4).all())
                # Least squares: a noised truth is (1 - sigma) of the truth, give or take.
                share = float((kept[0][clip] * chunk[clip]).sum() / chunk[clip].square().sum())
                assert sigma < 0.8 if own else 0.6 < share < 1.15
                kinds["estimate" if own else "truth"] += 1
    assert min(kinds.values()) > 20


def test_copies_of_a_clip_lie_in_different_parts_of_the_schedule():
    model, forcing = tiny_model(), Forcing(copies=4, shift=3.0)
    latents, text = draw_batch(model.config, 3)
    recorder = Recorder(model)
    loss_of(model, latents, text, range(3), forcing, step=recorder)
    for inputs, _ in recorder.passes(clean=False):
        sigma = inputs[1][:, 0].double() / 1000
        even = (sigma / (3 - 2 * sigma)).reshape(4, BATCH).sort(dim=0).values
        assert_close(even.diff(dim=0), torch.full((3, BATCH), 0.25), rtol=0, atol=1e-5)


def test_the_generator_alone_decides_what_is_drawn():
    model = tiny_model()
    latents, text = draw_batch(model.config, 3)
    once, again, other = (loss_of(model, latents, text, range(3), Forcing(), seed=s) for s in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
