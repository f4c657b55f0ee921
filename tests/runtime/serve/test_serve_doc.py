"""What `docs/serve.md` says can be asked for is what the server answers, and the other way round."""

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from runtime.serve.routes import about, realtime, sessions, videos

pytestmark = pytest.mark.cpu

TEXT = (Path(__file__).parents[3] / "docs" / "serve.md").read_text()
ROUTES = {
    (method, re.sub(r"\{\w+\}", "{id}", route.path))
    for part in (about, realtime, sessions, videos)
    for route in part.router.routes
    for method in getattr(route, "methods", None) or ("WS",)
}
NAMED = set(re.findall(r"`(GET|HEAD|POST|PUT|DELETE|WS) (/[\w/{}]+)`", TEXT))


def test_every_request_that_is_named_has_a_route():
    assert len(NAMED) > 14
    assert NAMED <= ROUTES
    for path in re.findall(r"`(/(?:v1|health|metrics)[\w/]*)`", TEXT):
        assert ("GET", path) in ROUTES


def test_every_route_of_the_interface_is_named():
    ours = {(method, path) for method, path in ROUTES if path.startswith("/v1/")}
    assert {("GET", "/v1/models")} == ours - NAMED  # which stands without its method


def test_the_commands_that_move_a_stream_ask_for_routes():
    lines = [shlex.split(line) for line in TEXT.splitlines() if line.startswith("curl ")]
    assert len(lines) == 2
    for words in lines:
        (url,) = (word for word in words if word.startswith("localhost:"))
        method = words[words.index("-X") + 1] if "-X" in words else "GET"
        assert (method, "/" + url.partition("/")[2].replace("$ID", "{id}")) in ROUTES
