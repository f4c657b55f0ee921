"""The model card of a packed sprite model, written from its records and from measured results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plugins.atomic_files import atomic_write_text
from plugins.documents.typed import typed
from plugins.errors import UserError
from vmla.scheduler import Sampler
from vmla.train.publish.record import TRAINING, GradesRecord, Judged, TrainingRecord, read_checked
from vmla.world.worlds import FIRST

HEADER = """---
license: apache-2.0
pipeline_tag: text-to-video
library_name: videomla
---

# {name}

A VideoMLA model of {parameters:.1f} million parameters that makes 64x64 videos of moving shapes, as long
as you like: trained from nothing on the endless captioned world of `vmla.world`, to show the whole system
at work on two CPU cores. It knows nothing else. {entry} numbers are cached per token and layer, where
keys and values for each head would be {dense}.

```
vmla-run {option}--prompt "a red star bouncing on a navy background" --minutes 3 -o star.mp4
```

## What it can be asked for

One or two objects. Colours: {colours}. Shapes: {shapes}. Motions: {motions}. Backgrounds: {backgrounds}.
Sizes, which may be left out: {sizes}. {pairs}
It was trained on the world `{world}`; grades of models of different worlds say nothing about each other.

## How it was made

`vmla-train run {recipe} -o runs/{recipe}`, seed {seed}{then}: {hours} hours on {hardware}, shared with other
work, with torch {torch}; packed at commit `{commit}`. `{record}` beside this card holds every setting: the
recipe of that name may have moved on since.

| stage | steps | minutes | last loss |
|---|---|---|---|
{stages}

The codec learns to draw rendered clips{decoder}; the text encoder (UMT5, reading {units}) to say what a
caption asks for; the denoiser by chunk-causal teacher forcing with noise on its context{refine}.
{distilled}One (shape, colour, background) in eight is never rendered in training.

## Grades

{prompts} prompts of held-out combinations, fixed seeds, {sampled}: the
share of videos that a grader by formula passes, in the four seconds before each mark.
`{again}` repeats it. The grader itself is right
on {grader} of rendered scenes for its worst question
(`{judging}`).

{grades}
"""


ORDER = ("codec", "decoder", "text", "denoiser", "refine", "forcing", "consistency", "distribution", "long")
"""The order in which stages run, and in which the card describes them."""
THEN = ", then the stages of `docs/training.md`"
PAIRS = {
    True: "Two objects never touch; pairs that could not keep apart are not asked for.",
    False: "Two objects may hide each other.",
}
"""Whether a world's objects keep to few paths."""
DISTILLED = """The paper's stages follow: `forcing` goes on with that; `consistency` learns to do in one step
what the teacher, the model before them, does in many; in `distribution` the model rolls out videos of its
own, and the teacher and a critic that learns what the model makes say in which direction to move them.
"""


def write_card(folder: Path, grades: Path, grader: Path) -> None:
    """Write `README.md` into the checkpoint `folder` from its record and two results files.

    Raises:
        UserError: if a file is missing or damaged, or the grades are those of another checkpoint.
    """
    from vmla.weights.checkpoint import SHIPPED, open_checkpoint

    checkpoint = open_checkpoint(folder)
    config, training = checkpoint.model_config(), read_checked(folder / TRAINING, TrainingRecord)
    graded, judged = read_checked(grades, GradesRecord), read_checked(grader, Judged)
    world = checkpoint.world() or FIRST
    if graded["checkpoint"] != checkpoint.name:
        raise UserError(f"{grades} holds the grades of {graded['checkpoint']}, not of {checkpoint.name}")
    if (of := judged.get("world", FIRST.name)) != world.name:
        raise UserError(f"{grader} is of the world {of}, {checkpoint.name} of {world.name}")
    stages = training["stages"]
    text = HEADER.format(
        **_how(training),
        world=world.name,
        pairs=PAIRS[world.few_paths],
        sampled=_sampled(typed(graded["sampler"], Sampler, str(grades))),
        name=checkpoint.name,
        option="" if checkpoint.name == SHIPPED else f"--checkpoint {checkpoint.name} ",
        again=graded.get("command", f"vmla-bench grades --checkpoint {checkpoint.name}"),
        judging=f"vmla-bench grader --scenes {judged['scenes']} --world {world.name}",
        record=TRAINING,
        parameters=checkpoint.elements("transformer") / 1e6,
        entry=config.entry_width,
        dense=2 * config.inner_dim,
        **_words(),
        **{key: training[key] for key in ("recipe", "commit", "seed", "hours", "hardware", "torch")},
        stages="\n".join(_stage(name, stages[name]) for name in ORDER if name in stages),
        prompts=graded["prompts"],
        grader=f"{min(judged['accuracy'].values()):.1%}",
        grades="\n".join(_grades(graded)),
    )
    atomic_write_text(folder / "README.md", text)


