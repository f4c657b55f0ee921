"""`vmla-run --sequence-parallel`: one video by all processes that `torchrun` started; the first writes it.

The others follow: they make the same calls of the model, and neither decode nor write. What keeps all of them
in step is what they exchange within each pass, so that the first one alone decides when to stop.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import click
import torch.distributed
from torch.distributed.distributed_c10d import _get_default_store

from plugins.errors import UserError
from runtime.outputs import NullSink
from runtime.rollout.decoding import NOTHING
from runtime.session.generate import load_session
from runtime.session.outcome import in_one_line
from runtime.session.replay import Order
from vmla.cli.stopping import Stop
from vmla.train.loop.parallel import Launched, processes

ENDED = "vmla-run has ended"
"""What the first process leaves in the store that all share: whoever is cut off then need not say so."""


def run_together(
    place: Launched, order_of: Callable[[], Order], make: Callable[[Order], None], stop: Stop
) -> None:
    """Make one video with all processes.

    Args:
        place: this process among all.
        order_of: the order, the same for each process.
        make: makes and writes it; called in the first process alone.
        stop: ends the first process after the chunk under way, and the others with it.
    """
    if place.rank:
        _follow(place, order_of, stop)
        return
    order = order_of()
    with processes(1, order.job.device.type):
        try:
            make(order)
        finally:
            _get_default_store().set(ENDED, "1")


def _follow(place: Launched, order_of: Callable[[], Order], stop: Stop) -> None:
    """Make the same chunks as the first process, for nobody."""
    try:
        order = order_of()
    except (UserError, click.UsageError):
        if place.local_rank:  # the first one of this machine says what is wrong
            sys.exit(2)
        raise
    ended: Callable[[], bool] = stop.is_set
    try:
        with processes(1, order.job.device.type), stop.polled():
            ended = _looking_at(_get_default_store(), stop)
            _compute(order)
    except RuntimeError as error:
        if ended():
            sys.exit(stop.status if stop.is_set() else 2)
        raise UserError(f"process {place.rank}: {in_one_line(error)}") from error


def _looking_at(store: torch.distributed.Store, stop: Stop) -> Callable[[], bool]:
    """Whether the first process has ended."""

    def ended() -> bool:
        try:
            return stop.is_set() or store.check([ENDED])
        except RuntimeError:  # so has the process that kept the store
            return True

    return ended


def _compute(order: Order) -> None:
    """Make all chunks without frames.

    Raises:
        Exception: whatever has ended it early.
    """
    job = order.job
    # As many threads as denoise in the first process: what it goes on from has to be the same to the bit.
    alone = replace(job, decoder_file=NOTHING, threads=job.cores.denoiser or job.threads)
    state = None if order.state is None else replace(order.state, pending=())
    with load_session(alone) as session:
        task = session.admit(alone, NullSink(), frames=0, state=state)
        session.run()
    if task.failure is not None:
        raise task.failure
