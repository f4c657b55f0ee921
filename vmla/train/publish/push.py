"""A checkpoint folder goes to the Hugging Face hub, with a model card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from plugins.errors import UserError
from vmla.weights.checkpoint import Checkpoint, open_checkpoint
from vmla.weights.locate import HUB_ID, Hub, refusals

CARD = "README.md"
PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
TEMPLATE = """---
pipeline_tag: text-to-video
library_name: videomla
---

# {name}

A streaming video model for VideoMLA: {parameters:,} parameters, attention layout `{layout}`,
{entry} numbers cached per token and layer. It makes pictures of {height} x {width}, {chunk} latent frames at
a time, over a window of {sink} sink frames and {history} more, in {steps} steps of `{kind}`.

```
vmla-run --checkpoint {repo} --prompt "{prompt}" --seconds 10 -o video.mp4
```
"""
PRESET = """
Converted from published weights and sampled as the preset `{name}` says ({source}). Their licence holds for
this folder too.
"""


def push(
    folder: Path, repo: str, report: Callable[[str], None], *, private: bool = False,
    revision: str | None = None, hub: Hub | None = None,
) -> str:  # fmt: skip
    """Upload the checkpoint `folder` to the repository `owner/name`, which is made if missing, in one commit.

    The folder's own `README.md` is the card; without one, a card is written from the checkpoint's
    configuration.

    Args:
        folder: of the checkpoint; must be whole.
        repo: of the hub.
        report: takes a line.
        private: whether a new repository is.
        revision: a branch; `main` if None.
        hub: whose endpoint is asked.

    Returns:
        The address of the commit.

    Raises:
        UserError: if the folder is not a complete checkpoint, or the hub refuses it.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    named = HUB_ID.fullmatch(repo)
    if named is None or named["repo"] != repo:
        raise UserError(f"{repo} is not a repository; give owner/name, and a branch with --revision")
    files = files_of(folder)
    operations = [CommitOperationAdd(name, path) for name, path in files.items()]
    if CARD not in files:
        operations.append(CommitOperationAdd(CARD, card_of(open_checkpoint(folder), repo).encode()))
    size = sum(path.stat().st_size for path in files.values())
    report(f"pushing {len(operations)} files, {size:,} bytes")
    api = HfApi(endpoint=None if hub is None else hub.endpoint)
    with refusals(repo, revision):
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(
            repo, operations, commit_message=f"Upload {folder.resolve().name}", revision=revision
        )
    return str(commit.commit_url)


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a checkpoint folder that are uploaded, by their names there; hidden files are not.

    Raises:
        UserError: if a part is missing.
    """
    checkpoint = open_checkpoint(folder)
    # Read, here and below, only so that a damaged folder is refused before anything is uploaded.
    checkpoint.model_config(), checkpoint.sampler()
    for part in PARTS:
        if not (folder / part).is_dir():
            raise UserError(f"{folder} has no folder {part}; only a whole checkpoint is pushed")
    for part in ("transformer", "vae", "text_encoder"):
        checkpoint.elements(part)
    top = [path for path in sorted(folder.iterdir()) if path.is_file()]
    within = [path for part in PARTS for path in sorted((folder / part).rglob("*")) if path.is_file()]
    names = {str(path.relative_to(folder)): path for path in (*top, *within)}
    return {name: path for name, path in names.items() if not any(p[0] == "." for p in Path(name).parts)}


def card_of(checkpoint: Checkpoint, repo: str) -> str:
    """A model card of what the folder says; of licence and training it says nothing."""
    config, sampler = checkpoint.model_config(), checkpoint.sampler()
    codec = checkpoint.codec(weights=False)
    world = checkpoint.world()
    text = TEMPLATE.format(
        name=repo.partition("/")[2], repo=repo, layout=config.layout, entry=config.entry_width,
        parameters=checkpoint.elements("transformer"), chunk=config.chunk, sink=config.sink,
        height=config.sample_height * codec.spatial_ratio, width=config.sample_width * codec.spatial_ratio,
        history=config.history, steps=sampler.steps, kind=sampler.kind,
        prompt="a red star" if world is None else "a red star bouncing on a navy background",
    )  # fmt: skip
    preset = checkpoint.preset()
    return text if preset is None else text + PRESET.format(name=preset.name, source=preset.source)
