"""`vmla-run --sequence-parallel`: all processes that `torchrun` started make one video; the first writes it.

The others call the model in the same way, but neither decode nor write. They stay in step through the tensors
that all of them exchange within each pass, so the first process alone decides when to stop.
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
"""Key that the first process sets in the shared store when it ends. The others' exchanges fail then, and they
exit without reporting that as an error."""


def run_together(
    place: Launched, order_of: Callable[[], Order], make: Callable[[Order], None], stop: Stop
) -> None:
    """Make one video with all processes.

    Args:
        place: the rank of this process, and how many there are.
        order_of: returns the order, which is the same in every process.
        make: makes and writes the video; called in the first process alone.
        stop: ends the first process after the current chunk, and the others with it.
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
    """Make the same chunks as the first process, and discard them."""
    try:
        order = order_of()
    except (UserError, click.UsageError):
        if place.local_rank:  # the first process of each machine reports the error
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
    """Returns a function that tells whether the first process has ended."""

    def ended() -> bool:
        try:
            return stop.is_set() or store.check([ENDED])
        except RuntimeError:  # the store has gone with the first process, which kept it
            return True

    return ended


def _compute(order: Order) -> None:
    """Make all chunks without frames.

    Raises:
        Exception: whatever ended the video early.
    """
    job = order.job
    # As many threads as denoise in the first process: rounding depends on them, and every process has to
    # compute the same bits.
    alone = replace(job, decoder_file=NOTHING, threads=job.cores.denoiser or job.threads)
    state = None if order.state is None else replace(order.state, pending=())
    with load_session(alone) as session:
        task = session.admit(alone, NullSink(), frames=0, state=state)
        session.run()
    if task.failure is not None:
        raise task.failure
