"""Which rows of which tensor of a file are which matrix of our latent attention: YAML, to be edited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from plugins.atomic_files import atomic_write_text
from plugins.documents.typed import Between, typed
from plugins.documents.yaml_file import read_yaml
from plugins.errors import UserError

TARGETS = (
    "down_kv.weight", "norm_kv.weight", "up_k.weight", "up_v.weight", "rotary_k.weight", "down_q.weight",
    "norm_q.weight", "up_q.weight", "rotary_q.weight", "to_out.weight", "to_out.bias",
)  # fmt: skip
"""The tensors of our latent attention."""
Pairs = Literal["interleaved", "halved"]
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
class TensorSlice:
    """The rows of one tensor in the file that make one of our tensors."""

    tensor: str | None
    """The tensor's name behind `LatentMap.attention`; None stands for zeros."""
    rows: tuple[int, int] | None = None
    per_head: bool = False
    pairs: Pairs | None = None
    """How the rows of a rotary part pair up; None for other parts."""
    transposed: bool = False

    def __post_init__(self) -> None:
        if self.rows is not None and not 0 <= self.rows[0] < self.rows[1]:
            raise UserError(
                f"rows of {self.tensor} is {list(self.rows)}; it is [from, to), two whole numbers"
            )

    def settings(self) -> dict[str, Any]:
        """The slice as YAML values; fields that have their default are left out."""
        values = {key: value for key, value in asdict(self).items() if value not in (None, False)}
        return {"tensor": self.tensor, **values, **({"rows": list(self.rows)} if self.rows else {})}


@dataclass(frozen=True, kw_only=True)
class LatentMap:
    """How one file's latent attention becomes ours."""

    attention: str
    heads: Annotated[int, Between(1, 2**12)]
    parts: Mapping[str, TensorSlice]
    """The slice for each of our tensors, by its name in `TARGETS`."""
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if "{layer}" not in self.attention:
            raise UserError("attention has {layer} in it, and heads is 1 or more")

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
    mend = "vmla-train inspect writes one"
    found = typed(read_yaml(path, mend=mend), LatentMap, str(path), mend=mend)
    if unknown := sorted(found.parts.keys() - set(TARGETS)):
        raise UserError(f"{path} maps {unknown[0]}, which latent attention does not have")
    if missing := [target for target in TARGETS if target not in found.parts]:
        raise UserError(f"{path} names no tensor for {', '.join(missing)}; add it, or null for zeros")
    return found
