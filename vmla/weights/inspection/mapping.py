"""Which rows of which tensor of a file are which matrix of our latent attention: YAML, to be edited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from plugins.atomic_files import atomic_write_text
from plugins.errors import UserError

TARGETS = (
    "down_kv.weight", "norm_kv.weight", "up_k.weight", "up_v.weight", "rotary_k.weight", "down_q.weight",
    "norm_q.weight", "up_q.weight", "rotary_q.weight", "to_out.weight", "to_out.bias",
)  # fmt: skip
"""The tensors of our latent attention."""
PAIRS = ("interleaved", "halved")
"""Which two rows rotate together: neighbours, as Wan's and ours, or those half a width apart."""
HEADER = """\
# How the latent attention of a file becomes ours, proposed from names and shapes. Mend it, then:
#   vmla-train convert --from FILE --map THIS -o FOLDER
#
# attention: what stands before the names of self-attention; {layer} is its number.
# parts: for each of our tensors the one of the file that it is cut from.
#   rows [from, to): of the whole tensor, or with per_head of each head's rows; all rows if not given.
#   pairs: which rows of a rotary part turn together, interleaved (neighbours) or halved (half a width apart).
#   transposed: the file has inputs in rows. tensor null: zeros.
# ignore: tensors of attention that are left out on purpose. What is neither used nor ignored is refused.
"""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Rows of a tensor."""

    tensor: str | None
    """Its name behind `Mapping.attention`, None for zeros."""
    rows: tuple[int, int] | None = None
    per_head: bool = False
    pairs: str | None = None
    """One of `PAIRS` for a rotary part."""
    transposed: bool = False

    def settings(self) -> dict[str, Any]:
        """As YAML values, without what is as usual."""
        values = {key: value for key, value in asdict(self).items() if value not in (None, False)}
        return {"tensor": self.tensor, **values, **({"rows": list(self.rows)} if self.rows else {})}


@dataclass(frozen=True, kw_only=True)
class LatentMap:
    """How one file's latent attention becomes ours."""

    attention: str
    heads: int
    parts: Mapping[str, Cut]
    """By our tensors' names, of `TARGETS`."""
    ignore: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Write it as YAML, at once."""
        import yaml

        values = {
            "attention": self.attention,
            "heads": self.heads,
            "parts": {target: cut.settings() for target, cut in self.parts.items()},
            "ignore": list(self.ignore),
        }
        text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=110)
        atomic_write_text(path, HEADER + text)


def read_map(path: Path) -> LatentMap:
    """The mapping in a YAML file.

    Raises:
        UserError: naming the field that is missing, unknown or no such thing.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; vmla-train inspect writes one") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    wanted = {"attention": str, "heads": int, "parts": dict}
    for name, kind in wanted.items():
        if not isinstance(values, dict) or not isinstance(values.get(name), kind):
            raise UserError(f"{path}: {name} is missing or no {kind.__name__}; vmla-train inspect writes one")
    if "{layer}" not in values["attention"] or values["heads"] < 1:
        raise UserError(f"{path}: attention has {{layer}} in it, and heads is 1 or more")
    ignored = values.get("ignore") or []
    if not isinstance(ignored, list) or not all(isinstance(name, str) for name in ignored):
        raise UserError(f"{path}: ignore is a list of names")
    parts = values["parts"]
    if unknown := sorted(map(str, parts.keys() - set(TARGETS))):
        raise UserError(f"{path} maps {unknown[0]}, which latent attention does not have")
    if missing := [target for target in TARGETS if target not in parts]:
        raise UserError(f"{path} names no tensor for {', '.join(missing)}; add it, or null for zeros")
    cuts = {target: _cut(parts[target], f"{path}: {target}") for target in TARGETS}
    return LatentMap(attention=values["attention"], heads=values["heads"], parts=cuts, ignore=tuple(ignored))


def _is_range(rows: Any) -> bool:
    whole = isinstance(rows, list) and len(rows) == 2 and all(type(n) is int for n in rows)
    return whole and 0 <= rows[0] < rows[1]


def _cut(values: Any, where: str) -> Cut:
    if not isinstance(values, dict) or "tensor" not in values:
        raise UserError(f"{where} is no mapping with the name of a tensor")
    if unknown := sorted(map(str, values.keys() - {field.name for field in fields(Cut)})):
        raise UserError(f"{where} has an unknown field {unknown[0]}")
    rows, pairs = values.get("rows"), values.get("pairs")
    if rows is not None and not _is_range(rows):
        raise UserError(f"{where}: rows is {rows}; it is [from, to), two whole numbers")
    if pairs not in (None, *PAIRS):
        raise UserError(f"{where}: pairs is {pairs}; it is {' or '.join(PAIRS)}")
    if not isinstance(values["tensor"], str | None):
        raise UserError(f"{where}: tensor is no name")
    for flag in ("per_head", "transposed"):
        if type(values.get(flag, False)) is not bool:
            raise UserError(f"{where}: {flag} is true or false")
    return Cut(**{**values, "rows": None if rows is None else (rows[0], rows[1])})
