"""What the loop promises: fixed buffers and one computation for every chunk, no host reads, flat memory."""

import gc
import sys
import time
from statistics import median

import psutil
import pytest
import torch
from kit.measure import assert_close
from kit.processes.sessions import make_video
from kit.tiny.engines import tiny_engine
from kit.tiny.frames import frames_of
from kit.tiny.models import tiny_model
from kit.tiny.passes import pass_inputs, window_at
from torch.utils._python_dispatch import TorchDispatchMode

from runtime.device.cuda_graphs import Replay, captured
from runtime.engines.layers.packed_linear import PackedLinear, packed
from runtime.engines.layers.timestep_tables import tabled
from runtime.outputs import NullSink
from runtime.planning.request import prepare
from runtime.prompts.sources import FixedPrompts, PromptChange, PromptSchedule
from runtime.rollout.decoding import NoDecoder
from runtime.rollout.rollout import Rollout, rollout
from runtime.telemetry.events import NoTelemetry
from runtime.telemetry.metrics import RECENT, Summary, percentile, prometheus
from vmla.scheduler import Sampler, keyed_noise
from vmla.transformer import StepInputs

pytestmark = pytest.mark.cpu

RED, BLUE = "a red star bouncing on a navy background", "a blue ring resting on a gray background"
EULER, RENOISE = Sampler(kind="euler", steps=2), Sampler(kind="renoise", steps=3)
CPU = torch.device("cpu")
WINDOWS = [
    {"sink": 1, "history": 3}, {"sink": 1, "history": 1}, {"sink": 0, "history": 4},
    {"sink": 3, "history": 0}, {"chunk": 1}, {"chunk": 3, "first_chunk": 1},
    {"sink": 2, "history": 6, "chunk": 3, "first_chunk": 1},
]  # fmt: skip


def plain(engine, prompts, sampler, *, seeds, chunks):
    """The rollout without fixed buffers: fresh tensors for every chunk, a whole step for the clean pass."""
    spec, config = engine.cache_spec, engine.config
    cache = spec.allocate(len(seeds), dtype=engine.dtype)
    for number in range(chunks):
        text = engine.encode_prompt(prompts)
        frames, window = frames_of(config, number), window_at(spec, number)
        shape = (config.in_channels, len(frames), config.sample_height, config.sample_width)

        def noise(step, number=number, shape=shape):
            return torch.stack([keyed_noise(shape, seed=seed, chunk=number, step=step) for seed in seeds])

        latents = noise(0)
        for step, t in enumerate(sampler.timesteps().tolist()):
            timestep = torch.full((len(seeds), len(frames)), t)
            velocity, _ = engine.step(StepInputs(latents, timestep, text, cache, *window))
            fresh = noise(step + 1) if sampler.needs_noise(step) else None
            latents = sampler.step(latents, velocity, step, fresh)
        _, entries = engine.step(StepInputs(latents, torch.zeros_like(timestep), text, cache, *window))
        spec.commit_(cache, entries, frames[0])
        yield latents


@pytest.mark.parametrize("sampler", [EULER, RENOISE], ids=["euler", "renoise"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_fixed_buffers_give_the_plain_rollout_bit_for_bit(layout, window, sampler):
    engine = tiny_engine(layout=layout, **window)
    asked = {"seeds": [3, 8], "chunks": 6}
    made = rollout(engine, NoDecoder(), FixedPrompts(RED, BLUE), sampler, **asked)
    for chunk, wanted in zip(made, plain(engine, (RED, BLUE), sampler, **asked), strict=True):
        assert torch.equal(chunk.frames.transpose(1, 2), wanted)


@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_the_entries_alone_are_those_of_the_whole_pass(layout):
    engine = tiny_engine(layout=layout)
    videos = Rollout(engine, FixedPrompts(RED), EULER, seeds=[1])
    for _ in range(3):
        latents = videos.denoise()
        b = videos.buffers
        inputs = StepInputs(latents, b.clean, *b.window)
        _, entries = engine.step(inputs)
        assert torch.equal(engine.entries(inputs), entries)
        videos.update_cache()


@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_packed_layers_are_those_that_they_were_made_from(layout):
    model = tiny_model(layout=layout)
    names = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    again = packed(model, rows=7)
    left = {name for name, part in again.named_modules() if isinstance(part, torch.nn.Linear)}
    assert all(name.endswith(("up_k", "up_v")) for name in left)
    assert len(left) == (4 if layout == "mla" else 0)
    inputs = pass_inputs(model.config, 3)
    for made, wanted in zip(again(**inputs), model(**inputs), strict=True):
        assert_close(made, wanted, rtol=1e-4, atol=1e-5)
    text = torch.randn(2, model.config.text_tokens, model.config.text_dim)
    assert_close(again.encode_text(text), model.encode_text(text), rtol=1e-4, atol=1e-5)
    assert [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)] == names
    # A batch of another size than it was laid out for is right as well.
    layer = torch.nn.Linear(6, 5)
    x = torch.randn(2, 3, 6)
    assert_close(PackedLinear(layer, rows=1)(x), layer(x), rtol=1e-5, atol=1e-6)


def test_what_a_timestep_alone_decides_is_worked_out_once():
    model = tiny_model()
    table, asked = tabled(model), []
    model.condition_embedder.register_forward_hook(lambda *_: asked.append(1))
    inputs, wanted = pass_inputs(model.config, 3), model(**pass_inputs(model.config, 3))
    for _ in range(3):
        made = table(**inputs)
    assert len(asked) == 2  # one of them by the model itself
    assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))
    inputs["timestep"].mul_(0.5)  # no longer what it was
    assert (table(**inputs)[0] - wanted[0]).abs().max() > 1e-4
    assert torch.equal(table(**inputs)[0], model(**inputs)[0])
    same = pass_inputs(model.config, 3)
    assert all(torch.equal(a, b) for a, b in zip(table(**same), wanted, strict=True))
    remembered = table.condition_embedder._known
    assert len(remembered) == 2
    del inputs, same
    assert len(remembered) == 0  # a session that lasts for days holds those of its videos alone


