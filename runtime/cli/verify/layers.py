"""`vmla-export verify --layers`: compares an engine's matrix products with those of the float32 graph.

Both graphs run in ONNX Runtime, driven by Polygraphy's Comparator, on the pass that `verify` measures. They
run once for each group of layers, so that at most `HELD` bytes of each graph's products are in memory. An
engine of TensorRT or TensorRT-RTX does not keep the graph that it was built from, so that is written anew;
what it shows is that graph in ONNX Runtime, not what TensorRT makes of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.backends.base import Requirement
from export.backends.onnx import EXPORTER, ONNX, RUNTIME, write_graph
from export.backends.registry import BACKENDS
from export.backends.tensorrt import TensorRT
from export.backends.tensorrt_rtx import TensorRTRTX
from export.build import describe, joins_products, lower
from export.checks import build_command, check_claims, check_engine, check_model, sound_copy
from export.engine.manifest import Manifest
from export.layers import layers_of
from export.loading.onnx_session import check_types, inference_session
from export.lowering.precision import Precision, check_precision
from export.lowering.trace import fake_mode_of, fake_model, trace
from export.onnx.products import products
from export.settings import Settings
from plugins.errors import UserError
from runtime.cli.verify.engine import prompts, second_chunk
from runtime.engines.base import EagerEngine
from vmla.cache import CacheSpec
from vmla.config import ModelConfig
from vmla.fused_attention import JoinedProduct, fused
from vmla.weights.checkpoint import Checkpoint

COMPARATOR = Requirement(modules=("polygraphy",), extra="polygraphy")
PROGRAMS = ("prompt", "step")
"""The programs of an engine, in the order in which they run."""

HELD = 2**30
"""The most bytes of one graph's products in memory at once."""
OVER_THE_WINDOW = (".attn1.up_k", ".attn1.up_v", ".attn1.expansion")
"""Layers whose input is the whole window; that of all others is the chunk or the text."""

LIMITS = {"fp32": 1e-4, "fp16": 1e-2, "fp8": 4e-1}
"""Limits on the relative error of a product, where the errors of all products before it add up. The limit of
fp8 is twice the largest error of the shipped model (0.183 in `blocks.3.attn1.up_q`); that of fp16 is ten
times the largest of the `debug` model (0.0009)."""

FROM_A_GRAPH = (TensorRT.name, TensorRTRTX.name)
"""Backends that build from an ONNX graph and do not keep it."""
RUN_UNQUANTIZED = ("fp32", "fp16")
"""The precisions in which ONNX Runtime runs their graphs; those in fp8 have bfloat16 for the rest."""

Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class LayerErrors:
    """Relative errors |engine - float32| / |float32| of every product, in the order in which they run."""

    precision: str
    errors: dict[str, float]

    @property
    def limit(self) -> float:
        """The largest error that a sound engine of this precision may show in a product."""
        return LIMITS[self.precision]

    @property
    def worst(self) -> str:
        """The layer with the largest error; NaN counts as the largest."""
        return max(self.errors, key=lambda name: (math.isnan(self.errors[name]), self.errors[name]))

    @property
    def first_above(self) -> str | None:
        """The first layer above the limit, if any; the errors of later layers may all come from it."""
        return next((name for name, error in self.errors.items() if not error <= self.limit), None)

    def lines(self) -> list[str]:
        """The result as lines of a table, and as JSON in the last line."""
        width = max(map(len, self.errors))
        marks = {self.worst: "  worst"} if self.errors[self.worst] != 0 else {}
        if self.first_above is not None:
            marks[self.first_above] = f"  first above{' and worst' if self.first_above in marks else ''}"
        said = "none is above it" if self.first_above is None else f"{self.first_above} is the first above it"
        return [
            *(f"{name:{width}}  {error:.2e}{marks.get(name, '')}" for name, error in self.errors.items()),
            f"limit of a layer in {self.precision}: {self.limit:g}; {said}",
            self._json(),
        ]

    def _json(self) -> str:
        """The result as JSON; an error that is not finite is null."""
        errors = {name: error if math.isfinite(error) else None for name, error in self.errors.items()}
        head = {"precision": self.precision, "limit": self.limit}
        return json.dumps({**head, "first_above": self.first_above, "worst": self.worst, "layers": errors})


