"""A pool of video makers on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from runtime.cluster.maker import Made, VideoMaker
from runtime.prompts.videos_file import VideoEntry
from runtime.session.replay import Order
from vmla.cluster.pool import ActorPool


def video_pool(
    ray: Any, order_of: Callable[[str], Order], folder: Path, *, workers: int, cpus: int, gpus: float,
    save_every: float, overwrite: bool,
) -> ActorPool[VideoEntry, Made]:  # fmt: skip
    """Actors that make videos in `folder`, which all machines of the cluster must see; see `VideoMaker`.

    Each of the `workers` counts as so many `cpus` and `gpus`.
    """
    kind: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_concurrency=2)(VideoMaker)
    new = partial(kind.remote, order_of, folder, save_every=save_every, overwrite=overwrite)
    return ActorPool(ray, new, lambda video, why: Made(name=video.name, failure=why), workers=workers)
