"""Which actor is given which piece, on a cluster that is made up: what starts, dies and never finds room."""

import threading
from types import SimpleNamespace

import pytest

from plugins.errors import UserError
from vmla.cluster.library import connect
from vmla.cluster.pool import LIVES, ActorPool

pytestmark = pytest.mark.cpu
NO_ROOM, STILLBORN = "no room", "stillborn"


class ActorError(Exception):
    pass


class TaskError(Exception):
    pass


class Cluster:
    """Ray's calls that the pool uses. References are numbers; what is done is in `results`."""

    exceptions = SimpleNamespace(RayActorError=ActorError, RayTaskError=TaskError)

    def __init__(self, fates):
        self.fates, self.results, self.actors, self.killed = iter(fates), {}, [], []

    def new(self):
        self.actors.append(Actor(self, next(self.fates, "well")))
        return self.actors[-1]

    def later(self, *result):
        self.results[reference := object()] = result
        return reference

    def wait(self, references, timeout):
        return [one for one in references if self.results[one]], []

    def get(self, reference):
        (result,) = self.results[reference]
        if isinstance(result, Exception):
            raise result
        return result

    def kill(self, actor):
        self.killed.append(actor)


class Method:
    def __init__(self, call):
        self.remote = call


class Actor:
    def __init__(self, cluster, fate):
        self.cluster, self.fate, self.made = cluster, fate, []
        self.make, self.stop = Method(self._make), Method(lambda: None)
        self.__ray_ready__ = Method(self._ready)

    def _ready(self):
        if self.fate == NO_ROOM:
            return self.cluster.later()
        if self.fate == STILLBORN:
            return self.cluster.later(ActorError("Traceback\nUserError: no model"))
        return self.cluster.later(True)

    def _make(self, piece):
        self.made.append(piece)
        if self.fate == "dies":
            return self.cluster.later(ActorError())
        if self.fate == "fails":
            return self.cluster.later(TaskError("Traceback\nValueError: x"))
        return self.cluster.later(piece.upper())


def run(cluster, pieces, *, workers, stop=None):
    pool = ActorPool(cluster, cluster.new, lambda piece, why: f"{piece} lost", workers=workers)
    return pool, list(pool.run(pieces, stop or threading.Event()))


def test_every_piece_is_made_once_by_no_more_actors_than_allowed():
    cluster = Cluster([])
    _, made = run(cluster, "abcde", workers=2)
    assert sorted(made) == list("ABCDE")
    assert len(cluster.actors) == 2
    assert sorted(cluster.killed, key=id) == sorted(cluster.actors, key=id)


def test_no_piece_waits_for_an_actor_that_finds_no_room():
    """The machine of one actor is gone, and the other has no room for a second."""
    cluster = Cluster(["well", "dies", NO_ROOM])
    pool, made = run(cluster, "abc", workers=2)
    assert sorted(made) == list("ABC")
    assert sum(pool.deaths.values()) == 1
    assert cluster.actors[2] in cluster.killed
    assert cluster.actors[2].made == []


def test_a_piece_that_kills_its_actors_is_given_up():
    cluster = Cluster(["dies"] * LIVES)
    pool, made = run(cluster, "a", workers=1)
    assert made == ["a lost"]
    assert pool.deaths == {0: LIVES}


def test_actors_that_never_start_are_an_error_with_its_reason():
    with pytest.raises(UserError, match="^workers do not start: UserError: no model$"):
        run(Cluster([STILLBORN] * LIVES), "ab", workers=1)


def test_a_piece_that_fails_is_an_error():
    with pytest.raises(UserError, match="^a worker failed: ValueError: x$"):
        run(Cluster(["fails"]), "ab", workers=1)


def test_it_stops_though_no_actor_has_started():
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    cluster = Cluster([NO_ROOM])
    assert run(cluster, "ab", workers=1, stop=stop)[1] == []
    assert cluster.killed == cluster.actors


def test_a_dead_cluster_that_left_its_address_is_not_connected_to(monkeypatch):
    ray = pytest.importorskip("ray")
    asked = []

    def init(address=None, **others):
        asked.append(address)
        if address == "auto":
            raise ConnectionError("no answer from the address that was left behind")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    assert connect() is ray
    assert asked == ["auto", "local"]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # one that was named is never left for another
    with pytest.raises(UserError, match="RAY_AUTH_MODE=token"):
        connect()
