"""The engines that can be measured against each other, and how each is made from a subject."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.harness.peaks import TYPES
from bench.harness.subject import in_layout
from export.backends.base import Backend
from export.backends.registry import BACKENDS
from plugins.errors import UserError
from runtime.engines.base import EagerEngine, Engine
from runtime.engines.compiled import open_engine
from runtime.rollout.calibration import drive
from vmla.config import Layout
from vmla.transformer import VideoMLA
from vmla.weights.checkpoint import Checkpoint

ON_CPU = tuple(name for name, backend in BACKENDS.items() if "cpu" in backend.devices)
GPU_ALONE = tuple(name for name, backend in BACKENDS.items() if "cpu" not in backend.devices)
ENGINES = ("eager-mla", "eager-mha", *ON_CPU, "compile", "absorbed", *reversed(GPU_ALONE))
"""The model in its forms and every backend, in the order in which they are measured."""
BY_NAME = (*ENGINES, "compile-mha")
"""All engines that can be named; `compile-mha` is measured only by name, since it takes long to compile."""
PASSES = ("forward", "entries")
"""Methods of a model that are compiled: the step, and the clean pass if the model has one."""
PRECISIONS = ("fp32", "bf16", "fp16", "fp8")


@dataclass(frozen=True, kw_only=True)
class EngineArm:
    """An engine in a precision."""

    engine: str
    precision: str

    @property
    def name(self) -> str:
        """The arm's name in tables."""
        return f"{self.engine} {self.precision}"

    @property
    def layout(self) -> Layout:
        """The layout of the engine's cache."""
        return "mha" if self.engine.endswith("-mha") else "mla"

    @property
    def form(self) -> str:
        """How it attends, as `vmla.flops` names it."""
        return "absorbed" if self.engine == "absorbed" else "expanded"

    def open(self, subject: Checkpoint, device: torch.device, *, batch: int, folder: Path) -> Engine:
        """The engine, loaded; compiled ones are built in `folder` or found there.

        Raises:
            UserError: if this machine cannot run it.
        """
        own = in_layout(subject, self.layout, device=device.type)
        if (backend := BACKENDS.get(self.engine)) is None:
            return self._eager(own, device)
        return self._built(backend, own, device, batch=batch, folder=folder)

    def _eager(self, subject: Checkpoint, device: torch.device) -> EagerEngine:
        if self.precision not in TYPES:
            raise UserError(f"eager PyTorch has no precision {self.precision}; it has {', '.join(TYPES)}")
        model = subject.transformer()
        compiled = self.engine.startswith("compile")
        if compiled and device.type != "cuda":
            compile_passes(model)
        return EagerEngine(
            model, subject.text(), device=device, dtype=TYPES[self.precision],
            absorbed=self.engine == "absorbed", compiled=compiled and device.type == "cuda",
        )  # fmt: skip

    def _built(
        self, backend: Backend, subject: Checkpoint, device: torch.device, *, batch: int, folder: Path
    ) -> Engine:
        from export.build import build
        from export.lowering.precision import check_precision
        from export.settings import Settings

        if device.type not in backend.devices:
            what = "no GPU is measured" if backend.name in GPU_ALONE else "a GPU is measured"
            raise UserError(f"{what}, and engines of {backend.name} run on {' or '.join(backend.devices)}")
        settings = Settings(
            backend=backend.name, precision=check_precision(self.precision), batch=batch,
            device=device.type if "device" in backend.takes else "cpu",
            target=_architecture(device) if "target" in backend.takes else None,
        )  # fmt: skip
        place = folder / f"{subject.name}-{settings.name}"
        build(subject, settings, place, lambda phase: None, drive=drive)
        return open_engine(place, subject, batch=batch)


def compile_passes(model: VideoMLA) -> None:
    """Compile every kind of pass that the model has as a whole, as is done on a CPU."""
    for name in PASSES:
        if (run := getattr(model, name, None)) is not None:
            setattr(model, name, torch.compile(run, fullgraph=True, dynamic=False))


def _architecture(device: torch.device) -> str:
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def choose_arms(engines: Sequence[str] | None, precisions: Sequence[str]) -> list[EngineArm]:
    """The arms of some of `BY_NAME` in some of `PRECISIONS`; of all `ENGINES` if none is named."""
    wanted = ENGINES if engines is None else engines
    return [EngineArm(engine=engine, precision=kind) for engine in wanted for kind in precisions]


def failing(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """The result of `call` and None, or None and why it failed, so that other arms are still measured."""
    try:
        return call(), None
    except UserError as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001 - compilers and drivers raise of every kind; it goes on record
        said = str(error).strip().splitlines()
        return None, f"{type(error).__name__}: {said[0] if said else 'without a word'}"
