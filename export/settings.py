"""What is asked of a build."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from export.aoti import check_compiler, find_compiler
from export.host import Host
from export.manifest import BACKENDS
from export.precision import QUANTIZED, Precision, base_of, check_hardware, check_precision
from export.tensorrt_rtx import check_target
from vmla.errors import UserError, missing_extra

MISSING = {
    "tensorrt": "backend tensorrt (extra trt) cannot build engines yet; use tensorrt-rtx, onnx or aoti"
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One engine to build from a checkpoint."""

    backend: str
    precision: Precision
    batch: int = 1
    device: str = "cpu"
    """Where an `aoti` engine runs."""
    target: str | None = None
    """The architecture that a `tensorrt-rtx` engine is for, as `sm_89`."""

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.batch < 1:
            raise UserError(f"batch is {self.batch}; it is a whole number, 1 or more")
        if self.backend in MISSING:
            raise UserError(MISSING[self.backend])
        if self.backend not in BACKENDS:
            raise UserError(f"no such backend: {self.backend}; there are {', '.join(BACKENDS)}")
        if self.device not in ("cpu", "cuda"):
            raise UserError(f"no such device: {self.device}; use cpu or cuda")
        if self.device == "cuda" and self.backend != "aoti":
            raise UserError(f"backend {self.backend} takes no device; leave --device out")
        if (self.target is not None) != (self.backend == "tensorrt-rtx"):
            raise UserError("a target goes with backend tensorrt-rtx, and only with it: --target sm_89")
        if self.target is not None:
            check_target(self.target)
            check_hardware(self.precision, self.target)
        if self.precision == "nvfp4" and not self.backend.startswith("tensorrt"):
            raise UserError("precision nvfp4 is for TensorRT engines of Blackwell GPUs alone; use fp8")

    @property
    def base(self) -> Precision:
        """The precision of what is not quantised."""
        gpu = self.device == "cuda" or self.backend.startswith("tensorrt")
        return base_of(self.precision, gpu=gpu)

    @property
    def quantized(self) -> bool:
        """Whether scales are needed."""
        return self.precision in QUANTIZED

    @property
    def name(self) -> str:
        """The settings as a part of a folder's name, the usual ones left out."""
        batch = f"b{self.batch}" if self.batch != 1 else None
        device = self.device if self.device != "cpu" else None
        parts = (self.backend, self.precision, batch, device, self.target)
        return "-".join(part for part in parts if part)

    def check_tools(self) -> None:
        """Refuse early what the machine has no tools for.

        Raises:
            UserError: naming what to install.
        """
        if self.backend == "aoti":
            check_compiler(self.device)
            if self.device == "cuda":
                check_hardware(self.precision, Host.here("cuda", ()).architecture)
        elif find_spec("onnxscript") is None or find_spec("onnx") is None:
            raise missing_extra("onnx or onnxscript", "onnx")
        if self.backend == "tensorrt-rtx" and find_spec("tensorrt_rtx") is None:
            raise missing_extra("tensorrt-rtx", "trt-rtx")


def choose_backend() -> tuple[str, str]:
    """The backend to use if none is asked for, and why."""
    if find_compiler() is not None:
        return "aoti", "runs wherever torch does, and a C++ compiler is here"
    return "onnx", "no C++ compiler is here, which aoti would need"
