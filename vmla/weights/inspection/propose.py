"""A mapping of a file's latent attention, proposed from the names and shapes of its first layer."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from plugins.errors import UserError
from vmla.weights.formats.files import Shape
from vmla.weights.inspection.conventions import ATTENTIONS, role_of, rotary_first
from vmla.weights.inspection.mapping import TARGETS, LatentMap, Pairs, TensorSlice

NEEDED = ("kv_down", "q_down", "q_up")


@dataclass(frozen=True)
class Proposal:
    """A mapping, and the guesses in it."""

    mapping: LatentMap
    open: tuple[str, ...]
    """Tensors that were not recognised, parts that were not found."""
    remarks: tuple[str, ...]
    """Assumptions that were made."""


@dataclass(frozen=True, kw_only=True)
class Guess:
    """Settings that names and shapes do not tell."""

    heads: int | None = None
    """Number of heads; None takes as many as have the width of Wan's."""
    rotary: str | None = None
    """`first` or `last` within a fused projection; by the order of words in its name, if not given."""
    pairs: Pairs = "interleaved"


def has_heads(names: Container[str]) -> bool:
    """Whether self-attention of these tensors has keys and values for each head, as Wan's own does."""
    return any(all(f"{to}{part}.weight" in names for part in "qkv") for to in ("", "to_"))


def propose(shapes: Mapping[str, Shape], width: int, guess: Guess, path: Path) -> Proposal:
    """Propose a mapping.

    Args:
        shapes: of all tensors, by bare names.
        width: D, of the model.
        guess: stands for names that are not in the file.
        path: of the file, for errors.

    Raises:
        UserError: if no latent attention is recognised.
    """
    prefix = next((f"blocks.0.{name}." for name in ATTENTIONS if _any(shapes, f"blocks.0.{name}.")), None)
    if prefix is None:
        raise UserError(f"{path}: its blocks have no self-attention named {', '.join(ATTENTIONS)}")
    own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    if has_heads(own):
        raise UserError(f"{path} has attention per head, which needs no mapping; leave --map out")
    modules = _Modules(own, width, guess, path)
    parts = modules.parts()
    used = {cut.tensor for cut in parts.values()}
    left = [name for name in own if name not in used]
    missing = [target for target in TARGETS if target not in parts]
    unknown = [f"not recognised: {name} {list(own[name])}" for name in left]
    unknown += [f"not found: {target}" for target in missing]
    mapping = LatentMap(attention=prefix.replace(".0.", ".{layer}.", 1), heads=modules.heads, parts=parts)
    return Proposal(mapping, tuple(unknown), tuple(modules.remarks))


def _any(shapes: Mapping[str, Shape], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in shapes)


