"""The interface of backends, which compile a program into files of an engine and load it from them.

A new backend takes a subclass and its name in `export.backends.registry`. Its module must import torch and
compilers only inside methods: engines are listed and refused without either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from export.engine.manifest import Attention, Manifest
from export.engine.target import NO_GPU, Host
from plugins.errors import UserError, missing_extra

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

    from export.lowering.precision import Precision
    from export.lowering.regional import Regional
    from plugins.triton.tiles import Size

Program = Callable[..., Sequence["Tensor"]]
"""Maps dense tensors in the order of the signature's inputs to those of its outputs."""


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """Optional packages, and the extra of this project that installs them."""

    modules: tuple[str, ...]
    extra: str

    def installed(self) -> bool:
        """Whether all modules can be found; none is imported."""
        return all(find_spec(module) is not None for module in self.modules)

    def check(self) -> None:
        """Refuse a machine that lacks one of them.

        Raises:
            UserError: naming what to install.
        """
        if missing := [module for module in self.modules if find_spec(module) is None]:
            raise missing_extra(" or ".join(missing).replace("_", "-"), self.extra)

    def imported(self) -> Any:
        """Import the first module and return it.

        Raises:
            UserError: as `check`.
        """
        try:
            return import_module(self.modules[0])
        except ImportError as error:
            raise missing_extra(self.modules[0].replace("_", "-"), self.extra) from error


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options of a build that do not depend on the backend."""

    precision: Precision
    batch: int = 1
    device: str = "cpu"
    """Device type that the engine runs on, for a backend that takes `device`."""
    target: str | None = None
    """Architectures that the engine is for, such as `sm_89` or `sm_89,sm_120`, for a backend that takes
    `target`."""
    attention: Attention | None = None
    """The form asked for; `Backend.attention` decides if None."""
    tile: Size | None = None
    """The size of the plugin's kernel, for a backend that takes `tile`; `compact` if None."""
    regional: bool | None = None
    """Whether one layer is compiled for all of them; `Backend.usually_regional` decides if None."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A backend's offer to be used on this machine where none is named."""

    reason: str
    target: str | None = None


def lacking(gpu: str) -> str:
    """The reason in an offer why TensorRT is not used; `gpu` is this machine's architecture."""
    return "no GPU is here" if gpu == NO_GPU else f"no TensorRT for {gpu} is here"


class Backend(ABC):
    """One kind of engine: its requirements and abilities, and how it is compiled and loaded."""

    name: ClassVar[str]
    """Its name in `--backend` and in manifests."""
    ending: ClassVar[str]
    """What a program's name and its file's name differ by, such as `.onnx`."""
    requires: ClassVar[tuple[Requirement, ...]] = ()
    """Packages that a build needs; the manifest records their versions."""
    pinned: ClassVar[tuple[str, ...]] = ()
    """Packages whose version must be the one that built the engine, or it does not load."""
    portable: ClassVar[bool] = False
    """Whether an engine runs on any machine, not only on the processor or GPU that it was compiled for."""
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    """Torch device types that engines run on; `--device` chooses among several."""
    takes: ClassVar[frozenset[str]] = frozenset()
    """Which of the options `device`, `target`, `tile` and `regional` the backend accepts."""
    attentions: ClassVar[tuple[Attention, ...]] = ("native",)
    """The forms of attention that it builds; the first is the default."""
    nvfp4: ClassVar[bool] = False
    """Whether it can build engines in nvfp4."""

    def check(self, options: BuildOptions) -> None:
        """Refuse options that this backend cannot build on any machine.

        Raises:
            UserError: in one line, with what to ask for instead.
        """
        if options.precision == "nvfp4" and not self.nvfp4:
            raise UserError("precision nvfp4 is for TensorRT engines of Blackwell GPUs alone; use fp8")

    def check_tools(self, options: BuildOptions) -> None:
        """Refuse options that cannot be built on this machine.

        Raises:
            UserError: naming what to install, or what to build instead.
        """
        for requirement in self.requires:
            requirement.check()

    def offer(self, gpu: str, target: str | None) -> Offer | None:
        """Offer to build where no backend is named, or return None: the registry's next one is asked then.

        Args:
            gpu: architecture of this machine's GPU, or `export.engine.target.NO_GPU`.
            target: architectures asked for, if any.
        """
        return None

    def remark(self, options: BuildOptions) -> str | None:
        """A line that tells the user what was chosen by default; None if nothing was."""
        return None

    def device(self, options: BuildOptions) -> str:
        """The type of torch device that the engine will run on."""
        return options.device if "device" in self.takes else self.devices[0]

    def attention(self, options: BuildOptions) -> Attention:
        """The form asked for, or the backend's default."""
        return options.attention or self.attentions[0]

    def regional(self, options: BuildOptions) -> bool:
        """Whether one layer is compiled for all of them: what was asked for, or what is usual."""
        if options.regional is not None:
            return options.regional
        return self.usually_regional(self.device(options), options.precision)

    def usually_regional(self, device: str, precision: str) -> bool:
        """Whether one layer is compiled for all of them if nothing is said."""
        return False

    def compiler(self, options: BuildOptions) -> dict[str, Any]:
        """Options of the compiler that are not its defaults; recorded in the manifest."""
        return {}

    def products(self, options: BuildOptions) -> str:
        """How engines multiply the codes of a quantised precision, in words."""
        return "left to what runs it"

    def host(self, options: BuildOptions) -> Host:
        """The machine that the engine is for: this one, unless `options` has a target."""
        modules = (module for requirement in self.requires for module in requirement.modules)
        return Host.here(self.device(options), ("videomla", "torch", *modules))

    @abstractmethod
    def compile(self, name: str, program: ExportedProgram, manifest: Manifest, folder: Path) -> list[str]:
        """Compile the program called `name` into files in `folder` whose names begin with `name`.

        Args:
            name: `step` or `prompt`.
            program: already lowered to its precision, on the device it will run on.
            manifest: the engine's, still without `files`.
            folder: the engine's, which is being built; the file there is called `name` and `ending`.

        Returns:
            Warnings of parser and compiler.

        Raises:
            UserError: if parser or compiler fails.
        """

    def compile_regional(self, name: str, program: Regional, manifest: Manifest, folder: Path) -> list[str]:
        """Compile a program in parts, as `compile` does a whole one; for backends that take `regional`."""
        raise NotImplementedError(f"backend {self.name} compiles whole programs")

    def files(self, name: str, manifest: Manifest) -> tuple[str, ...]:
        """The files of the engine that `load` needs for the program called `name`."""
        return (f"{name}{self.ending}",)

    @abstractmethod
    def load(self, folder: Path, name: str, manifest: Manifest) -> Program:
        """Load the program called `name` of the engine whose files are in `folder`.

        The folder is a private copy, which is gone when all programs of the engine are loaded.

        Raises:
            UserError: if a package is missing, or this machine cannot run it.
            RuntimeError, OSError: if its file is damaged or does not load.
        """
