"""AOTInductor's packages by their C interface: PyTorch's own results, and Python's lock let go."""

import operator
import sys
import threading
import time
import zipfile

import pytest
import torch
from torch._inductor import aoti_load_package, config

from export.backends.aoti import OPTIONS
from export.engine.manifest import Manifest
from export.loading.aoti_library import Library
from plugins.errors import UserError
from runtime.engines.programs import load_programs

pytestmark = pytest.mark.cpu


def inputs_of(folder):
    """Random ones, but for the indices of a full window."""
    made = []
    for spec in Manifest.read(folder).programs["step"].inputs:
        dtype = getattr(torch, spec.dtype)
        count = int(torch.Size(spec.shape).numel())
        made.append(torch.randn(spec.shape, dtype=dtype) if dtype.is_floating_point
                    else torch.arange(count, dtype=dtype).reshape(spec.shape))  # fmt: skip
    return made


@pytest.mark.parametrize("device", OPTIONS)
def test_every_option_is_one_that_inductor_has(device):
    for name, value in OPTIONS[device].items():
        assert type(operator.attrgetter(name)(config)) is type(value)


def test_it_gives_what_pytorch_s_own_loader_gives(aoti_engine):
    inputs, package = inputs_of(aoti_engine), aoti_engine / "step.pt2"
    copies = [tensor.clone() for tensor in inputs]
    wanted, library = aoti_load_package(str(package))(*inputs), Library(package)
    for _ in range(3):
        made = library(*inputs)
        assert [torch.equal(a, b) for a, b in zip(made, wanted, strict=True)] == [True, True]
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


def test_outputs_live_on_after_the_library(aoti_engine):
    inputs = inputs_of(aoti_engine)
    library = Library(aoti_engine / "step.pt2")
    velocity, entries = library(*inputs)
    copies = velocity.clone(), entries.clone()
    del library
    torch.randn(1_000_000)
    assert torch.equal(velocity, copies[0]) and torch.equal(entries, copies[1])


def test_another_thread_runs_while_it_runs(aoti_engine):
    inputs, library = inputs_of(aoti_engine), Library(aoti_engine / "step.pt2")
    counted, over = [0], threading.Event()

    def count():
        while not over.is_set():
            counted[0] += 1
            time.sleep(0)

    other, interval = threading.Thread(target=count), sys.getswitchinterval()
    sys.setswitchinterval(1000)  # a thread goes on until it lets go of the lock by itself
    try:
        other.start()
        time.sleep(0.01)
        before = counted[0]
        while counted[0] == before:
            assert library(*inputs)  # would go on for ever
    finally:
        over.set()
        sys.setswitchinterval(interval)
        other.join()
    assert counted[0] > before


@pytest.mark.parametrize("content", ["nothing", "another", "calls"])
def test_what_is_no_such_package_is_refused(tmp_path, content):
    package = tmp_path / "step.pt2"
    if content == "nothing":
        package.write_bytes(b"abacus")
    else:
        with zipfile.ZipFile(package, "w") as archive:
            archive.writestr("step/model/a.wrapper.cpp", "")
            if content == "calls":
                archive.writestr("step/model/a.wrapper.so", "")
                archive.writestr("step/model/a.wrapper.json", "{}")
    with pytest.raises(RuntimeError, match="not a package|0 libraries|1 lists of calls"):
        Library(package)


def test_a_library_that_does_not_load_is_one_line(aoti_engine, monkeypatch):
    def broken(path):
        raise OSError("invalid ELF header")

    monkeypatch.setattr("export.loading.aoti_library.ctypes.CDLL", broken)
    with pytest.raises(UserError, match=r"step does not load \(invalid ELF header\); run: vmla-export build"):
        load_programs(aoti_engine, Manifest.read(aoti_engine))