class _Modules:
    """The modules of one layer's attention by their roles, and the widths that follow from their shapes."""

    def __init__(self, own: Mapping[str, Shape], width: int, guess: Guess, path: Path) -> None:
        self._own, self._width, self._guess = own, width, guess
        self.remarks: list[str] = []
        self._tensors: dict[str, str] = {}
        for name in own:
            module = name.removesuffix(".weight")
            role = role_of(module)
            if role is not None and not name.endswith(".bias"):
                self._tensors.setdefault(role, name)
        if missing := [role for role in NEEDED if role not in self._tensors]:
            names = ", ".join(sorted(own))[:200]
            raise UserError(f"{path}: no {missing[0]} among {names}; write the mapping by hand")
        self.heads = guess.heads or max(width // 128, 1)
        self._head = width // self.heads
        self._latent, self._rotary = self._widths(path)
        self._query_width = self._rows("q_down", width)

    def _rows(self, role: str, inputs: int) -> int:
        """Outputs of a projection whose inputs are known."""
        shape = self._shape(role)
        return shape[0] if shape[-1] == inputs else shape[-1]

    def _shape(self, role: str) -> Shape:
        shape = self._own[self._tensors[role]]
        return (math.prod(shape[:-1]), shape[-1]) if len(shape) > 1 else shape

    def _widths(self, path: Path) -> tuple[int, int]:
        """C and R: the rotary width from its own projection, or from a fused one's rows beyond the latent."""
        down = self._rows("kv_down", self._width)
        if "k_rope" in self._tensors:
            return down, self._rows("k_rope", self._width)
        if "kv_norm" in self._tensors:
            latent = self._own[self._tensors["kv_norm"]][0]
        elif "v_up" in self._tensors:
            latent = min(self._shape("v_up"))
        elif "kv_up" in self._tensors:
            latent = min(self._shape("kv_up"))
        else:
            raise UserError(f"{path}: nothing says how wide the latent of keys and values is; map it by hand")
        return latent, down - latent

    def parts(self) -> dict[str, TensorSlice]:
        """All of `TARGETS` that were found."""
        made = {**self._down(), **self._up(), **self._queries(), **self._norms(), **self._out()}
        return {target: made[target] for target in TARGETS if target in made}

    def _cut(
        self, role: str, inputs: int, rows: tuple[int, int] | None = None,
        *, per_head: bool = False, pairs: Pairs | None = None,
    ) -> TensorSlice:  # fmt: skip
        shape, tensor = self._shape(role), self._tensors[role]
        turned = shape[-1] != inputs and shape[0] == inputs
        return TensorSlice(tensor=tensor, rows=rows, transposed=turned, per_head=per_head, pairs=pairs)

    def _order(self, role: str, content: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows of content and of rotary channels within a fused projection."""
        told = self._guess.rotary or ("first" if rotary_first(self._tensors[role]) else "last")
        if told == "first":
            return (self._rotary, self._rotary + content), (0, self._rotary)
        return (0, content), (content, content + self._rotary)

    def _down(self) -> dict[str, TensorSlice]:
        width, pairs = self._width, self._guess.pairs
        if "k_rope" in self._tensors:
            key = self._cut("k_rope", width, pairs=pairs)
            return {"down_kv.weight": self._cut("kv_down", width), "rotary_k.weight": key}
        latent, rotary = self._order("kv_down", self._latent)
        self.remarks.append(f"{self._tensors['kv_down']}: rotary rows are taken as {list(rotary)}")
        return {
            "down_kv.weight": self._cut("kv_down", width, latent),
            "rotary_k.weight": self._cut("kv_down", width, rotary, pairs=pairs),
        }

    def _up(self) -> dict[str, TensorSlice]:
        content = self._head - self._rotary
        if "kv_up" in self._tensors:
            rows = {"up_k.weight": (0, content), "up_v.weight": (content, content + self._head)}
            self.remarks.append(
                f"{self._tensors['kv_up']}: each head's keys are taken to come before its values"
            )
            return {t: self._cut("kv_up", self._latent, r, per_head=True) for t, r in rows.items()}
        names = {"up_k.weight": "k_up", "up_v.weight": "v_up"}
        return {t: self._cut(role, self._latent) for t, role in names.items() if role in self._tensors}

    def _queries(self) -> dict[str, TensorSlice]:
        latent, pairs = self._query_width, self._guess.pairs
        made = {"down_q.weight": self._cut("q_down", self._width)}
        if "q_rope" in self._tensors:
            rows = (0, self._rotary)
            made["up_q.weight"] = self._cut("q_up", latent)
            made["rotary_q.weight"] = self._cut("q_rope", latent, rows, per_head=True, pairs=pairs)
            return made
        content, rotary = self._order("q_up", self._head - self._rotary)
        self.remarks.append(f"{self._tensors['q_up']}: rotary rows of each head are taken as {list(rotary)}")
        made["up_q.weight"] = self._cut("q_up", latent, content, per_head=True)
        made["rotary_q.weight"] = self._cut("q_up", latent, rotary, per_head=True, pairs=pairs)
        return made

    def _norms(self) -> dict[str, TensorSlice]:
        names = {"norm_kv.weight": "kv_norm", "norm_q.weight": "q_norm"}
        return {
            t: TensorSlice(tensor=self._tensors[role]) for t, role in names.items() if role in self._tensors
        }

    def _out(self) -> dict[str, TensorSlice]:
        if "out" not in self._tensors:
            return {}
        name = self._tensors["out"]
        bias = name.removesuffix(".weight") + ".bias"
        if bias not in self._own:
            self.remarks.append(f"{name} has no bias: zeros")
        return {
            "to_out.weight": self._cut("out", self._width),
            "to_out.bias": TensorSlice(tensor=bias if bias in self._own else None),
        }
