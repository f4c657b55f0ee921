"""The Ray library, which is imported only where it is used."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from plugins.errors import UserError, missing_extra

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
OF_THIS_MACHINE: dict[str, Any] = {
    "include_dashboard": False,
    "object_store_memory": 80 << 20,  # the object store: next to nothing travels through it
    "_system_config": {"worker_niceness": 0},  # Ray's default of 15 lets any other program go first
}


def connect() -> Any:
    """Ray, connected to the cluster that it finds, or else to a new one on this machine alone.

    Ray finds a cluster itself: by its own `RAY_ADDRESS`, or the one that `ray start` began here.

    Raises:
        UserError: if Ray is not installed, or the cluster does not answer.
    """
    try:
        import ray
    except ImportError as error:
        raise missing_extra("ray", "ray") from error
    if ray.is_initialized():
        return ray
    with _own_signals():
        try:
            ray.init(address="auto", **QUIET)
        except ConnectionError as error:
            if "RAY_ADDRESS" in os.environ:
                raise _out_of_reach(error) from error
            # Without "local", the address that a cluster left behind when it was killed would be taken again.
            ray.init(address="local", **QUIET, **OF_THIS_MACHINE)
        except (RuntimeError, ValueError) as error:
            raise _out_of_reach(error) from error
    return ray


def _out_of_reach(error: Exception) -> UserError:
    why = " ".join(str(error).split())
    if "RAY_ADDRESS" in os.environ:  # then Ray (2.60) sends a token only if asked to, and hears nothing
        mend = "if it runs, set RAY_AUTH_MODE=token and copy its ~/.ray/auth_token to this machine"
    else:
        mend = "start one: ray start --head"
    return UserError(f"cannot reach a Ray cluster: {why}; {mend}")


@contextmanager
def _own_signals() -> Iterator[None]:
    """Restore the command's handler of SIGTERM, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def room_for(resources: dict[str, float], *, cpus: int, gpus: float) -> int:
    """How many workers a cluster with these `resources` has room for.

    Raises:
        UserError: if for none.
    """
    room = int(resources.get("CPU", 0.0) // cpus)
    if gpus:
        room = min(room, int(resources.get("GPU", 0.0) // gpus))
    if not room:
        wanted = f"{cpus} processors" + (" and a GPU" if gpus else "")
        raise UserError(f"a worker needs {wanted}, which the Ray cluster does not have; add a machine")
    return room