def _how(training: dict[str, Any]) -> dict[str, str]:
    """The sentences that depend on the record's stages and text encoder."""
    stages = training["stages"]
    distilled = "distribution" in stages
    return {
        "then": THEN if distilled else "",
        "distilled": DISTILLED if distilled else "",
        "decoder": ", its decoder alone goes on in `decoder`" if "decoder" in stages else "",
        "refine": _refined(training) if "refine" in stages else "",
        "units": "words" if training["settings"]["text"].get("words") else "bytes",
    }


def _refined(training: dict[str, Any]) -> str:
    fresh = training["settings"].get("refinement_latents")
    return ", `refine` with less of it" if fresh is None else f", `refine` on {fresh['clips']:,} other clips"


def _sampled(sampler: Sampler) -> str:
    opening, usual = sampler.of_chunks
    if opening == usual:
        return f"{_steps(usual)} for each chunk{_passes(usual)}"
    first = f"{_steps(opening)} for the first chunk of a prompt{_passes(opening)}"
    return f"{first}, and {_steps(usual)} for each other chunk{_passes(usual)}"


def _steps(sampler: Sampler) -> str:
    return f"{sampler.steps} {sampler.kind} steps"


def _passes(sampler: Sampler) -> str:
    if sampler.guidance_scale == 1:
        return ""
    return f", each of two passes (classifier-free guidance {sampler.guidance_scale:g})"


def _grades(graded: dict[str, Any]) -> list[str]:
    """The table of all prompts, and one for each number of objects where they were told apart."""
    lines = grade_rows(graded["grades"])
    for name, group in graded.get("groups", {}).items():
        if name in ("one object", "two objects"):
            prompts = group["graded"] // len(group["grades"])
            lines += ["", f"With {name} ({prompts} prompts):", "", *grade_rows(group["grades"])]
    return lines


def _words() -> dict[str, str]:
    from vmla.world.scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES

    kinds: dict[str, Any] = {
        "colours": COLOURS, "shapes": SHAPES, "motions": MOTIONS, "backgrounds": BACKGROUNDS, "sizes": SIZES,
    }  # fmt: skip
    return {kind: ", ".join(words) for kind, words in kinds.items()}


def _stage(name: str, values: dict[str, Any]) -> str:
    return f"| {name} | {values['steps']:,} | {values['seconds'] / 60:.0f} | {values['loss']:.4f} |"


def grade_rows(table: dict[str, dict[str, float]]) -> list[str]:
    """Grades by second and question, as `bench.quality.grades` records them: lines of a Markdown table."""
    from vmla.world.grader.grade import QUESTIONS

    questions = [*QUESTIONS, "all"]
    rows = [
        f"| {second} s | " + " | ".join(f"{table[second][question]:.1%}" for question in questions) + " |"
        for second in sorted(table, key=int)
    ]
    return ["| after | " + " | ".join(questions) + " |", "|---|" + "---|" * len(questions), *rows]
