"""Compiles the kernels ahead of time, for any architecture on any machine: `python -m plugins.aot.compile`.

Triton compiles for a named target without a GPU. The result is checked against what a launcher outside Triton
can do, and a kernel that fails a check is an error, not a warning.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import click

from plugins.aot.objects import Compiled, faults, save, save_record
from plugins.aot.ptx import UnfitKernelError, assemble, rename, truncate_parameters, version
from plugins.aot.variants import KernelVariant, LaunchConfig, compile_options, launch_config, variants
from plugins.errors import UserError, missing_extra
from plugins.triton.tiles import FAMILIES, Family


def compile_variant(variant: KernelVariant) -> tuple[Compiled, str, bytes]:
    """Compile a kernel to its record, PTX and machine code.

    Raises:
        UserError: if Triton is missing, or the kernel cannot be launched from outside or spills registers.
    """
    how = launch_config(variant)
    built = _triton(variant, how)
    try:
        original = built.metadata.name
        count = len(how.inputs) + len(how.scalars) + len(how.outputs)
        ptx = truncate_parameters(built.asm["ptx"], original, count)
        ptx = rename(ptx, original, variant.name)
        assembly = assemble(ptx, _assembler(variant.arch))
    except UnfitKernelError as error:
        raise UserError(f"{variant.name}: {error}") from error
    meta = built.metadata
    record = Compiled(
        name=variant.name,
        operator=variant.operator,
        dtype=variant.dtype,
        size=variant.size,
        arch=variant.arch,
        widths=how.fixed,
        inputs=list(how.inputs),
        scalars=list(how.scalars.values()),
        outputs=list(how.outputs),
        grid=how.grid,
        warps=meta.num_warps,
        shared=meta.shared,
        registers=assembly.registers,
        spills=assembly.spills,
        scratch=meta.global_scratch_size + meta.profile_scratch_size,
        clusters=meta.num_ctas,
        cooperative=bool(meta.launch_cooperative_grid),
        tensor_memory=meta.tmem_size,
        ptx_version=version(ptx),
        ptx_sha256=hashlib.sha256(ptx.encode()).hexdigest(),
    )
    if found := faults(record):
        raise UserError(f"{variant.name} cannot be shipped: {', '.join(found)}")
    return record, ptx, assembly.cubin


NAMES = ("attention", "absorbed", "expand", "softmax", "tiles")


def fingerprint() -> str:
    """A hash of the sources of all kernels; with Triton's version it determines what they compile to."""
    here = Path(__file__).parents[1]
    kernels = [here / "triton" / f"{name}.py" for name in NAMES]
    sources = [path.read_bytes() for path in [*kernels, here / "aot" / "variants.py"]]
    return hashlib.sha256(b"".join(sources)).hexdigest()


def _triton(variant: KernelVariant, how: LaunchConfig) -> Any:
    """Compile with Triton for the variant's target."""
    try:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
    except ImportError as error:
        raise missing_extra("triton", "gpu") from error
    kernel = _kernel(variant)
    runtime = how.inputs | dict.fromkeys(how.scalars, "i32") | how.outputs
    names = kernel.arg_names
    # Arguments that a variant does not use (scales, log-sums) are compile-time constants: None.
    source = ASTSource(
        fn=kernel,
        signature={name: runtime.get(name, "constexpr") for name in names},
        constexprs={name: how.constants.get(name) for name in names if name not in runtime},
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(names)
            if runtime.get(name, "").startswith("*")
        },
    )
    with triton.knobs.compilation.scope():
        # Without line information the PTX does not depend on the path of the sources.
        triton.knobs.compilation.disable_line_info = True
        target, given = GPUTarget("cuda", variant.arch, 32), compile_options(variant)
        return triton.compile(source, target=target, options=given)


def _kernel(variant: KernelVariant) -> Any:
    from plugins.triton.absorbed import absorbed
    from plugins.triton.attention import attention
    from plugins.triton.expand import expand

    kernels = {"expand": expand, "mla_attention": attention, "mla_attention_absorbed": absorbed}
    return kernels[variant.operator]


def _assembler(arch: Family) -> Path:
    """The assembler that Triton ships for `arch`; Blackwell has one of its own."""
    from triton.backends import nvidia

    folder = Path(nvidia.__file__).parent / "bin"
    return folder / ("ptxas-blackwell" if arch >= 100 else "ptxas")


@click.command()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("build/objects"), show_default=True
)
@click.option("--arch", type=click.Choice([str(a) for a in FAMILIES]), multiple=True, help="Default: all.")
@click.option("--record", type=click.Path(path_type=Path), help="Also write the record alone to this file.")
def main(output: Path, arch: tuple[str, ...], record: Path | None) -> None:
    """Compile every kernel for the chosen architectures into a folder, with a record of the objects."""
    import triton

    kernels = []
    for family in [each for each in FAMILIES if not arch or str(each) in arch]:
        for variant in variants(family):
            kernel, ptx, cubin = compile_variant(variant)
            kernels.append((kernel, ptx, cubin))
            click.echo(f"{kernel.name}: {kernel.registers} registers, {kernel.shared} bytes shared")
    versions = {"triton": triton.__version__, "sources": fingerprint()}
    save(output, kernels, versions)
    if record is not None:
        save_record(record, [kernel for kernel, _, _ in kernels], versions)
    click.echo(f"{len(kernels)} kernels in {output}")


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
