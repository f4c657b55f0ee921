"""Runs AOTInductor's packages on a CPU without holding Python's global interpreter lock.

PyTorch's own loader holds the lock as long as a program runs, 3.6 ms in each pass of `sprites` on two cores.
The threads that decode and encode release it with every operation, so they would wait each time. Here the
package's library is called through its C interface by ctypes, which releases the lock. The interface is
`torch/csrc/inductor/aoti_runtime/interface.h`.
"""

from __future__ import annotations

import ctypes
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch._C import _aoti

METADATA = "_metadata.json"
"""Suffixes of files that describe a library; any other JSON file lists calls back into PyTorch."""


class Library:
    """The compiled program of one package: a function of dense tensors, called by one thread at a time."""

    def __init__(self, package: Path) -> None:
        """Load the library in `package`.

        Raises:
            RuntimeError: if the file is not such a package, or needs what only PyTorch's own loader provides.
        """
        # A loaded library outlives its file, so nothing is left on disk however this process ends.
        with tempfile.TemporaryDirectory() as folder:
            self._library = ctypes.CDLL(str(_unpacked(package, Path(folder))))
        self._container = ctypes.c_void_p()
        self._call("CreateWithDevice", ctypes.byref(self._container), ctypes.c_size_t(1), b"cpu", None)
        # Not __del__: at exit, that may run after ctypes has been torn down.
        weakref.finalize(self, self._library.AOTInductorModelContainerDelete, self._container)
        outputs = ctypes.c_size_t()
        self._call("GetNumOutputs", self._container, ctypes.byref(outputs))
        self._outputs = outputs.value

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        """Run the program; its outputs are new tensors.

        Raises:
            RuntimeError: if the program reports an error.
        """
        # The handles own new references to the inputs, which the container takes over.
        given = [_pointer(capsule) for capsule in _aoti.unsafe_alloc_void_ptrs_from_tensors(list(tensors))]
        inputs, outputs = (ctypes.c_void_p * len(given))(*given), (ctypes.c_void_p * self._outputs)()
        sizes = ctypes.c_size_t(len(given)), ctypes.c_size_t(self._outputs)
        self._call("Run", self._container, inputs, sizes[0], outputs, sizes[1], None, None)
        capsules = [_capsule(outputs[place]) for place in range(self._outputs)]
        made: list[Tensor] = _aoti.alloc_tensors_by_stealing_from_void_ptrs(capsules)
        return made

    def _call(self, name: str, *arguments: object) -> None:
        if getattr(self._library, f"AOTInductorModelContainer{name}")(*arguments):
            raise RuntimeError(f"the compiled program gave up ({name}); see what it printed")


def _unpacked(package: Path, folder: Path) -> Path:
    """Extract the only library in `package` to `folder`."""
    try:
        with zipfile.ZipFile(package) as archive:
            names = archive.namelist()
            libraries = [name for name in names if name.endswith(".so")]
            calls = [name for name in names if name.endswith(".json") and not name.endswith(METADATA)]
            if len(libraries) != 1 or calls:
                raise RuntimeError(f"{len(libraries)} libraries and {len(calls)} lists of calls, not 1 and 0")
            return Path(archive.extract(libraries[0], folder))
    except (zipfile.BadZipFile, EOFError) as error:
        raise RuntimeError("it is not a package of AOTInductor") from error


def loaded_by_torch(package: Path) -> Callable[..., Sequence[Tensor]]:
    """Load a package for a GPU with PyTorch's own loader."""
    from torch._inductor import aoti_load_package

    compiled = aoti_load_package(str(package))

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        made = compiled(*tensors)
        return (made,) if isinstance(made, Tensor) else made

    return run


_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def _pointer(capsule: object) -> int:
    """The tensor handle in a PyCapsule of PyTorch."""
    return int(_get_pointer(capsule, None))


def _capsule(pointer: int | None) -> Any:
    """A PyCapsule around the tensor handle `pointer`."""
    return _new_capsule(pointer, None, None)
