"""Kernels compiled ahead of time: nothing spills, nothing asks for what a plugin cannot pass."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import plugins
from plugins.aot import compile as aot
from plugins.aot.objects import Compiled, cdiv, evaluate, faults, launch, load, ptx_of
from plugins.aot.ptx import UnfitKernelError, rename, truncate_parameters
from plugins.aot.variants import KernelVariant, launch_config, variants
from plugins.errors import UserError
from plugins.triton.tiles import COMPACT_MEMORY, FAMILIES

pytestmark = pytest.mark.cpu

RECORD = json.loads((Path(plugins.__file__).parent / "objects.json").read_text())
OBJECTS = {values["name"]: Compiled(**values) for values in RECORD["objects"]}
PUBLISHED = {"B": 1, "N": 12, "S": 4680, "K": 10920, "T": 6240, "O": 4680}

PTX = """.version 8.7
.target sm_90a
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u32 kernel_param_1,
	.param .u64 .ptr .global .align 1 kernel_param_2
)
{
	ld.param.b64 %rd1, [kernel_param_0];
	ld.param.b32 %r1, [kernel_param_1];
	ret;
}
"""


def test_the_record_is_that_of_these_sources():
    """Otherwise: python -m plugins.aot.compile --record plugins/objects.json"""
    assert RECORD["versions"]["sources"] == aot.fingerprint()
    assert set(OBJECTS) == {variant.name for arch in FAMILIES for variant in variants(arch)}


@pytest.mark.parametrize("name", OBJECTS)
def test_recorded_kernels_are_fit_to_ship(name):
    assert faults(OBJECTS[name]) == []


def test_every_kernel_has_a_variant_that_needs_no_extra_shared_memory():
    fits = {(k.operator, k.dtype, k.arch) for k in OBJECTS.values() if k.shared <= COMPACT_MEMORY}
    assert fits == {(k.operator, k.dtype, k.arch) for k in OBJECTS.values()}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"spills": 8}, "8 bytes of registers spill"),
        ({"scratch": 128}, "128 bytes of scratch memory"),
        ({"clusters": 2}, "clusters of 2 blocks"),
        ({"cooperative": True}, "a cooperative launch"),
        ({"shared": 300_000}, "300000 bytes of shared memory"),
    ],
)
def test_faults_are_found(change, fault):
    good = next(kernel for kernel in OBJECTS.values() if kernel.size == "fast")
    assert faults(replace(good, **change)) == [fault]


def test_pointers_and_numbers_are_all_that_is_passed():
    """No tensor descriptors, no floats: TensorRT passes pointers and 32-bit integers."""
    for arch in FAMILIES:
        for variant in variants(arch):
            how = launch_config(variant)
            kinds = set(how.inputs.values()) | set(how.outputs.values())
            assert kinds <= {"*bf16", "*fp16", "*fp8e4nv", "*fp32", "*i1"}
            assert all(isinstance(evaluate(s, PUBLISHED, cdiv), int) for s in how.scalars.values())


def test_launches_at_the_published_shape():
    kernels = {(k.operator, k.size): k for k in OBJECTS.values() if k.arch == 90 and k.dtype == "bf16"}
    assert launch(kernels["mla_attention", "compact"], PUBLISHED) == ((74, 12, 1), [4680, 10920, 12])
    assert launch(kernels["mla_attention_absorbed", "compact"], PUBLISHED) == (
        (878, 1, 1),
        [56160, 4680, 6240, 4680],
    )
    assert launch(kernels["expand", "compact"], PUBLISHED) == ((98 + 74, 12, 1), [6240, 4680])
    with pytest.raises(UserError, match="too large"):
        launch(kernels["mla_attention", "compact"], PUBLISHED | {"B": 6000})


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_kernel_compiles_as_recorded(arch):
    variant = KernelVariant(operator="mla_attention", dtype="bf16", size="compact", arch=arch)
    kernel, ptx, cubin = aot.compile_variant(variant)
    how, recorded = launch_config(variant), OBJECTS[variant.name]
    assert ptx.count(".visible .entry") == 1
    assert ptx.count(f".param .u64 .ptr .global .align 1 {variant.name}_param_") == len(how.inputs) + 1
    assert cubin[:4] == b"\x7fELF"
    same = {"registers": recorded.registers, "ptx_sha256": recorded.ptx_sha256, "shared": recorded.shared}
    assert replace(kernel, **same) == recorded


def test_the_command_writes_kernels_that_load(tmp_path, monkeypatch):
    chosen = KernelVariant(operator="expand", dtype="bf16", size="compact", arch=90)
    monkeypatch.setattr(aot, "variants", lambda arch: [chosen])
    folder = tmp_path / "objects"
    done = CliRunner().invoke(aot.main, ["-o", str(folder), "--arch", "90"], catch_exceptions=False)
    assert done.output.endswith(f"1 kernels in {folder}\n")
    [kernel] = load(folder)
    assert hashlib.sha256(ptx_of(folder, kernel)).hexdigest() == kernel.ptx_sha256
    (folder / f"{kernel.name}.ptx").write_text("changed")
    with pytest.raises(UserError, match="does not fit its record"):
        ptx_of(folder, kernel)
    with pytest.raises(UserError, match="make them with"):
        load(tmp_path)


def test_spare_parameters_go_and_the_entry_is_renamed():
    kept = rename(truncate_parameters(PTX, "kernel", 2), "kernel", "other")
    assert ".visible .entry other(" in kept
    assert "other_param_1\n)" in kept and "param_2" not in kept and "kernel" not in kept
    with pytest.raises(UnfitKernelError, match="uses kernel_param_1"):
        truncate_parameters(PTX, "kernel", 1)
    with pytest.raises(UnfitKernelError, match="no entry absent"):
        truncate_parameters(PTX, "absent", 1)


def test_the_scale_that_is_compiled_in_is_the_operator_s():
    how = launch_config(KernelVariant(operator="mla_attention_absorbed", dtype="bf16", size="fast", arch=90))
    assert how.constants["SCALE"] == pytest.approx(128**-0.5 / float(torch.tensor(2.0).log()))
