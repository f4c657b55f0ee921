"""A file of prompts, one a line: YAML, or JSON lines if its name ends in .jsonl.

In YAML each line is `KEY: PROMPT` or `KEY: {prompt: PROMPT, ...}`; a JSON line, or an item of a YAML
list, is the same as one object. What the key is called, and what else may stand there, is up to the reader.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plugins.errors import UserError


def read_listing(path: Path, *, key: str, example: str) -> list[Any]:
    """What the lines of the file at `path` say, in their order: objects, if all is well.

    Args:
        path: of the file.
        key: what an object calls that which stands before the colon in YAML.
        example: of a line, for who wrote none.

    Raises:
        UserError: if there is no such file, or none with any line in it.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompts in {path}: {error}") from error
    mend = f"write one a line, for example: {example}"
    values = _from_json_lines(text, path) if path.suffix == ".jsonl" else _from_yaml(text, path, key, mend)
    if not values:
        raise UserError(f"{path} holds no prompt; {mend}")
    return values


def _from_json_lines(text: str, path: Path) -> list[Any]:
    values = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number} is not valid JSON: {error}") from error
    return values


def _from_yaml(text: str, path: Path, key: str, mend: str) -> list[Any]:
    """A list as it is; of a mapping each pair in its order, also doubles, which YAML would drop."""
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            value = None if node is None else loader.construct_document(node)
        else:
            value = [
                _object(path, key, *(loader.construct_object(part, deep=True) for part in (before, said)))
                for before, said in node.value
            ]
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {reason}") from error
    finally:
        loader.dispose()
    if value is not None and not isinstance(value, list):
        raise UserError(f"{path} holds no list of prompts; {mend}")
    return value or []


def _object(path: Path, key: str, before: Any, said: Any) -> dict[str, Any]:
    """What a line of YAML says, as a JSON line would."""
    if not isinstance(said, dict):
        said = {"prompt": said}
    if key in said:
        raise UserError(f"{path} says {key} twice, as {before!r} and as {said[key]!r}; leave one out")
    return {key: before, **said}
