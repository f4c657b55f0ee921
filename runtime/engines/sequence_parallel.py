"""One video on several processes: each computes a part of a chunk's tokens.

Every process holds the model and the whole cache. It embeds its own tokens, which are the same part of each
latent frame, and takes them through the blocks. What attention needs from the others is their entries (224
numbers a token and layer, where keys and values of all heads are 3,072 and more), which are gathered before
they are expanded; each process then attends with its own queries to the whole window. At the end the velocity
is gathered, so that all processes go on from the same latents, commit the same entries and need nothing else
of each other. It holds for both layouts of attention; only `mla` makes it cheap.

Results differ from those of one process in the last bits, because matrix products have fewer rows; they are
the same on every process and every time.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup

from plugins.errors import UserError
from vmla.attention import Window
from vmla.transformer import VideoMLA


class Split(NamedTuple):
    """How the tokens of a chunk are divided."""

    group: ProcessGroup
    tokens_per_frame: int

    def part(self, whole: Tensor) -> Tensor:
        """The tokens of this process [B, F * P / processes, ...] among all [B, F * P, ...]."""
        # The same part of every frame, so that a modulation for each frame [B, F, D] fits every process.
        return self._framed(whole, self.tokens_per_frame)[:, :, self.group.rank()].flatten(1, 2)

    def whole(self, part: Tensor) -> Tensor:
        """The whole tensor, gathered from the parts of all processes."""
        made = part.new_empty(self.group.size(), *part.shape)
        torch.distributed.all_gather(list(made.unbind()), part.contiguous(), group=self.group)
        here = self.tokens_per_frame // self.group.size()
        framed = made.unflatten(2, (-1, here))  # [processes, B, F, P / processes, ...]
        return framed.movedim(0, 2).flatten(1, 3)

    def _framed(self, whole: Tensor, tokens: int) -> Tensor:
        return whole.unflatten(1, (-1, self.group.size(), tokens // self.group.size()))


class SplitWindow(Window):
    """A window of which this process has a part of the queries."""

    split: Split

    @classmethod
    def of(cls, window: Window, split: Split) -> SplitWindow:
        """`window`, of which this process has the queries that `split` gives it."""
        made = cls(*window)
        made.split = split
        return made

    def own(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of this process's `tokens`."""
        whole = tokens * self.split.group.size()
        return self.split.part(self.cos[None, -whole:])[0], self.split.part(self.sin[None, -whole:])[0]

    def gathered(self, own: Tensor) -> Tensor:
        """The entries of the whole chunk."""
        return self.split.whole(own)


class SplitVideoMLA(VideoMLA):
    """A model that computes its own part of a chunk's tokens, and gives and takes whole chunks."""

    split: Split

    def embed(self, latents: Tensor) -> Tensor:
        """See `VideoMLA.embed`; the tokens of this process."""
        return self.split.part(super().embed(latents))

    def head(self, x: Tensor, embedding: Tensor) -> Tensor:
        """See `VideoMLA.head`; the tokens of all processes."""
        return self.split.whole(super().head(x, embedding))

    def _window(self, slot_index: Tensor, chunk_index: Tensor, full: bool = False) -> Window:
        return SplitWindow.of(super()._window(slot_index, chunk_index, full), self.split)


def split_over(model: VideoMLA, group: ProcessGroup) -> VideoMLA:
    """A copy of `model`, sharing its weights, that computes together with the other processes of `group`.

    Raises:
        UserError: if the tokens of a latent frame cannot be divided among them.
    """
    tokens = model.config.tokens_per_frame
    check_divisible(tokens, group.size())
    shared = copy.copy(model)
    shared.__class__ = SplitVideoMLA
    shared.__dict__["split"] = Split(group, tokens)
    return shared


def check_divisible(tokens: int, processes: int) -> None:
    """Refuse a number of processes that cannot have equal parts of a latent frame's `tokens`.

    Raises:
        UserError: if there is a remainder.
    """
    if tokens % processes:
        raise UserError(
            f"{tokens} tokens of a latent frame cannot be divided among {processes} processes; "
            "start as many as divide them"
        )
