"""The state of a stopped video on disk, from which it resumes with identical frames.

One safetensors file beside the video holds the cache, the clean latents of the window and the decoder's
state; its header holds, as JSON, the number of the next chunk, the mark of the sink, the description of the
video and a hash of the tensors. The frames themselves are in the sink; those that came after the state was
taken are cut off and made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import torch
from torch import Tensor

from plugins.atomic_files import atomic_write_bytes, beside
from plugins.documents.json_file import parse_json
from plugins.documents.regular_file import opened
from plugins.documents.tensor_header import header_in, read_header
from plugins.documents.typed import Between, typed
from plugins.errors import UserError
from runtime.device.cuda_graphs import Stamp, host_copy, stamp, wait_for
from runtime.outputs import Frames, Mark
from runtime.rollout.rollout import Rollout
from vmla.vae import DecoderState

SCHEMA = "1"


@dataclass(frozen=True, kw_only=True)
class StateHeader:
    """The JSON in a state's header."""

    schema: str
    number: Annotated[int, Between(0, 2**63)]
    position: tuple[int, int]
    """Whole chunks and frames: see `_first_frame`."""
    forgotten: Annotated[int, Between(0, 2**63)]
    memory: list[Any] | None
    mark: dict[str, Annotated[int, Between(0, 2**63)]]
    video: dict[str, Any]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A rollout between two chunks."""

    number: int
    """Number of the next chunk."""
    frame: int
    """Latent frame at which that chunk begins (`Rollout.frame`)."""
    forgotten: int
    cache: Tensor
    """A copy in main memory, complete once `ready` has passed."""
    past: dict[int, Tensor]
    """Clean latents [B, z, F, h, w] of chunks in the window, by their number."""
    ready: Stamp = 0.0

    @classmethod
    def of(cls, rollout: Rollout) -> Snapshot:
        """A snapshot of `rollout`; on a GPU the copy may still be under way when this returns."""
        cache = host_copy(rollout.buffers.cache)
        return cls(
            number=rollout.number,
            frame=rollout.frame,
            forgotten=rollout.past.forgotten,
            cache=cache,
            past=dict(rollout.past.chunks),
            ready=stamp(rollout.buffers.cache.device),
        )

    def restore(self, rollout: Rollout) -> None:
        """Set `rollout` to this point, from which it then continues.

        Raises:
            UserError: if its cache has another shape.
        """
        buffers, ours = rollout.buffers, tuple(self.cache.shape)
        if ours != tuple(buffers.cache.shape):
            raise UserError(f"the state has a cache of {ours}, the model one of {tuple(buffers.cache.shape)}")
        rollout.number, rollout.frame = self.number, self.frame
        buffers.cache.copy_(self.cache)
        past = {number: latents.to(buffers.latents.device) for number, latents in self.past.items()}
        rollout.past.restore(past, self.forgotten)


@dataclass(frozen=True, kw_only=True)
class State:
    """A video between two chunks: all that is needed to continue it, here, elsewhere or later."""

    snapshot: Snapshot
    decoder_state: DecoderState | None
    """None, or a list of tensors and a few other JSON values."""
    mark: Mark
    """The sink's position: the frames that are in it."""
    video: Mapping[str, Any] = field(default_factory=dict)
    """All that determines the frames, as `runtime.resume.sidecar.describe_job` records it."""
    pending: tuple[Frames, ...] = ()
    """Frames before the mark that nobody has taken yet, chunk by chunk [n, H, W, 3]."""

    def save(self, path: str | Path) -> None:
        """Write it to the file `path`, under a temporary name first, then renamed.

        Raises:
            OSError: if it cannot be written.
        """
        save_state(Path(path), self, self.video)

    @classmethod
    def load(cls, path: str | Path) -> State:
        """Read a state that `save` wrote.

        Raises:
            UserError: if there is no such file, or it is torn or of another version.
        """
        return load_state(Path(path), mend="save it again")[0]

    def in_main_memory(self) -> State:
        """This state with every tensor whole and in main memory, so that it may leave this process."""
        wait_for(self.snapshot.ready)
        past = {number: latents.cpu() for number, latents in self.snapshot.past.items()}
        snapshot = replace(self.snapshot, past=past, ready=0.0)
        return replace(self, snapshot=snapshot, decoder_state=self.decoder_state_on(torch.device("cpu")))

    def decoder_state_on(self, device: torch.device) -> DecoderState | None:
        """The decoder's state with its tensors on `device`."""
        if self.decoder_state is None:
            return None
        return [item.to(device) if isinstance(item, Tensor) else item for item in self.decoder_state]


