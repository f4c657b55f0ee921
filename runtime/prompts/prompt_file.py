"""A file of prompts, one a line: YAML, or JSON lines if its name ends in .jsonl.

In YAML each line is `KEY: PROMPT` or `KEY: {prompt: PROMPT, ...}`; a JSON line, or an item of a YAML
list, is the same as one object. The reader decides the key's name, and which other fields there are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from plugins.documents.json_file import read_json_lines
from plugins.documents.typed import typed
from plugins.documents.yaml_file import read_yaml
from plugins.errors import UserError

T = TypeVar("T")


def read_listing(path: Path, kind: type[T], *, key: str, example: str) -> list[T]:
    """Read the lines of the file at `path`, in their order.

    Args:
        path: of the file.
        kind: the dataclass of one line.
        key: the field of an object that stands before the colon in YAML.
        example: a line, for the error of an empty file.

    Raises:
        UserError: if there is no such file, it is empty, or a line is not a valid entry.
    """
    mend = f"write one a line, for example: {example}"
    if path.suffix == ".jsonl":
        values = list(read_json_lines(path))
    else:
        lines = _from_yaml(path, key, mend)
        values = [(f"{path}, entry {number}", line) for number, line in enumerate(lines, 1)]
    if not values:
        raise UserError(f"{path} holds no prompt; {mend}")
    return [typed(value, kind, where) for where, value in values]


def _from_yaml(path: Path, key: str, mend: str) -> list[Any]:
    """The items of a list in a YAML file, or the pairs of a mapping, in their order."""
    value = read_yaml(path)
    if isinstance(value, dict):
        return [_object(path, key, before, said) for before, said in value.items()]
    if value is not None and not isinstance(value, list):
        raise UserError(f"{path} holds no list of prompts; {mend}")
    return value or []


def _object(path: Path, key: str, before: Any, said: Any) -> dict[str, Any]:
    """A line of YAML as the object that a JSON line would hold."""
    if not isinstance(said, dict):
        said = {"prompt": said}
    if key in said:
        raise UserError(f"{path} says {key} twice, as {before!r} and as {said[key]!r}; leave one out")
    return {key: before, **said}
