"""Values of a document as a dataclass, checked field by field by pydantic.

pydantic is imported where a document is read, and not before: it takes a sixth of a second (LOG.md).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar, cast

from plugins.documents.json_file import field, shown
from plugins.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Between:
    """Bounds of a number in a document: `Annotated[int, Between(1, 16)]`."""

    least: float
    most: float

    def __get_pydantic_core_schema__(self, kind: Any, handler: Any) -> Any:
        """The schema of the number, with its bounds."""
        return {**handler(kind), "ge": self.least, "le": self.most}


def typed(
    values: Any, kind: type[T], where: str, *, others: Literal["forbid", "ignore"] = "forbid", mend: str = ""
) -> T:
    """Convert `values` from JSON or YAML to the type `kind`, checking every field.

    Args:
        values: plain values; lists become tuples, objects become dataclasses, where the type has them.
        kind: a dataclass, or a list or dictionary of such; a number is never taken for text or true.
        where: the name of the values' source in errors, such as the file's name.
        others: whether keys that `kind` does not have are refused or left out.
        mend: the error's advice.

    Raises:
        UserError: naming the field, its value and the type expected.
    """
    from pydantic import ValidationError

    try:
        # Of JSON, strict types are those that JSON can say: a list for a tuple, an object for a dataclass.
        document: Any = _model(cast(Any, kind), others).model_validate_json(json.dumps({"value": values}))
    except ValidationError as error:
        raise UserError(f"{where}: {_said(error.errors(include_url=False))}{mend and f'; {mend}'}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}{mend and f'; {mend}'}") from error
    made: T = document.value
    return made


@lru_cache(maxsize=64)
def _model(kind: Any, others: Literal["forbid", "ignore"]) -> Any:
    """Pydantic's adapter of a type; settings of a model hold for the dataclasses within it."""
    from pydantic import ConfigDict, create_model

    settings = ConfigDict(extra=others, strict=True, allow_inf_nan=False)
    return create_model("Document", __config__=settings, value=(kind, ...))


def _said(errors: Any) -> str:
    """The first of pydantic's complaints as a sentence, and how many there are beside it.

    A key that is unknown comes first: it often is one that is missing, misspelt.
    """
    unknown = ("extra_forbidden", "unexpected_keyword_argument")
    first = next((error for error in errors if error["type"] in unknown), errors[0])
    name = field(first["loc"][1:]) or "the value"
    more = f" (and {len(errors) - 1} others)" if len(errors) > 1 else ""
    if first["type"] in unknown:
        return f"field {name} is unknown{more}"
    if first["type"] in ("missing", "missing_keyword_only_argument", "missing_argument"):
        return f"field {name} is missing{more}"
    said = first["msg"][0].lower() + first["msg"][1:]
    return f"field {name} is {shown(repr(first['input']))}; {said}{more}"
