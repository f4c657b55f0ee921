"""One video in a session of its own, into any sink."""

from runtime.session.outcome import Outcome, raise_failure
from runtime.session.session import Session
from runtime.telemetry.events import Several
from runtime.telemetry.metrics import Summary


def make_video(job, sink, telemetry, *, frames, stop=None, autosave=None, state=None):
    """The outcome of `job`; `stop` ends it after the chunk under way. Raises what ended it early."""
    summary = Summary()
    with Session(job) as session:
        task = session.admit(
            job, sink, frames=frames, telemetry=Several([summary, telemetry]), autosave=autosave, state=state
        )
        session.run(stop)
    raise_failure(task)
    return Outcome.of(task, summary.figures(), load_seconds=0.0)