def verify_layers(
    manifest: Manifest, folder: Path, checkpoint: Checkpoint, *, held: int = HELD
) -> LayerErrors:
    """Errors of the engine in `folder` against the float32 graphs of `checkpoint`, on the same inputs.

    At most `held` bytes of each graph's products are in memory at once, or one product if it is larger.

    Raises:
        UserError: if ONNX Runtime cannot run the engine, if the engine does not fit the checkpoint or is
            damaged, or if a package is missing.
    """
    _check_runs(manifest, folder)
    for requirement in (COMPARATOR, EXPORTER, RUNTIME):
        requirement.check()
    for name in PROGRAMS:
        check_types(manifest.programs[name])
    errors: dict[str, float] = {}
    feeds, sizes = feeds_of(manifest, checkpoint), bytes_of_products(manifest)
    with _own_graphs(manifest, folder, checkpoint) as own, TemporaryDirectory(prefix="videomla-") as place:
        write_graphs(manifest, checkpoint, "fp32", Path(place))
        for name in PROGRAMS:
            graphs = Path(place) / f"{name}.onnx", own / f"{name}.onnx"
            errors |= compare(*graphs, feeds[name], partial(groups, sizes=sizes, held=held))
    return LayerErrors(precision=manifest.precision, errors=errors)


def _check_runs(manifest: Manifest, folder: Path) -> None:
    """Refuse an engine that has no graph that ONNX Runtime runs."""
    if manifest.precision not in LIMITS:
        raise UserError(
            f"ONNX Runtime has no {manifest.precision} on a CPU; build with --precision fp16 or fp8"
        )
    remade = manifest.backend in FROM_A_GRAPH and manifest.precision in RUN_UNQUANTIZED
    if manifest.backend != ONNX.name and not remade:
        mend = build_command(
            manifest, folder.with_name(f"{folder.name}-onnx"), backend=ONNX.name, device="cpu"
        )
        raise UserError(
            f"ONNX Runtime cannot run an engine of {manifest.backend} in {manifest.precision} layer by "
            f"layer; verify an engine of the same precision instead, built with: {mend}"
        )


@contextmanager
def _own_graphs(manifest: Manifest, folder: Path, checkpoint: Checkpoint) -> Iterator[Path]:
    """A private folder with the graphs of the engine: its own files, or those that it was built from again.

    Raises:
        UserError: if the engine does not fit the checkpoint, is damaged, or was built by other code.
    """
    if manifest.backend == ONNX.name:
        check_engine(manifest, folder, checkpoint, batch=manifest.batch)
        with sound_copy(manifest, folder) as own:
            yield own
        return
    check_model(manifest, folder, checkpoint)  # the engine itself does not run, so any machine will do
    check_claims(manifest, folder)
    if describe(checkpoint, _settings(manifest)).code != manifest.code:
        mend = build_command(manifest, folder)
        raise UserError(f"{folder}: its graph cannot be written again: other code built it; run: {mend}")
    with TemporaryDirectory(prefix="videomla-graphs-") as place:
        write_graphs(manifest, checkpoint, check_precision(manifest.precision), Path(place))
        yield Path(place)


def _settings(manifest: Manifest) -> Settings:
    """The settings that the engine was built with."""
    takes = BACKENDS[manifest.backend].takes
    return Settings(
        backend=manifest.backend,
        precision=check_precision(manifest.precision),
        batch=manifest.batch,
        attention=manifest.attention,
        target=manifest.host.architecture if "target" in takes else None,
    )


def _joined(manifest: Manifest) -> bool:
    """Whether latent attention's products are joined in the graphs of the engine."""
    return manifest.backend in FROM_A_GRAPH and joins_products(_settings(manifest))


def write_graphs(manifest: Manifest, checkpoint: Checkpoint, precision: Precision, folder: Path) -> None:
    """Write the graphs of the engine of `manifest` in a precision that has no scales."""
    attention = "native" if manifest.attention == "fp8" else manifest.attention  # codes need scales
    settings = Settings(backend=ONNX.name, precision=precision, batch=manifest.batch, attention=attention)
    wanted = replace(describe(checkpoint, settings), window=manifest.window)
    for name, program in trace(
        checkpoint.transformer(), batch=manifest.batch, window=manifest.window, joined=_joined(manifest)
    ).items():
        write_graph(name, lower(program, wanted.programs[name], settings), wanted, folder)


def feeds_of(manifest: Manifest, checkpoint: Checkpoint) -> dict[str, Feeds]:
    """The inputs of each program: those of `verify`, rounded to the engine's types and back to float32.

    Empty slots hold zeros, not NaN, so that a product over all slots is finite.
    """
    eager = EagerEngine(
        checkpoint.transformer(), checkpoint.text(), device=torch.device("cpu"), dtype=torch.float32
    )
    text = prompts(manifest.batch)
    inputs = second_chunk(eager, manifest.batch, eager.encode_prompt(text))
    inputs = inputs._replace(cache=inputs.cache.nan_to_num(nan=0.0))
    if manifest.window == "held":
        held = int((inputs.slot_index >= 0).sum())
        tokens = held * eager.cache_spec.tokens_per_frame
        inputs = inputs._replace(cache=inputs.cache[:, :, :tokens], slot_index=inputs.slot_index[:held])
    tensors: dict[str, tuple[Tensor, ...]] = {
        "prompt": (checkpoint.text()(text).float(),),
        "step": tuple(inputs),
    }
    return {name: _rounded(manifest, name, given) for name, given in tensors.items()}