def test_what_a_timestep_decides_is_forgotten_with_it():
    model = tiny_model()
    table = tabled(model)
    known = table.condition_embedder._known
    for _ in range(3):
        inputs = pass_inputs(model.config, 3)
        table(**inputs)
        table(**inputs)
        assert len(known) == 1
        del inputs
        gc.collect()
        assert not known


class Operators(TorchDispatchMode):
    """Names of the operators that run, and how often a value is read back to the host."""

    READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default,
             torch.ops.aten.equal.default, torch.ops.aten.nonzero.default)  # fmt: skip

    def __init__(self):
        super().__init__()
        self.names, self.reads = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.reads += function in self.READS
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_every_chunk_is_the_same_computation_on_the_same_memory_and_reads_nothing_back(monkeypatch):
    """Filling, or full, at a change of prompt: so one CUDA graph stands for all of each kind."""
    monkeypatch.setattr("plugins.sdpa.readable", lambda valid: False)  # as on a GPU
    engine = tiny_engine()
    prompts = PromptSchedule(
        [PromptChange(chunk=0, prompts=(RED,)), PromptChange(chunk=5, prompts=(BLUE,), policy="reset")]
    )
    videos = Rollout(engine, prompts, RENOISE, seeds=[1])
    seen, places = {False: [], True: []}, []
    for number in range(8):
        videos._change_prompt(prompts.at(number))  # texts are encoded on the way, outside of the graph
        with Operators() as chunk:
            videos.denoise()
            full = videos.buffers.held == engine.cache_spec.slots
            videos.update_cache()
        assert chunk.reads == 0
        seen[full].append(chunk.names)
        tensors = (item for item in vars(videos.buffers).values() if isinstance(item, torch.Tensor))
        places.append([tensor.data_ptr() for tensor in tensors])
    assert [len(kind) for kind in seen.values()] == [4, 4]
    # The very first chunk works out the sampler's levels; after it, the first of its kind is captured.
    assert all(names == kind[2] for kind in seen.values() for names in kind[3:])
    assert all(place == places[0] for place in places)


def test_no_position_ever_leaves_the_window():
    engine = tiny_engine()
    videos = Rollout(engine, FixedPrompts(RED), Sampler(steps=1), seeds=[1])
    for _ in range(60):
        videos.denoise()
        b = videos.buffers
        assert int(b.slot_index.max()) < engine.cache_spec.positions
        assert int(b.chunk_index.max()) < engine.cache_spec.positions
        assert int(b.chunk_index.min()) >= 0
        assert int(b.target.max()) < b.cache.shape[2]
        videos.update_cache()
    assert videos.number == 60


def test_a_graph_is_the_function_itself_on_a_cpu_and_missed_loudly_elsewhere():
    calls = []

    def function():
        calls.append(1)

    assert captured(function, CPU) is function
    if not torch.cuda.is_available():
        with pytest.warns(UserWarning, match="no CUDA graph of the chunk"):
            assert captured(function, torch.device("cuda")) is function
    assert calls == []


class Graph:
    """Stands for a captured graph: what it replays are the function's own operations."""

    def __init__(self, function):
        self.replay = function


class Launches(NoTelemetry):
    """Of each chunk."""

    def __init__(self):
        self.seen = []

    def chunk(self, report):
        self.seen.append(report.launches)


