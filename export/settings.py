"""What is asked of a build."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import get_args

from export.backends.aoti import check_compiler, find_compiler
from export.backends.tensorrt import TARGETS, check_targets
from export.engine.manifest import BACKENDS, WITH_PLUGIN, Attention
from export.engine.target import NO_GPU, Host
from export.lowering.precision import QUANTIZED, Precision, base_of, check_hardware, check_precision
from plugins.errors import UserError, missing_extra


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One engine to build from a checkpoint."""

    backend: str
    precision: Precision
    batch: int = 1
    device: str = "cpu"
    """Where an `aoti` engine runs."""
    target: str | None = None
    """The architecture that a `tensorrt-rtx` engine is for, as `sm_89`, or several, as `sm_89,sm_120`."""
    attention: Attention | None = None
    """What was asked for; `attention_form` is what it comes to."""

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.batch < 1:
            raise UserError(f"batch is {self.batch}; it is a whole number, 1 or more")
        if self.backend not in BACKENDS:
            raise UserError(f"no such backend: {self.backend}; there are {', '.join(BACKENDS)}")
        if self.device not in ("cpu", "cuda"):
            raise UserError(f"no such device: {self.device}; use cpu or cuda")
        if self.device == "cuda" and self.backend != "aoti":
            raise UserError(f"backend {self.backend} takes no device; leave --device out")
        if (self.target is not None) != (self.backend == "tensorrt-rtx"):
            raise UserError("a target goes with backend tensorrt-rtx, and only with it: --target sm_89")
        if self.target is not None:
            check_targets(self.target)
            check_hardware(self.precision, self.target)
        if self.precision == "nvfp4" and not self.backend.startswith("tensorrt"):
            raise UserError("precision nvfp4 is for TensorRT engines of Blackwell GPUs alone; use fp8")
        self._check_attention()

    @property
    def base(self) -> Precision:
        """The precision of what is not quantised."""
        gpu = self.device == "cuda" or self.backend.startswith("tensorrt")
        return base_of(self.precision, gpu=gpu)

    @property
    def quantized(self) -> bool:
        """Whether scales are needed."""
        return self.precision in QUANTIZED

    def _check_attention(self) -> None:
        if self.attention not in (None, *get_args(Attention)):
            raise UserError(f"no such attention: {self.attention}; use plugin or native")
        if self.attention == "plugin" and self.backend not in WITH_PLUGIN:
            raise UserError(f"backend {self.backend} takes no plugin; leave --attention out")
        if (self.attention, self.backend, self.precision) == ("plugin", "tensorrt", "fp32"):
            raise UserError("the attention plugin computes in bf16 and fp16; use --precision bf16")

    @property
    def attention_form(self) -> Attention:
        """As asked for, or else the plugin's node wherever a plugin can take it: not in TensorRT in fp32."""
        if self.attention is not None:
            return self.attention
        fits = self.backend in WITH_PLUGIN and (self.backend, self.precision) != ("tensorrt", "fp32")
        return "plugin" if fits else "native"

    @property
    def name(self) -> str:
        """The settings as a part of a folder's name, the usual ones left out."""
        batch = f"b{self.batch}" if self.batch != 1 else None
        device = self.device if self.device != "cpu" else None
        attention = self.attention if self.backend in WITH_PLUGIN and self.attention == "native" else None
        parts = (self.backend, self.precision, attention, batch, device, self.target)
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
        if self.backend == "tensorrt":
            self._check_tensorrt()

    def _check_tensorrt(self) -> None:
        if find_spec("tensorrt") is None:
            raise missing_extra("tensorrt", "trt")
        if self.attention_form == "plugin" and find_spec("triton") is None:
            raise missing_extra("triton", "gpu")
        if architecture() == NO_GPU:
            mend = "use --backend tensorrt-rtx, which builds for a named one"
            raise UserError(f"no GPU here, and TensorRT builds on the GPU that it is for; {mend}")
        check_hardware(self.precision, architecture())


def architecture() -> str:
    """That of this machine's GPU, or `NO_GPU`."""
    return Host.here("cuda", ()).architecture


def choose_backend(target: str | None = None) -> tuple[str, str | None, str]:
    """The backend to use if none is asked for, its target, and why.

    Args:
        target: the GPU asked for, which TensorRT-RTX alone can build for from elsewhere.
    """
    if target is not None:
        return "tensorrt-rtx", target, "which builds for a named GPU"
    gpu = architecture()
    if gpu != NO_GPU and find_spec("tensorrt") is not None:
        return "tensorrt", None, f"TensorRT and a GPU, {gpu}, are here"
    if gpu in TARGETS and find_spec("tensorrt_rtx") is not None:
        return "tensorrt-rtx", gpu, f"TensorRT-RTX is here, and a GPU that it builds for: {gpu}"
    lacking = "no GPU is here" if gpu == NO_GPU else f"no TensorRT for {gpu} is here"
    if find_compiler() is not None:
        return "aoti", None, f"{lacking}; it runs wherever torch does, and a C++ compiler is here"
    return "onnx", None, f"{lacking}, nor a C++ compiler, which aoti would need"
