"""The one way to open a file of tensors; other kinds of files are refused with their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from plugins.documents.regular_file import opened
from plugins.errors import UserError
from vmla.weights.formats.lazy_tensors import LazyTensors
from vmla.weights.formats.pickles import read_pickle

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
SAFETENSORS = ".safetensors"
LORA = (".lora_A", ".lora_B", ".lora_up", ".lora_down", "lora_unet_", ".lora.up", ".lora.down")
"""Parts of names that only LoRA files have."""
POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class OpenFile:
    """Tensors by their names in the file, and the names of other entries among them."""

    tensors: Mapping[str, Tensor]
    beside: tuple[str, ...] = ()


def open_file(path: Path, part: str | None = None, files: Sequence[Path] = ()) -> OpenFile:
    """Open one file of tensors, or the `files` that together are `path`.

    Args:
        path: `.safetensors`, or a file of `torch.save`: `.pt`, `.pth`, `.bin` or `.ckpt`.
        part: of a training checkpoint, one of `vmla.weights.formats.pickles.PARTS`.
        files: shards; `path` is their index then.

    Raises:
        UserError: for a GGUF file, a Git LFS pointer, a file of another kind or a damaged one.
    """
    shards = tuple(files) or (path,)
    for shard in shards:
        _refuse_kind(shard)
    if shards[0].suffix == SAFETENSORS:
        return OpenFile(LazyTensors(path, files))
    tensors: dict[str, Tensor] = {}
    beside: list[str] = []
    for shard in shards:
        own, plain = read_pickle(shard, part)
        tensors |= own
        beside += plain
    return OpenFile(tensors, tuple(beside))


def _refuse_kind(path: Path) -> None:
    with opened(path, mend="copy the whole checkpoint folder") as file:
        start = file.read(len(POINTER))
    if start.startswith(b"GGUF") or path.suffix == ".gguf":
        raise UserError(f"{path} is a GGUF file, coded for ggml; give the safetensors that it was made of")
    if start == POINTER:
        raise UserError(f"{path} is a Git LFS pointer, not the file itself; fetch it with git lfs pull")
    if path.suffix not in (*PICKLES, SAFETENSORS):
        kinds = ", ".join((SAFETENSORS, *PICKLES))
        raise UserError(f"{path} is not a file of weights; name one that ends in {kinds}")


def refuse_lora(names: Iterable[str], path: Path) -> None:
    """Refuse a LoRA where a model is expected.

    Raises:
        UserError: naming a tensor that says so.
    """
    for name in names:
        if any(part in name for part in LORA):
            raise UserError(
                f"{path} holds LoRA weights ({name}); give their base model with --from, and it with --lora"
            )
