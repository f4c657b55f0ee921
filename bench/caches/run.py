"""One prompt, seed and window with a cache per head, a latent one, and latent ones of 16, 8 and 4 bits.

    vmla-bench caches --checkpoint sprites --seconds 60

All use the same weights in float32 on a CPU and differ only in what they cache of each token. Their videos
are made side by side, a chunk of each in turns. The error is that of one chunk after the same past. The
distance between two whole videos says little about quality, because small differences grow; drift and grades
measure that.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bench.caches.videos import errors, open_videos, rows, side_by_side
from bench.harness.document import Record
from bench.harness.subject import PROMPT, filling
from bench.report.sections.caches import caches_section
from plugins.errors import UserError
from vmla.cli.command import OneLineCommand
from vmla.cli.progress import ProgressLine
from vmla.cli.terminal import say
from vmla.config import FRAMES_PER_SECOND
from vmla.weights.checkpoint import SHIPPED, open_checkpoint


@click.command("caches", cls=OneLineCommand)
@click.option("--checkpoint", default=SHIPPED, show_default=True, help="Checkpoint folder or shipped model.")
@click.option("--prompt", default=PROMPT, show_default=True, help="What the videos show.")
@click.option("--seed", default=0, show_default=True, help="Seed of the videos.")
@click.option("--seconds", type=click.IntRange(min=1), default=60, show_default=True,
              help="Length of each video.")  # fmt: skip
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False),
              help="Results file to write (default: build/caches.json).")  # fmt: skip
def main(checkpoint: str, prompt: str, seed: int, seconds: int, output: Path | None) -> None:
    """Compare caches of one model: per head, latent, latent in 16, 8 and 4 bits."""
    opened = open_checkpoint(checkpoint)
    config = opened.model_config()
    if config.layout != "mla":
        raise UserError(f"{checkpoint} caches keys and values per head and has no latents; name another")
    record = Record("caches", output)
    record.save(
        checkpoint=opened.name, prompt=prompt, seed=seed, seconds=seconds,
        window={"sink": config.sink, "history": config.history, "chunk": config.chunk},
    )  # fmt: skip
    with ProgressLine(sys.stderr) as line:
        line.show("caches: the error of one chunk")
        wrong = errors(opened, prompt, seed)
        videos = open_videos(opened, prompt, seed)
        # Enough for two rounds of full windows, however short the videos are.
        chunks = max(videos[0].engine.cache_spec.chunks.count(seconds * FRAMES_PER_SECOND // 4),
                     filling(config) + 5)  # fmt: skip
        for number in side_by_side(videos, chunks):
            line.show(f"caches: chunk {number} of {chunks}")
    record.save(rows=rows(videos, wrong))
    for table in caches_section(record.document).tables:
        say(table.title, *table.markdown())
    record.finish(**{
        row["cache"]: {name: row[name] for name in ("bytes_per_token_and_layer", "error", "time_over_latent")}
        for row in record.document["rows"]
    })  # fmt: skip


if __name__ == "__main__":
    main()