@pytest.mark.parametrize("graphs", [True, False])
def test_the_host_s_launches_are_counted_where_graphs_are_replayed(checkpoint, monkeypatch, graphs):
    if graphs:
        monkeypatch.setattr("runtime.rollout.graphs.captured", lambda function, *_: Replay(Graph(function)))
    job, frames = prepare(RED, checkpoint, chunks=6)
    told = Launches()
    make_video(job, NullSink(), told, frames=frames)
    # Noise, two positions, two places of the commit; the steps, and the clean pass before them. The first
    # chunk and its clean pass are launched one by one: a first frame waits for no capture.
    assert told.seen == ([None, None, 7, 7, 7, 7] if graphs else [None] * 6)


def test_the_first_chunk_is_handed_on_before_anything_is_captured(monkeypatch):
    captures = []

    def capture(function, *_):
        captures.append(function)
        return function

    monkeypatch.setattr("runtime.rollout.graphs.captured", capture)
    videos, other = (
        Rollout(tiny_engine(), FixedPrompts(RED), RENOISE, seeds=[1], graphs=graphs)
        for graphs in (True, False)
    )
    made = [videos.denoise()]
    videos.update_cache()
    assert not captures
    made.append(videos.denoise())
    assert len(captures) == 2  # the steps and the clean pass
    wanted = [other.denoise()]
    other.update_cache()
    wanted.append(other.denoise())
    assert all(torch.equal(one, two) for one, two in zip(made, wanted, strict=True))


class Watch(NoTelemetry):
    """Main memory after every fiftieth chunk, and the calls that Python makes for the chunk after it.

    Calls are counted because they are the same on every machine; a time depends on what else runs there.
    """

    def __init__(self):
        self.bytes, self.calls, self.times = [], [], []

    def chunk(self, report):
        sys.setprofile(None)
        self.times.append(time.thread_time())
        if report.chunk % 50 == 0:
            gc.collect()
            self.bytes.append(psutil.Process().memory_info().rss)
            self.calls.append(0)
            sys.setprofile(self._count)

    def _count(self, frame, event, argument):
        self.calls[-1] += event in ("call", "c_call")

    def drift(self, share):
        """How many times as long one of the last `share` chunks takes as one of the first, but for a few."""
        gaps = torch.tensor(self.times, dtype=torch.float64).diff()
        # The quicker chunks of each: what else the machine does now and then is no drift.
        first, last = (
            float(gaps[part].quantile(0.1))
            for part in (slice(share // 2, 3 * share // 2), slice(-share, None))
        )
        return last / first


def film_of(checkpoint, chunks):
    job, frames = prepare(RED, checkpoint, chunks=chunks, steps=1)
    watch = Watch()
    try:
        outcome = make_video(job, NullSink(), watch, frames=frames)
    finally:
        sys.setprofile(None)
    assert outcome.frames == frames == 12 * chunks
    return watch


@pytest.mark.parametrize(
    "chunks", [800, pytest.param(9_600, marks=pytest.mark.slow)], ids=["ten minutes", "two hours"]
)
def test_a_long_video_does_not_grow_or_drift(checkpoint, chunks):
    watch = film_of(checkpoint, chunks)
    assert max(watch.bytes[4:]) <= 1.01 * watch.bytes[4]
    # Medians: now and then the collector of garbage calls what it frees.
    assert median(watch.calls[-5:]) <= 1.01 * median(watch.calls[3:8])
    if chunks > 800:  # enough of them for a time to mean something beside neighbours
        assert watch.drift(chunks // 5) < 1.25


def test_figures_are_those_of_the_chunks(checkpoint):
    summary, job = Summary(), prepare(RED, checkpoint, chunks=6)[0]
    assert summary.figures() is None
    outcome = make_video(job, NullSink(), summary, frames=72)
    figures = summary.figures()
    assert (figures.chunks, figures.frames) == (6, 72)
    assert 0 <= figures.stalls <= 6
    assert outcome.figures == figures
    assert 0 < figures.first_frame_seconds < outcome.seconds
    assert 0 < figures.chunk_p50 <= figures.chunk_p95 <= figures.chunk_p99
    text = prometheus({"": figures})
    values = dict(line.split() for line in text.splitlines() if not line.startswith("#"))
    assert float(values["videomla_frames"]) == 72
    assert float(values["videomla_chunk_p99"]) == pytest.approx(figures.chunk_p99)
    summary._gaps.extend([1.0] * (RECENT - 1) + [2.0])  # an hour at another speed
    assert (len(summary._gaps), summary.figures().chunk_p50) == (RECENT, 1.0)
    assert [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0.5, 0.75, 0.99)] == [2.0, 3.0, 4.0]
