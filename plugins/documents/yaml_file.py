"""YAML as far as people write it by hand: lists, mappings and plain values, in time linear in their number.

Built from the parser's events, of which it needs no recursion. Anchors, aliases and tags are refused: none
of our files has them, and each can make much or something odd of little. A date is read as text.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from plugins.documents.json_file import DEEPEST, refuse_odd, shown
from plugins.documents.regular_file import read_text
from plugins.errors import UserError

LONGEST_NUMBER = 40
"""Characters of a number at most; converting a longer one takes quadratic time, and nobody means it."""
NUMBER = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_NO_KEY = object()


def read_yaml(path: Path, *, mend: str = "") -> Any:
    """The value in a YAML file, None if it is empty.

    Args:
        path: of the file.
        mend: the error's advice if it is missing.

    Raises:
        UserError: if it is missing, or holds something else than lists, mappings and plain values.
    """
    import yaml

    text = read_text(path, mend=mend)
    try:
        events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        value = _Tree(yaml).grown(events)
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{path} is not valid YAML: {_said(error)}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}") from error
    refuse_odd(value, str(path))
    return value


def _said(error: Any) -> str:
    """Problem and line of a parser's complaint, in one line."""
    line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
    return " ".join(f"{error.problem or error.context}{line}".split())


class _Tree:
    """Values that grow with events."""

    def __init__(self, yaml: Any) -> None:
        """Begin without a document; `yaml` is PyYAML's module, imported only where a file is read."""
        self._yaml, self._plain = yaml, yaml.constructor.SafeConstructor()
        self._open: list[list[Any]] = []
        """Containers that are not complete, outermost first, each with the key that waits for its value."""
        self._documents: list[Any] = []

    def grown(self, events: Iterable[Any]) -> Any:
        """The value of the one document that `events` describe.

        Raises:
            ValueError: for an alias, a tag, a double key, too deep a value, or more than one document.
        """
        for event in events:
            line = event.start_mark.line + 1
            if getattr(event, "anchor", None) is not None:
                raise ValueError(f"line {line} has an anchor or alias, which is not read here")
            if getattr(event, "tag", None) is not None:
                raise ValueError(f"line {line} has the tag {shown(event.tag)}, which is not read here")
            self._take(event, line)
        if len(self._documents) > 1:
            raise ValueError("it holds more than one document")
        return self._documents[0] if self._documents else None

    def _take(self, event: Any, line: int) -> None:
        events = self._yaml.events
        if isinstance(event, events.CollectionStartEvent):
            self._open.append([[] if isinstance(event, events.SequenceStartEvent) else {}, _NO_KEY])
            if len(self._open) > DEEPEST:
                raise ValueError(f"line {line} is nested more than {DEEPEST} deep")
        elif isinstance(event, events.CollectionEndEvent):
            self._put(self._open.pop()[0], line)
        elif isinstance(event, events.ScalarEvent):
            self._put(self._scalar(event, line), line)

    def _put(self, value: Any, line: int) -> None:
        """Put a complete value where it belongs."""
        if not self._open:
            self._documents.append(value)
            return
        container, key = self._open[-1]
        if isinstance(container, list):
            container.append(value)
        elif key is not _NO_KEY:
            container[key] = value
            self._open[-1][1] = _NO_KEY
        elif isinstance(value, dict | list):
            raise ValueError(f"line {line} has a list or a mapping for a key")
        elif value in container:
            raise ValueError(f"line {line}: the key {shown(value)} stands there twice")
        else:
            self._open[-1][1] = value

    def _scalar(self, event: Any, line: int) -> Any:
        """A plain word may be a number, true, false or null; whatever else there is, is text."""
        text: str = event.value
        if not event.implicit[0]:
            return text
        resolvers = self._yaml.SafeLoader.yaml_implicit_resolvers.get(text[:1], [])
        tag = next((tag for tag, pattern in resolvers if pattern.match(text)), None)
        if tag in NUMBER and len(text) > LONGEST_NUMBER:
            raise ValueError(f"line {line} has a number of {len(text)} characters")
        made = {
            "tag:yaml.org,2002:null": lambda node: None,
            "tag:yaml.org,2002:bool": self._plain.construct_yaml_bool,
            "tag:yaml.org,2002:int": self._plain.construct_yaml_int,
            "tag:yaml.org,2002:float": self._plain.construct_yaml_float,
        }.get(tag or "")
        return text if made is None else made(self._yaml.ScalarNode(tag, text))
