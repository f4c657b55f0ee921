"""`vmla-train inspect`: the contents of a file of weights, and a mapping of its latent attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from plugins.errors import UserError
from vmla.weights.formats.lazy_tensors import shape_of
from vmla.weights.formats.locate_files import weights_in
from vmla.weights.formats.open_file import OpenFile, open_file
from vmla.weights.formats.prefixes import names_of
from vmla.weights.inspection.patterns import kind_of, patterns_of
from vmla.weights.inspection.propose import Guess, Proposal, propose
from vmla.weights.published.families import refuse_two_experts

Say = Callable[[str], None]


def inspect_file(path: Path, part: str | None, guess: Guess, output: Path | None, say: Say) -> None:
    """List the tensors of `path` and say what they are; with `output`, write a mapping to it.

    Raises:
        UserError: for a file without tensors, or without latent attention to map.
    """
    refuse_two_experts(path)
    opened = _open(path, part)
    for pattern in patterns_of(opened.tensors):
        say(str(pattern))
    for name in opened.beside:
        say(f"beside the tensors: {name}")
    say(f"{path} is {kind_of(opened.tensors, path, part)}")
    if output is not None:
        _propose(path, opened, part, guess, output, say)


def _open(path: Path, part: str | None) -> OpenFile:
    if not path.is_dir():
        return open_file(path, part)
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    found = weights_in(folder)
    return open_file(found.path, part, found.files if found.path.suffix == ".json" else ())


def proposal_of(path: Path, part: str | None, guess: Guess) -> Proposal:
    """A mapping of the latent attention in `path`.

    Raises:
        UserError: if there is none.
    """
    return _proposal(path, _open(path, part), part, guess)


def _proposal(path: Path, opened: OpenFile, part: str | None, guess: Guess) -> Proposal:
    own = names_of(opened.tensors, path, part).own
    if "patch_embedding.weight" not in own:
        raise UserError(f"{path} is not a Wan transformer: there is no attention to map")
    shapes = {name: shape_of(opened.tensors, original) for name, original in own.items()}
    return propose(shapes, shapes["patch_embedding.weight"][0], guess, path)


def _propose(path: Path, opened: OpenFile, part: str | None, guess: Guess, output: Path, say: Say) -> None:
    if output.exists():
        raise UserError(f"{output} exists already; remove it or choose another file")
    proposal = _proposal(path, opened, part, guess)
    proposal.mapping.write(output)
    for remark in (*proposal.open, *proposal.remarks):
        say(remark)
    say(f"wrote {output}; look it over, then: vmla-train convert --from {path} --map {output} -o FOLDER")