def state_path(output: Path) -> Path:
    """The path of the state that belongs to `output`."""
    return beside(output, ".state")


def save_state(path: Path, state: State, video: Mapping[str, Any]) -> None:
    """Write `state` of the `video` so described, under a temporary name first, then renamed.

    Raises:
        OSError: if it cannot be written.
    """
    from safetensors.torch import save

    items, snapshot = list(state.decoder_state or ()), state.snapshot
    wait_for(snapshot.ready)
    tensors = {"cache": snapshot.cache}
    tensors |= {f"past.{number}": latents for number, latents in snapshot.past.items()}
    tensors |= {f"memory.{n}": item for n, item in enumerate(items) if isinstance(item, Tensor)}
    tensors |= {f"pending.{n}": torch.from_numpy(frames) for n, frames in enumerate(state.pending)}
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    header = {
        "schema": SCHEMA,
        "number": snapshot.number,
        "position": [0, snapshot.frame],
        "forgotten": snapshot.forgotten,
        "memory": None if state.decoder_state is None else [_to_json(item) for item in items],
        "mark": state.mark,
        "video": video,
        "sha256": _digest(tensors),
    }
    text = json.dumps(header)
    metadata = {"state": text, "state_sha256": hashlib.sha256(text.encode()).hexdigest()}
    atomic_write_bytes(path, save(tensors, metadata))


def is_state(path: Path) -> bool:
    """Whether the file `path` has the header of a video's state; no tensor is read."""
    try:
        return "state" in read_header(path).metadata
    except UserError:
        return False


def load_state(path: Path, *, mend: str) -> tuple[State, dict[str, Any]]:
    """The state at `path` and the description of its video.

    Args:
        path: the file that `save_state` wrote.
        mend: the error's advice if there is no state to resume.

    Raises:
        UserError: if there is none, or one that is torn or of another version.
    """
    if not path.exists():
        raise UserError(f"there is no {path}: nothing to resume; {mend}")
    with opened(path, mend=mend) as file:
        state = state_in(file, str(path), mend=mend)
    return state, dict(state.video)


def state_in(file: BinaryIO, where: str, *, mend: str) -> State:
    """The state in an open file, which may have been replaced at its path by a later state meanwhile.

    Args:
        file: open for reading, at its beginning.
        where: how errors name it.
        mend: as in `load_state`.

    Raises:
        UserError: if it is torn or of another version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        metadata = header_in(file, where, mend="").metadata
        header = typed(parse_json(metadata["state"], "its header"), StateHeader, "its header")
        file.seek(0)
        tensors = load(file.read())
        text = hashlib.sha256(metadata["state"].encode()).hexdigest()
        sound = metadata.get("state_sha256", text) == text  # states of earlier versions have none
        if not sound or header.schema != SCHEMA or header.sha256 != _digest(tensors):
            raise ValueError("its hash or version is not right")
        return _state(header, tensors)
    except (SafetensorError, OSError, UserError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where} is damaged or is not the state of a video ({error}); {mend}") from error


def _state(header: StateHeader, tensors: Mapping[str, Tensor]) -> State:
    items = header.memory
    if items is not None:
        items = [tensors[f"memory.{n}"] if item == _TENSOR else item for n, item in enumerate(items)]
    past = {int(name[5:]): tensor for name, tensor in tensors.items() if name.startswith("past.")}
    pending = sorted((int(name[8:]), tensor) for name, tensor in tensors.items() if name[:8] == "pending.")
    snapshot = Snapshot(
        number=header.number,
        frame=_first_frame(header),
        forgotten=header.forgotten,
        cache=tensors["cache"],
        past=past,
    )
    return State(
        snapshot=snapshot,
        decoder_state=items,
        mark=header.mark,
        video=header.video,
        pending=tuple(frames.numpy() for _, frames in pending),
    )


def _first_frame(header: StateHeader) -> int:
    """`Snapshot.frame` from the position in a header, which older states count in whole chunks."""
    chunks, frames = header.position
    if not chunks:
        return frames
    size = header.video["window"]["chunk"]
    if type(size) is not int:  # a string times a number would be a string as long as the file demands
        raise ValueError("its window has no number of frames a chunk")
    return frames + chunks * size


_TENSOR = {"tensor": True}


def _to_json(item: Any) -> Any:
    """The JSON in the header for `item` of the decoder's state; its tensors are stored as tensors."""
    return _TENSOR if isinstance(item, Tensor) else item


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
