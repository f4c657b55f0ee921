"""How a server ends: by the command's own mechanism for signals, and not by uvicorn's."""

import os
import signal
import threading

import pytest
from click.testing import CliRunner
from fastapi import FastAPI
from kit.processes.serving import RED, serving, settings_for, wait_for

from runtime.cli.serve import main
from runtime.serve.listen import StoppableServer, open_socket, server_for
from vmla.cli.stopping import Stop

pytestmark = pytest.mark.cpu


@pytest.fixture
def heeded():
    """SIGHUP is not ignored, as it is where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_it_once_and_tidily(tmp_path, number):
    """uvicorn's own handlers raised it once more at the end, which ended the process at once."""
    closed = []
    settings = settings_for(tmp_path)
    with open_socket(settings) as listening, Stop() as stop, stop.polled():
        app = FastAPI()
        app.router.on_shutdown.append(lambda: closed.append("states"))
        server = server_for(app, settings, stop)

        def send():
            wait_for(lambda: server.started)
            os.kill(os.getpid(), number)

        sender = threading.Thread(target=send)
        sender.start()
        server.run(sockets=[listening])
        sender.join()
        assert stop.status == 128 + number
    assert closed == ["states"]


def test_the_command_says_that_it_stopped_and_where_its_streams_are(checkpoint, tmp_path, monkeypatch):
    usual, store = StoppableServer.on_tick, tmp_path / "streams"

    async def on_tick(server, counter):
        if counter == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return await usual(server, counter)

    def stopped():
        words = ["--checkpoint", str(checkpoint), "--port", "0", "--store", str(store), "--threads", "1"]
        with monkeypatch.context() as patch:
            patch.setattr(StoppableServer, "on_tick", on_tick)
            result = CliRunner().invoke(main, [*words, "--log-level", "warning"])
        assert result.exit_code == 128 + signal.SIGTERM, result.output
        return result.stderr.splitlines()

    assert stopped() == ["stopped by SIGTERM"]
    with serving(checkpoint, store) as server:
        server.http.post("/v1/sessions", json={"prompt": RED, "seconds": 1})
    kept = f"streams are kept in {store}; run the same command again to continue them"
    assert stopped() == [f"stopped by SIGTERM; {kept}"]
