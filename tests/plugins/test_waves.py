"""The kernel of the last queries compiles for every architecture, with any splits, and spills no register."""

import pytest

from plugins.aot.compile import _assembler
from plugins.aot.ptx import assemble
from plugins.aot.variants import PTX_ISA
from plugins.triton.split_kv import TIMED
from plugins.triton.tiles import FAMILIES, LOG2_E, SHARED_MEMORY, tile

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.cpu

HEADS, WIDTH = 12, 128


@pytest.mark.parametrize("splits", TIMED)
@pytest.mark.parametrize("arch", FAMILIES)
def test_it_fits_into_registers_and_shared_memory(arch, splits):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from plugins.triton.attention import attention_strided as kernel

    size = tile("mla_attention", capability=arch)
    pointers = dict.fromkeys(("query", "keys", "values"), "*bf16") | {
        "out": "*bf16" if splits == 1 else "*fp32"
    }
    constants = {
        "QUERY": HEADS * WIDTH, "KEY": 2 * HEADS * WIDTH, "VALUE": 2 * HEADS * WIDTH, "D": WIDTH, "DV": WIDTH,
        "SCALE": WIDTH**-0.5 * LOG2_E, "BLOCK_Q": size.rows, "BLOCK_K": size.columns, "SPLITS": splits,
    }  # fmt: skip
    (constants if splits == 1 else pointers)["lse"] = None if splits == 1 else "*fp32"
    names = kernel.arg_names
    aligned = [n for n in names if n in pointers or n.endswith(("_batch", "_head"))]
    source = ASTSource(
        fn=kernel,
        signature={n: pointers.get(n, "constexpr" if n in constants else "i32") for n in names},
        constexprs=constants,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {
        "num_warps": size.num_warps, "num_stages": size.num_stages, "ptx_version": PTX_ISA,
        "enable_fp_fusion": True,
    }  # fmt: skip
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    assert assemble(built.asm["ptx"], _assembler(arch)).spills == 0
    assert built.metadata.shared <= SHARED_MEMORY[arch]