def _rounded(manifest: Manifest, program: str, tensors: tuple[Tensor, ...]) -> Feeds:
    """Arrays by input name, rounded to values that the engine's type for that input can represent."""
    feeds = {}
    for spec, tensor in zip(manifest.programs[program].inputs, tensors, strict=True):
        narrow = tensor.to(getattr(torch, spec.dtype))
        feeds[spec.name] = narrow.to(tensor.dtype).contiguous().numpy()
    return feeds


def bytes_of_products(manifest: Manifest) -> dict[str, int]:
    """The most bytes that the product of each linear layer takes in float32, by the layer's name."""
    config = ModelConfig.from_dict(manifest.model)
    spec = CacheSpec.of(config)
    window = spec.positions * spec.tokens_per_frame
    others = max(spec.chunk * spec.tokens_per_frame, config.text_tokens)
    outputs = {name: shape[0] for name, shape in layers_of(config).items()}
    if _joined(manifest):
        model = fake_model(config)
        with fake_mode_of(model):
            parts = fused(model).named_modules()
            outputs |= {name: len(part.weight) for name, part in parts if isinstance(part, JoinedProduct)}
    return {
        name: 4 * manifest.batch * count * (window if name.endswith(OVER_THE_WINDOW) else others)
        for name, count in outputs.items()
    }


def groups(layers: Iterable[str], sizes: Mapping[str, int], held: int) -> Iterator[list[str]]:
    """Yield groups of `layers`, in order, whose products take at most `held` bytes; one alone may take more.

    A layer that is multiplied several times has a number in its name: see `export.onnx.products`.
    """
    group, taken = list[str](), 0
    for layer in layers:
        size = sizes[layer.partition(" ")[0]]
        if group and taken + size > held:
            yield group
            group, taken = [], 0
        group.append(layer)
        taken += size
    if group:
        yield group


def compare(
    reference: Path, own: Path, feeds: Feeds, grouped: Callable[[Iterable[str]], Iterable[list[str]]]
) -> dict[str, float]:
    """The relative error of every product of the graph `own`, by layer, in the order of `own`.

    Only one group's products, from both graphs, are in memory at once.

    Raises:
        UserError: if the two graphs do not multiply the same weights, or one does not run.
    """
    import onnx

    wanted, made = (products(onnx.load(str(path), load_external_data=False)) for path in (reference, own))
    if wanted.keys() != made.keys():
        odd = min(wanted.keys() ^ made.keys())
        raise UserError(
            f"{odd} is in only one of the graphs of the engine and its model; build the engine again"
        )
    errors: dict[str, float] = {}
    for group in grouped(made):
        want = _outputs(reference, [wanted[layer] for layer in group], feeds)
        got = _outputs(own, [made[layer] for layer in group], feeds)
        errors |= {layer: _error(got[made[layer]], want[wanted[layer]]) for layer in group}
    return errors


def _outputs(graph: Path, names: list[str], feeds: Feeds) -> dict[str, NDArray[Any]]:
    """The tensors `names` of `graph`; writes a copy of the graph that has them as outputs beside it."""
    from polygraphy.backend.onnx import ModifyOutputs, OnnxFromPath, SaveOnnx
    from polygraphy.backend.onnxrt import OnnxrtRunner
    from polygraphy.comparator import Comparator
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    marked = graph.with_name(f"{graph.stem}-layers.onnx")
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        try:
            # External weights are not loaded: the copy finds them in the same file, beside it.
            model = OnnxFromPath(str(graph), ignore_external_data=True)
            SaveOnnx(ModifyOutputs(model, names), str(marked))()
            runner = OnnxrtRunner(partial(inference_session, marked), name=graph.stem)
            [(_, [result])] = Comparator.run([runner], data_loader=[dict(feeds)])
        except (RuntimeError, PolygraphyException) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{graph.name} does not run layer by layer in ONNX Runtime: {said}") from error
    return {name: result[name] for name in names}


def _error(got: NDArray[Any], want: NDArray[Any]) -> float:
    """|got - want| / |want| in float64; 0 if both are all zeros."""
    wide = want.astype(np.float64)
    difference, norm = np.linalg.norm(got.astype(np.float64) - wide), np.linalg.norm(wide)
    if norm == 0:
        return 0.0 if difference == 0 else math.inf
    return float(difference / norm)
