"""How a server ends: by the command's own mechanism for signals, and not by uvicorn's."""

import os
import signal
import threading

import pytest
from fastapi import FastAPI
from kit.serving import settings_for, wait_for

from runtime.serve.listen import open_socket, server_for
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
