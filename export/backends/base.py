"""What a backend is: a way to compile a program into the files of an engine, and to load it from them.

A subclass and its name in `export.backends.registry` are all that a new backend takes. Its module loads
neither torch nor a compiler before a method needs them: engines are listed and refused without either.
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

Program = Callable[..., Sequence["Tensor"]]
"""Dense tensors in the order of the signature's inputs, to those of its outputs."""


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """Optional packages, and the extra of this project that installs them."""

    modules: tuple[str, ...]
    extra: str

    def installed(self) -> bool:
        """Whether all of them are here; none is imported."""
        return all(find_spec(module) is not None for module in self.modules)

    def check(self) -> None:
        """Refuse a machine without them.

        Raises:
            UserError: naming what to install.
        """
        if not self.installed():
            raise missing_extra(" or ".join(self.modules).replace("_", "-"), self.extra)

    def imported(self) -> Any:
        """The first of them as a module.

        Raises:
            UserError: as `check`.
        """
        try:
            return import_module(self.modules[0])
        except ImportError as error:
            raise missing_extra(self.modules[0].replace("_", "-"), self.extra) from error


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What is asked of a build, whatever the backend."""

    precision: Precision
    batch: int = 1
    device: str = "cpu"
    """Where the engine runs, for a backend that takes `device`."""
    target: str | None = None
    """The architecture that the engine is for, as `sm_89`, or several, as `sm_89,sm_120`; for a backend that
    takes `target`."""
    attention: Attention | None = None
    """What was asked for; `Backend.attention` says what it comes to."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """Why a backend is the one to take on this machine if none is named."""

    reason: str
    target: str | None = None


def lacking(gpu: str) -> str:
    """Why no TensorRT is taken, for an offer; `gpu` is the architecture of this machine's."""
    return "no GPU is here" if gpu == NO_GPU else f"no TensorRT for {gpu} is here"


class Backend(ABC):
    """One kind of engine: what it needs, what it can, how it is compiled and loaded."""

    name: ClassVar[str]
    """As `--backend` and manifests have it."""
    ending: ClassVar[str]
    """Of the file of a program: that of `step` is `step` with this behind it."""
    requires: ClassVar[tuple[Requirement, ...]] = ()
    """What a build needs; the versions of these packages are recorded in the manifest."""
    pinned: ClassVar[tuple[str, ...]] = ()
    """Packages that must have the very version that built an engine for it to load."""
    portable: ClassVar[bool] = False
    """Whether an engine runs on any machine, not only on the processor or GPU that it was compiled for."""
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    """Types of torch device that engines run on; of several, `--device` chooses."""
    takes: ClassVar[frozenset[str]] = frozenset()
    """Options that only some backends have, of `device`, `target` and `attention`."""
    nvfp4: ClassVar[bool] = False
    """Whether engines may be in nvfp4."""

    def check(self, options: BuildOptions) -> None:
        """Refuse what engines of this backend cannot be, on whatever machine.

        Raises:
            UserError: saying in one line what to ask for instead.
        """
        if options.precision == "nvfp4" and not self.nvfp4:
            raise UserError("precision nvfp4 is for TensorRT engines of Blackwell GPUs alone; use fp8")

    def check_tools(self, options: BuildOptions) -> None:
        """Refuse what cannot be built on this machine.

        Raises:
            UserError: naming what to install, or what to build instead.
        """
        for requirement in self.requires:
            requirement.check()

    def offer(self, gpu: str, target: str | None) -> Offer | None:
        """Why to take this backend if none is named, or None: then the next one of the registry is asked.

        Args:
            gpu: the architecture of this machine's, or `export.engine.target.NO_GPU`.
            target: the architectures asked for.
        """
        return None

    def remark(self, options: BuildOptions) -> str | None:
        """A line for whoever builds, on what was chosen for them."""
        return None

    def device(self, options: BuildOptions) -> str:
        """The type of torch device that the engine will run on."""
        return options.device if "device" in self.takes else self.devices[0]

    def attention(self, options: BuildOptions) -> Attention:
        """As asked for, or else the plugin's node wherever a plugin can take it."""
        return options.attention or ("plugin" if "attention" in self.takes else "native")

    def compiler(self, options: BuildOptions) -> dict[str, Any]:
        """What the compiler is told beyond its defaults, for the manifest."""
        return {}

    def products(self, options: BuildOptions) -> str:
        """How an engine multiplies the codes of a quantised precision, in words."""
        return "left to what runs it"

    def host(self, options: BuildOptions) -> Host:
        """The machine that the engine is for: this one, unless there is a target."""
        modules = (module for requirement in self.requires for module in requirement.modules)
        return Host.here(self.device(options), ("videomla", "torch", *modules))

    @abstractmethod
    def compile(self, name: str, program: ExportedProgram, manifest: Manifest, folder: Path) -> list[str]:
        """Write the program called `name` into `folder`, in files whose names begin with it.

        Args:
            name: `step` or `prompt`.
            program: in its precision, on the device that it will run on.
            manifest: of the engine; its `files` are not known yet.
            folder: of the engine in the making, where its file is called `name` and `ending`.

        Returns:
            What parser and compiler warned of.

        Raises:
            UserError: if they refuse.
        """

    @abstractmethod
    def load(self, folder: Path, name: str, manifest: Manifest) -> Program:
        """The program called `name` of the engine whose files lie in `folder`, ready to run.

        The folder is a private copy, which is gone when all programs of the engine are loaded.

        Raises:
            UserError: if a package is missing, or this machine can never run it.
            RuntimeError, OSError: if its file is damaged or does not load.
        """
