"""Replicas on a real Ray cluster of this machine, whose processes are killed under their viewers."""

import os
import signal
import threading
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from kit.processes.serving import RED, Watching, serving, settings_for, wait_for
from websockets.exceptions import ConnectionClosedOK

from runtime.cli.serve import LIKE_RUN, job_of
from runtime.cluster.ingress import ingress
from runtime.cluster.service import Service, Size
from runtime.serve.disk.store import read_relay_key
from runtime.serve.listen import open_socket, server_for

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray
KILLS = 2
CHUNKS = 60


@contextmanager
def served(cluster, checkpoint, store):
    """Two replicas behind one address: its port, and the service."""
    settings = settings_for(store, save_every=0.5)
    automatic = dict.fromkeys(("dtype", "text_device"), "auto")
    given = {"checkpoint": str(checkpoint), "device": "cpu", "threads": 1, **automatic}
    options = dict.fromkeys(LIKE_RUN) | given | {"engine": Path("eager")}
    size = Size(least=2, most=2, cpus=1, gpus=0.0)
    service = Service(
        cluster, partial(job_of, options), settings, size, memory=None, log_level="warning"
    )  # fmt: skip
    key, stop = read_relay_key(store), threading.Event()
    with open_socket(settings) as listening, service:
        server = server_for(ingress(settings, key, service.find, service.everyone), settings, stop)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield listening.getsockname()[1], service
        finally:
            stop.set()
            thread.join()


def loads(service):
    return ray.get(service._table.loads.remote())


def kill_the_one_that_has(service, name):
    """Kill it once it is known; one that was killed before may still be starting."""

    def maker():
        there = loads(service)
        for one in service.replicas:
            with suppress(ray.exceptions.RayError):
                address, process = ray.get([one.address.remote(), one.process.remote()])
                if address in there and name in there[address].sessions:
                    return process
        return None

    os.kill(wait_for(maker), signal.SIGKILL)


class Following(threading.Thread):
    """A viewer that takes all that comes, and says how much it has seen, so that more is made."""

    def __init__(self, viewer):
        super().__init__(daemon=True)
        self.viewer = viewer
        self.start()

    def run(self):
        self.viewer.all()

    def wait_for(self, chunks, condition=lambda: True):
        """Go on to so many chunks, while somebody watches."""

        def there():
            seconds = 0.75 * (chunks - 6)
            with suppress(ConnectionClosedOK):  # it has come to the end
                self.viewer.send({"type": "session.playback", "position_seconds": max(0.0, seconds)})
            return len(self.viewer.chunks) >= chunks and condition()

        wait_for(there, every=0.2)


def test_a_viewer_does_not_notice_that_its_replicas_are_killed(cluster, checkpoint, tmp_path):
    with (
        serving(checkpoint, tmp_path / "alone") as server,
        server.watch(prompt=RED, seed=7, num_frames=12 * CHUNKS) as whole,
    ):
        whole.all()
    with (
        served(cluster, checkpoint, tmp_path / "streams") as (port, service),
        Watching(port, prompt=RED, seed=7, num_frames=12 * CHUNKS, streaming_buffer_seconds=6.0) as viewer,
    ):
        name = viewer.until("video.start")["session_id"]
        following = Following(viewer)
        for kill in range(KILLS):
            following.wait_for(3 + kill * CHUNKS // KILLS, lambda: len(loads(service)) == 2)
            kill_the_one_that_has(service, name)
        following.wait_for(CHUNKS)
        following.join()
    assert [event["sequence_number"] for event, _ in viewer.chunks] == list(range(CHUNKS))
    assert viewer.media == whole.media
