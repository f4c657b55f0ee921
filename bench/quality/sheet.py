"""A contact sheet of a sprite model: every shape, colour and motion, and pairs, early and late.

    python -m bench.quality.sheet sprites -o docs/sheet.png

Held-out prompts are chosen in the order of a seed, each for a word that the ones before it do not show. A
row is one video; a picture that is not what the prompt says has a red frame and the questions that it fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
from torch import Tensor

from bench.harness.whole_numbers import WholeNumbers
from bench.quality.grades import grade_windows, held_out_prompts
from bench.quality.rollouts import BATCH, WINDOW, batches, open_denoiser, seen_rollouts
from plugins.atomic_files import atomic_write
from plugins.errors import UserError, missing_extra
from vmla.cli.command import OneLineCommand
from vmla.cli.progress import ProgressLine
from vmla.cli.terminal import say
from vmla.config import FRAMES_PER_SECOND
from vmla.weights.checkpoint import SHIPPED, open_checkpoint
from vmla.world.caption import read
from vmla.world.grader.grade import QUESTIONS
from vmla.world.scene import COLOURS, MOTIONS, SHAPES
from vmla.world.worlds import World

if TYPE_CHECKING:
    from PIL.Image import Image

CANDIDATES = 400
"""Held-out prompts that the sheet's are chosen from: enough to show every word."""
SCALE, MARGIN, LINE = 2, 8, 18
"""Enlargement of a pixel, pixels between pictures, and pixels of a line of text."""
PAPER, INK, WRONG = (250, 250, 248), (40, 40, 40), (205, 30, 40)


class Picture(NamedTuple):
    """The last frame before a mark, and the questions that the seconds before it fail."""

    frame: Tensor
    """The frame [3, H, W] uint8."""
    failed: tuple[str, ...]


def covering_prompts(world: World, *, seed: int, pairs: int) -> list[str]:
    """One object for every shape, colour and motion, in as few prompts as the order allows, then `pairs`."""
    missing, chosen = {*SHAPES, *COLOURS, *MOTIONS}, []
    for prompt in held_out_prompts(CANDIDATES, seed=seed, world=world, objects=1):
        (asked,) = read(prompt).requests
        if shown := missing & {asked.shape, asked.colour, asked.motion}:
            missing -= shown
            chosen.append(prompt)
    return chosen + held_out_prompts(pairs, seed=seed + 1, world=world, objects=2)


def failed_questions(prompt: str, second: int, frames: Tensor, world: World) -> tuple[str, ...]:
    """The questions that the window [n, 3, H, W] uint8 fails; motion is graded in whole windows only."""
    (graded,) = grade_windows([prompt], second, frames[None], world)
    asked = QUESTIONS if second * FRAMES_PER_SECOND >= WINDOW else [q for q in QUESTIONS if q != "motion"]
    return tuple(question for question in asked if not getattr(graded.grade, question))


def draw_sheet(rows: Sequence[tuple[str, Sequence[Picture]]], marks: Sequence[int]) -> Image:
    """Two videos beside each other: a picture for each mark, the prompt and the failed questions below."""
    try:
        from PIL import Image, ImageDraw
    except ModuleNotFoundError as error:
        raise missing_extra("pillow", "png") from error

    height, width = (SCALE * size for size in rows[0][1][0].frame.shape[1:])
    column = len(marks) * (width + MARGIN) + 2 * MARGIN
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    captions = [broken(prompt, column - 2 * MARGIN, pen.textlength) for prompt, _ in rows]
    deepest = max(map(len, captions))
    step = height + (deepest + 1) * LINE + MARGIN
    sheet = Image.new("RGB", (2 * column + MARGIN, -(-len(rows) // 2) * step + LINE + 2 * MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    for place in range(min(2, len(rows))):
        for number, mark in enumerate(marks):
            pen.text((MARGIN + place * column + number * (width + MARGIN), MARGIN), f"{mark} s", fill=INK)
    for index, (_, pictures) in enumerate(rows):
        left, top = MARGIN + index % 2 * column, MARGIN + LINE + index // 2 * step
        for number, picture in enumerate(pictures):
            x = left + number * (width + MARGIN)
            image = Image.fromarray(picture.frame.permute(1, 2, 0).numpy())
            sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (x, top))
            if picture.failed:
                pen.rectangle((x - 2, top - 2, x + width + 1, top + height + 1), outline=WRONG, width=2)
                pen.text((x, top + height + deepest * LINE), ", ".join(picture.failed), fill=WRONG)
        for number, words in enumerate(captions[index]):
            pen.text((left, top + height + 2 + number * LINE), words, fill=INK)
    return sheet


def broken(text: str, width: float, length: Callable[[str], float]) -> list[str]:
    """`text` in lines that are at most `width` long, as `length` measures them, or a single word."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and length(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def rows_in_order(
    prompts: Sequence[str], found: Iterable[tuple[int, int, Tensor]], world: World
) -> list[tuple[str, list[Picture]]]:
    """Rows of the sheet from (number of the prompt, second, window), whatever their order."""
    pictures: dict[int, dict[int, Picture]] = {}
    for number, second, frames in found:
        failed = failed_questions(prompts[number], second, frames, world)
        pictures.setdefault(number, {})[second] = Picture(frames[-1], failed)
    return [(prompts[number], [row for _, row in sorted(pictures[number].items())]) for number in pictures]


@click.command(cls=OneLineCommand)
@click.argument("checkpoint", default=SHIPPED)
@click.option("--engine", "folder", type=click.Path(path_type=Path), help="Engine folder (default: eager).")
@click.option(
    "--seconds",
    "marks",
    type=WholeNumbers(),
    default="1,60,179",
    show_default=True,
    help="Seconds to show, comma-separated.",
)
@click.option(
    "--pairs", default=12, show_default=True, type=click.IntRange(0), help="Prompts with two objects."
)
@click.option("--seed", default=3000, show_default=True, help="Seed of the prompts and of the first video.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False),
              help="PNG file to write.")  # fmt: skip
def main(
    checkpoint: str, folder: Path | None, marks: tuple[int, ...], pairs: int, seed: int, output: Path
) -> None:
    """Draw every shape, colour and motion, and pairs of objects, with failures marked."""
    opened = open_checkpoint(checkpoint)
    world = opened.world()
    if world is None:
        raise UserError(f"{opened.name} is of no world whose truth is known; give a sprite model")
    prompts = covering_prompts(world, seed=seed, pairs=pairs)
    engine, fixed = open_denoiser(opened, folder)
    found: list[tuple[int, int, Tensor]] = []
    with closing(engine), ProgressLine(sys.stderr) as line:
        for batch in batches(prompts, fixed or BATCH, seed=seed):
            for second, frames in seen_rollouts(engine, opened, batch, marks, fixed=fixed, line=line):
                found += [(batch.first + i, second, frames[i]) for i in range(len(batch.items))]
    rows = rows_in_order(prompts, found, world)
    with atomic_write(output) as temporary:
        draw_sheet(rows, marks).save(temporary, "png")
    wrong = sum(bool(picture.failed) for _, pictures in rows for picture in pictures)
    say(f"wrote {output}: {len(rows)} videos, {wrong} of {len(rows) * len(marks)} pictures wrong")


if __name__ == "__main__":
    main()
