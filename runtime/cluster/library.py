"""Ray itself, which is loaded only where it is asked for."""

from __future__ import annotations

from typing import Any

from plugins.errors import UserError, missing_extra


def connect() -> Any:
    """Ray, connected to the cluster that it knows of, else to one of this machine alone.

    Ray finds a cluster by itself: by its own `RAY_ADDRESS`, or the one that `ray start` began here.

    Raises:
        UserError: if Ray is not installed, or the cluster does not answer.
    """
    try:
        import ray
    except ImportError as error:
        raise missing_extra("ray", "ray") from error
    if not ray.is_initialized():
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
        except (ConnectionError, RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())
            raise UserError(f"cannot reach a Ray cluster: {why}; start one: ray start --head") from error
    return ray
