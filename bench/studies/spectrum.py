"""How many directions the key and value weights use, layer by layer: effective rank at shares of energy.

    vmla-bench spectrum sprites

The effective rank r at a share t is the least k for which the k largest singular values hold t of the sum of
all squares. For `mha` the matrix is [W_K; W_V]; for `mla` it is the stacked up-projections [W_uK; W_uV], and
the operator composed of them and what comes before, [W_uK; W_uV] diag(g) W_dKV with g the latent's gain
(arXiv 2605.30351, its spectral analysis, which leaves the gain open). Several checkpoints, as of one
training, stand side by side.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, cast

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.harness.document import Record
from vmla.attention import HeadAttention, LatentAttention
from vmla.cli.command import OneLineCommand
from vmla.cli.terminal import say
from vmla.transformer import Block, VideoMLA
from vmla.weights.checkpoint import SHIPPED, open_checkpoint

SHARES = (0.90, 0.95, 0.99)
"""Shares of a matrix's energy (its squared singular values) whose ranks are reported."""


def effective_rank(singular: Tensor, share: float) -> int:
    """The least k with sum of the k largest squares >= `share` of all; `singular` descends."""
    energy = singular.double().square().cumsum(0)
    return int((energy < share * energy[-1]).sum()) + 1


def energy_kept(singular: Tensor, rank: int) -> float:
    """The share of the sum of squares that the `rank` largest hold."""
    energy = singular.double().square()
    return float(energy[:rank].sum() / energy.sum())


def singular_of_product(left: Tensor, right: Tensor) -> Tensor:
    """Singular values of left [m, r] right [r, n] without making it: those of a core [r, r]."""
    up, down = (torch.linalg.qr(x.double(), mode="r").R for x in (left, right.T))
    return torch.linalg.svdvals(up @ down.T)


def spectra(attention: HeadAttention | LatentAttention) -> dict[str, Tensor]:
    """Singular values, descending, of the matrices of one layer by name."""
    if isinstance(attention, HeadAttention):
        stacked = torch.cat([attention.to_k.weight, attention.to_v.weight])
        return {"stacked": torch.linalg.svdvals(stacked.double())}
    up = torch.cat([attention.up_k.weight, attention.up_v.weight])
    down = attention.norm_kv.weight[:, None] * attention.down_kv.weight
    return {"stacked": torch.linalg.svdvals(up.double()), "composed": singular_of_product(up, down)}


def layers(model: VideoMLA) -> list[dict[str, Any]]:
    """For each layer and matrix: its greatest possible rank, effective ranks, and singular values."""
    rows = []
    for number, block in enumerate(model.blocks):
        for name, singular in spectra(cast(Block, block).attn1).items():
            rows.append({
                "layer": number,
                "matrix": name,
                "full_rank": len(singular),
                "ranks": {f"{share:.2f}": effective_rank(singular, share) for share in SHARES},
                "energy_at_content_width": energy_kept(singular, model.config.kv_lora_rank),
                "singular_values": [float(f"{value:.6g}") for value in singular.tolist()],
            })  # fmt: skip
    return rows


def medians(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Over the layers, of each matrix's effective ranks."""
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["matrix"] for row in rows):
        own = [row["ranks"] for row in rows if row["matrix"] == name]
        found[name] = {share: statistics.median(ranks[share] for ranks in own) for share in own[0]}
    return found


@click.command("spectrum", cls=OneLineCommand)
@click.argument("checkpoints", nargs=-1)
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False),
              help="Results file to write (default: build/spectrum.json).")  # fmt: skip
def main(checkpoints: tuple[str, ...], output: Path | None) -> None:
    """Report the effective ranks of CHECKPOINTS' key and value weights (default: sprites)."""
    names = checkpoints or (SHIPPED,)
    opened = [open_checkpoint(name) for name in names]
    record, found = Record("spectrum", output), []
    for name, checkpoint in zip(names, opened, strict=True):
        config = checkpoint.model_config()
        rows = layers(checkpoint.transformer())
        found.append({
            "checkpoint": name,
            "layout": config.layout,
            "content_width": config.kv_lora_rank,
            "layers": rows,
            "medians": medians(rows),
        })  # fmt: skip
        record.save(checkpoints=found)
    for one in found:
        say(*show(one).split("\n"))
    record.finish(medians={one["checkpoint"]: one["medians"] for one in found})


def show(found: dict[str, Any]) -> str:
    """A row for each layer and matrix."""
    table = Table(title=f"{found['checkpoint']}, {found['layout']}: effective rank by share of energy")
    for heading in ("layer", "matrix", "full", *(f"{share:.0%}" for share in SHARES), "kept at C"):
        table.add_column(heading, justify="right")
    for row in found["layers"]:
        ranks = [str(rank) for rank in row["ranks"].values()]
        kept = f"{row['energy_at_content_width']:.3f}"
        table.add_row(str(row["layer"]), row["matrix"], str(row["full_rank"]), *ranks, kept)
    console = Console(width=100)
    with console.capture() as caught:
        console.print(table)
    return caught.get().rstrip()


if __name__ == "__main__":
    main()
