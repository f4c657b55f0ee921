"""`vmla-run` in processes of its own that can be killed, without waiting for torch each time.

One process loads everything and computes nothing; each run is forked from it.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

SERVER = """
import json, os, signal, sys
import av, torch
import runtime.session.replay, runtime.session.generate, runtime.outputs.mp4, runtime.outputs.png
from runtime.cli.run import main
for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        _, status = os.waitpid(order["wait"], 0)
        answer = os.waitstatus_to_exitcode(status)
    elif (answer := os.fork()) == 0:
        said = os.open(order["said"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(said, 1), os.dup2(said, 2)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may have ignored it (nohup)
        exec(order["before"])
        main(order["run"])
    print(json.dumps(answer), flush=True)
"""


class Commands:
    """A context manager that starts runs."""

    def __init__(self, folder):
        """`folder` takes what the runs say."""
        self._folder, self._count = folder, 0

    def __enter__(self):
        path = os.pathsep.join([str(Path.cwd()), *sys.path])
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_):
        self._server.stdin.close()
        self._server.wait(600)
        self._server.stdout.close()

    def start(self, *arguments, before=""):
        """A run of `vmla-run` with these arguments; `before` it, its process runs this code."""
        self._count += 1
        said = self._folder / f"said-{self._count}.txt"
        said.touch()  # one that is killed at once says nothing
        order = {"run": [str(a) for a in arguments], "said": str(said), "before": before}
        return Run(self, self.ask(order), said)

    def ask(self, order):
        """The server's answer to `order`."""
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


class Run:
    """A run of the command."""

    def __init__(self, commands, pid, said):
        self._commands, self.pid, self._said = commands, pid, said
        self.status = None

    def running(self):
        """Whether it has not ended; one that has is a zombie until `wait`."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"

    def said(self):
        """All that it has said so far."""
        return self._said.read_text()

    def send(self, number=signal.SIGKILL):
        """Send a signal."""
        os.kill(self.pid, number)

    def wait(self):
        """Exit status, negative for a signal, and all it said."""
        return self._commands.ask({"wait": self.pid}), self.said()
