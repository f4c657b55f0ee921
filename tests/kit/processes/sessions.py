"""One video in a session of its own, into any sink, and what ends it early."""

from runtime.outputs.mp4 import Mp4Sink
from runtime.session.outcome import Outcome, raise_failure
from runtime.session.session import Session
from runtime.telemetry.events import NoTelemetry, TelemetryGroup
from runtime.telemetry.metrics import Summary


def make_video(job, sink, telemetry, *, frames, stop=None, autosave=None, state=None):
    """The outcome of `job`; `stop` ends it after the chunk under way. Raises what ended it early."""
    summary = Summary()
    with Session(job) as session:
        task = session.admit(
            job,
            sink,
            frames=frames,
            telemetry=TelemetryGroup([summary, telemetry]),
            autosave=autosave,
            state=state,
        )
        session.run(stop)
    raise_failure(task)
    return Outcome.of(task, summary.figures(), load_seconds=0.0)


class StopAt(NoTelemetry):
    """Sets `stop` once the chunk number `chunk` of any video is shown."""

    def __init__(self, stop, chunk):
        self._stop, self._chunk = stop, chunk

    def chunk(self, report):
        if report.chunk >= self._chunk:
            self._stop.set()


class FullDisk(Mp4Sink):
    """A sink whose disk has room for two chunks."""

    def _append(self, fragments):
        if self.mark()["frames"] >= 24:
            raise OSError(28, "No space left on device")
        super()._append(fragments)
