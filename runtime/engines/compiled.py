"""Engines from an engine folder: loaded through their manifest, without tracing or compiling."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from export.backends.base import Program
from export.backends.registry import BACKENDS
from export.checks import check_engine
from export.engine.manifest import NAME, Manifest
from plugins.errors import UserError
from runtime.engines.programs import check_inputs, load_programs
from vmla.cache import CacheSpec
from vmla.config import ModelConfig
from vmla.text import TextEncoder
from vmla.transformer import StepInputs
from vmla.weights.checkpoint import Checkpoint
from vmla.weights.locate import find_checkpoint

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""The precision of an engine's matrix products that equals a dtype of the model."""

log = logging.getLogger(__name__)


class CompiledEngine:
    """An engine folder's two programs, the step and the prompt step, as a `runtime.engines.base.Engine`."""

    def __init__(
        self, manifest: Manifest, programs: dict[str, Program], text: TextEncoder,
        *, text_device: torch.device | None = None,
    ) -> None:  # fmt: skip
        """Run `programs`, and the text encoder on `text_device`; None is the engine's own device."""
        self.manifest = manifest
        self.config = ModelConfig.from_dict(manifest.model)
        self.cache_spec = CacheSpec.of(self.config)
        self.dtype: torch.dtype = getattr(torch, manifest.cache["dtype"])
        self.cache_dtype = self.dtype
        self.device = torch.device(manifest.host.device)
        self._programs = programs
        self._text = text
        text.encoder.to(self.device if text_device is None else text_device)

    @torch.inference_mode()
    def encode_prompt(self, prompts: Sequence[str | None]) -> Tensor:
        """Cross-attention keys and values [L, 2, B, tokens, D] of one prompt for each video."""
        text = self._text(prompts).to(self.device, torch.float32)
        check_inputs(self.manifest.programs["prompt"], [text])
        (text_kv,) = self._run("prompt", text)
        return text_kv

    @torch.inference_mode()
    def step(self, inputs: StepInputs, *, held: int | None = None) -> tuple[Tensor, Tensor]:
        """Velocity and entries: see `VideoMLA.forward`. One program serves every window.

        Raises:
            ValueError: naming a tensor whose shape or dtype is not the manifest's, or if a slot that holds a
                frame follows an empty one.
        """
        inputs = inputs._replace(latents=inputs.latents.float())
        check_inputs(self.manifest.programs["step"], inputs)
        if self.manifest.window == "held":
            held = _held(inputs.slot_index) if held is None else held
            tokens = held * self.cache_spec.tokens_per_frame
            inputs = inputs._replace(cache=inputs.cache[:, :, :tokens], slot_index=inputs.slot_index[:held])
        velocity, entries = self._run("step", *inputs)
        return velocity, entries

    def computation(self, held: int) -> int:
        """A computation for each number of slots that a step takes."""
        return held if self.manifest.window == "held" else self.cache_spec.slots

    def entries(self, inputs: StepInputs, *, held: int | None = None) -> Tensor:
        """The entries that `step` returns; its velocity is dropped.

        A program for the entries alone would save 2 % of a chunk of a small model and less of a large one,
        and would hold all weights a second time (LOG.md).
        """
        return self.step(inputs, held=held)[1]

    def _run(self, name: str, *tensors: Tensor) -> Sequence[Tensor]:
        # Compiled code expects dense tensors and does not check their strides.
        return self._programs[name](*(tensor.contiguous() for tensor in tensors))

    def close(self) -> None:
        """Drop the programs and their weights."""
        self._programs = {}

    def __enter__(self) -> CompiledEngine:
        """Return the engine; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine; an exception passes."""
        self.close()


def _held(slot_index: Tensor) -> int:
    """The number of slots that hold a frame, read from the device."""
    held = (slot_index >= 0).tolist()
    if held != sorted(held, reverse=True):
        raise ValueError("slot_index has an empty slot before one that holds a frame; slots fill in order")
    return sum(held)


def open_engine(
    folder: Path, checkpoint: Checkpoint, *, batch: int = 1, text_device: torch.device | None = None
) -> CompiledEngine:
    """Load the engine in `folder`, with the text encoder of the `checkpoint` that it was built from.

    The encoder runs on `text_device`; None is the engine's own device.

    Raises:
        UserError: if it does not fit this machine, the checkpoint or `batch`, or if a file is damaged.
    """
    manifest = Manifest.read(folder)
    check_engine(manifest, folder, checkpoint, batch=batch)
    programs = load_programs(folder, manifest)
    return CompiledEngine(manifest, programs, checkpoint.text(), text_device=text_device)


def find_engine(checkpoint: Checkpoint, *, device: str, dtype: str, engines: Path) -> tuple[Path | None, str]:
    """Find an engine in the folder `engines` that replaces the model on this machine.

    Its manifest must name `checkpoint`, the device type `device`, and matrix products in `dtype`, never in a
    narrower type. Of several engines, the one whose backend comes first in the registry is taken, then the
    first by name. Why an engine was passed over is logged, but for those of models of other sizes.

    Returns:
        Its folder, or None; and why it was taken, or why none was.
    """
    found, passed, others, sizes = [], [], 0, asdict(checkpoint.model_config())
    for path in sorted(engines.glob(f"[!.]*/{NAME}")):
        try:
            manifest = Manifest.read(path.parent)
            if any(sizes.get(setting) != value for setting, value in manifest.model.items()):
                others += 1
                continue
            _refuse_other_kind(manifest, path.parent, device, PRECISIONS[dtype])
            check_engine(manifest, path.parent, checkpoint)
        except (UserError, OSError) as refusal:
            log.info("%s", refusal)
            passed.append(str(refusal))
            continue
        found.append((list(BACKENDS).index(manifest.backend), path.parent))
    if found:
        return min(found)[1], f"found in {engines}"
    if not passed:
        return None, f"no engine in {engines}" + (f" is of {checkpoint.name}" if others else "")
    more = f"; and {len(passed) - 1} others that do not" if len(passed) > 1 else ""
    return None, f"nothing in {engines} fits: {passed[0]}{more}"


def _refuse_other_kind(manifest: Manifest, folder: Path, device: str, precision: str) -> None:
    built = manifest.precision, manifest.host.device
    if built != (precision, device):
        said = " on ".join(built)
        raise UserError(f"{folder} computes in {said}; ask for it with --engine {shlex.quote(str(folder))}")


def fit(folder: Path, name: str | Path | None, *, device: str, dtype: str) -> tuple[Checkpoint, str, str]:
    """The checkpoint, device and dtype that the engine in `folder` needs. Weights are read only to hash them.

    Args:
        folder: of the engine.
        name: the checkpoint asked for, None for the engine's own.
        device, dtype: those asked for; `cpu` and `auto` leave the choice to the engine.

    Raises:
        UserError: if the engine cannot run here, or was built for another job.
    """
    manifest = Manifest.read(folder)
    checkpoint = find_checkpoint(manifest.checkpoint if name is None else name)
    check_engine(manifest, folder, checkpoint)
    built = manifest.host.device, manifest.cache["dtype"]
    if device not in (built[0], "cpu", "auto"):
        raise UserError(f"{folder} was built for device {built[0]}, not {device}; leave --device out")
    if dtype not in (built[1], "auto"):
        raise UserError(f"{folder} was built for dtype {built[1]}, not {dtype}; leave --dtype out")
    return checkpoint, *built
