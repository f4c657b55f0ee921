"""`vmla-serve`: live video over a network."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export.engine.manifest import EAGER, engine_store
from plugins.errors import UserError, missing_extra
from runtime.serve.edge.settings import LOOPBACK
from vmla.cli.command import OneLineCommand
from vmla.cli.common_options import FiniteRange
from vmla.cli.options.choices import Choice
from vmla.cli.options.config_file import config_option
from vmla.cli.options.device import device_option, dtype_option, text_device_option
from vmla.cli.options.float8 import cache_option, precision_option
from vmla.cli.stopping import Stop
from vmla.cli.terminal import say

if TYPE_CHECKING:
    from runtime.planning.job import Job
    from runtime.serve.edge.settings import ServeSettings

GROUPS = {
    "What makes the videos": ("checkpoint", "engine", "decoder", "layout", "steps", "device",
                              "text_device", "dtype", "precision", "cache", "compiled", "threads",
                              "memory"),
    "Who reaches it": ("host", "port", "name", "api_key", "no_auth", "allow_origin"),
    "What becomes of streams": ("store", "sessions_per_replica", "lease", "keep", "save_every"),
    "Several servers": ("shared", "reached_at", "ray", "replicas", "cpus_per_replica"),
}  # fmt: skip
LEVELS = ("debug", "info", "warning", "error")
LIKE_RUN = (
    "checkpoint", "layout", "steps", "device", "text_device", "dtype", "precision", "cache", "compiled",
    "decoder", "threads",
)  # fmt: skip
"""Options that mean the same as for `vmla-run`, and are passed on unchanged."""
MOST_KEYS = 2**16
"""The most bytes in a file of keys."""


@click.command(cls=OneLineCommand, groups=GROUPS)
@config_option
@click.option(
    "--checkpoint", help="Checkpoint folder or shipped model (default: the engine's own, else sprites)."
)
@click.option("--engine", type=click.Path(path_type=Path),
              help="Engine folder, or eager (default: one of your own that fits, else eager).")  # fmt: skip
@click.option("--decoder", type=click.Path(path_type=Path), help="File of TAEHV weights to decode with.")
@click.option("--layout", type=Choice(["mla", "mha"]),
              help="Attention layout that the checkpoint must have.")  # fmt: skip
@click.option("--steps", type=int, help="Number of denoising steps (default: the checkpoint's own).")
@device_option(auto="the engine's, else a GPU if there is one, else the CPU")
@text_device_option()
@dtype_option(fastest=False)
@precision_option()
@cache_option()
@click.option("--compile/--no-compile", "compiled", default=None,
              help="Compile the blocks on a GPU (default: if the longest stream repays it).")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1),
              help="Number of CPU threads, a quarter of which decode (default: 2, so that a seed's video "
              "does not depend on the machine's cores).")  # fmt: skip
@click.option(
    "--memory", help="Memory budget for weights and all streams, e.g. 8GiB (default: all free memory)."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True,
              help="Port to listen on; 0 picks a free one.")  # fmt: skip
@click.option("--store", type=click.Path(file_okay=False, path_type=Path), default=Path("streams"),
              show_default=True, help="Folder that keeps the streams and jobs.")  # fmt: skip
@click.option("--shared", is_flag=True,
              help="Share --store with other servers; each continues the others' streams.")  # fmt: skip
@click.option("--reached-at", metavar="URL",
              help="URL for servers that share the store (default: made of --host and --port).")  # fmt: skip
@click.option("--ray", is_flag=True, help="Serve from replicas on the machines of a Ray cluster.")
@click.option("--replicas", metavar="LEAST[:MOST]",
              help="Number of replicas for --ray (default: as many as there is room for).")  # fmt: skip
@click.option("--cpus-per-replica", type=click.IntRange(min=1),
              help="CPUs that --ray reserves for each replica (default: --threads).")  # fmt: skip
@click.option("--sessions-per-replica", type=click.IntRange(min=1), default=64, show_default=True,
              help="Most streams in memory at once; with --ray, in each replica.")  # fmt: skip
@click.option("--name", help="Model name that clients use (default: the checkpoint's).")
@click.option("--api-key", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="File of API keys, one on each line; a request must carry one of them.")  # fmt: skip
@click.option("--no-auth", is_flag=True, help="Serve requests that carry no API key.")
@click.option("--allow-origin", multiple=True, help="Origin whose pages may use the server; may be repeated.")
@click.option("--lease", type=FiniteRange(min=0, min_open=True), default=30.0, show_default=True,
              help="Seconds that a stream without viewers stays in memory.")  # fmt: skip
@click.option("--keep", type=FiniteRange(min=0, min_open=True), default=24.0, show_default=True,
              help="Hours that an unused stream or job stays on disk.")  # fmt: skip
@click.option("--save-every", type=FiniteRange(min=0), default=5.0, show_default=True,
              help="Seconds between two saves of a stream's state.")  # fmt: skip
@click.option("--trace-to", metavar="URL",
              help="OpenTelemetry collector to send traces to (OTLP over HTTP), such as "
              "http://localhost:4318/v1/traces.")  # fmt: skip
@click.option("--log-level", type=Choice(LEVELS), default="info", show_default=True,
              help="Lowest level that is logged.")  # fmt: skip
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """Serve live video, sessions and jobs over HTTP and WebSocket, with a page to watch them."""
    keys = _keys(options)
    _check_sharing(options)
    _check_origins(options["allow_origin"])
    try:
        import fastapi  # noqa: F401
        import httpx  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise missing_extra(error.name or "fastapi", "serve") from error
    if options["ray"]:
        from runtime.cli.cluster.serve import serve_ray

        serve_ray(options, job_of, partial(settings_of, keys=keys), context.ensure_object(Stop))
        return
    _serve(options, keys, context.ensure_object(Stop))


def _check_sharing(options: dict[str, Any]) -> None:
    """Refuse options for several servers if there is only one."""
    for name in ("replicas", "cpus_per_replica"):
        if options[name] is not None and not options["ray"]:
            raise click.UsageError(f"--{name.replace('_', '-')} is for --ray; leave it out")
    if options["ray"] and (options["shared"] or options["reached_at"] is not None):
        raise click.UsageError("replicas of --ray share the store: leave out --shared and --reached-at")
    if options["reached_at"] is not None and not options["shared"]:
        raise click.UsageError("--reached-at is for --shared; leave it out")


def _check_origins(origins: tuple[str, ...]) -> None:
    """Refuse what no browser sends as an origin: its pages would be refused later, without an explanation."""
    for one in origins:
        if re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@*A-Z\s]+", one) is None:
            raise click.UsageError(
                f"--allow-origin {one}: write scheme, host and port alone, such as https://example.org"
            )


def _keys(options: dict[str, Any]) -> tuple[str, ...]:
    """The API keys of which a request must carry one; empty if none is needed.

    Raises:
        UserError: if a key is unsuitable, or other machines could reach the server without one although
            --no-auth was not given.
    """
    if options["no_auth"] and options["api_key"] is not None:
        raise click.UsageError("--no-auth lets anyone in; leave out --api-key")
    if options["api_key"] is not None:
        keys = tuple(line.strip() for line in _text_of(options["api_key"]).splitlines() if line.strip())
        if not keys or not all(len(key) >= 16 and key.isprintable() for key in keys):
            mend = "needs keys of at least 16 printable characters, one on each line"
            raise UserError(f"{options['api_key']} {mend}")
        return keys
    if options["host"] not in LOOPBACK and not options["no_auth"]:
        raise UserError(
            f"other machines can reach {options['host']}; give a file of keys with --api-key, "
            "or let anyone in with --no-auth"
        )
    return ()


def _text_of(path: Path) -> str:
    """The text of a file of keys, which may be a pipe from a program that keeps secrets.

    Raises:
        UserError: if it is not UTF-8, or larger than `MOST_KEYS`.
    """
    with path.open("rb") as file:
        content = file.read(MOST_KEYS + 1)
    if len(content) > MOST_KEYS:
        raise UserError(f"{path} has more than {MOST_KEYS:,} bytes, which no file of keys needs")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start} cannot be read") from error


def _serve(options: dict[str, Any], keys: tuple[str, ...], stop: Stop) -> None:
    """Serve until a signal comes; by then the states of all streams are on disk."""
    from runtime.device.memory import allowed_bytes
    from runtime.serve.app import create_app
    from runtime.serve.disk.store import saved_streams_notice
    from runtime.serve.edge.logs import log_to_stderr
    from runtime.serve.edge.tracing import traced_to
    from runtime.serve.listen import open_socket, server_for, url_of

    job = job_of(options)
    settings = settings_of(options, job, keys=keys)
    log_to_stderr(options["log_level"])
    tracing = None if options["trace_to"] is None else traced_to(options["trace_to"])
    listening = open_socket(settings)
    try:
        url = url_of(listening)
        if options["shared"]:
            settings = replace(settings, shared=_reached_at(options, url))
        app = create_app(job, settings, memory=allowed_bytes(options["memory"], job.device), tracing=tracing)
        say(*job.what_runs(), f"page: {url}/")
        streams = app.state.server.streams
        server = server_for(app, settings, stop, drain=streams.drain if options["shared"] else None)
        stop.last_words = lambda: [saved_streams_notice(settings.store)] if any(streams) else []
        with stop.polled(), suppress(SystemExit):  # uvicorn raises it if it cannot start
            server.run(sockets=[listening])
        if not server.started:
            raise app.state.failure or UserError("the server could not start; its log says why")
    finally:
        listening.close()
    if stop.is_set():
        say(*stop.parting(f"stopped by {stop.name}"), err=True)
    sys.exit(stop.status)


def job_of(options: dict[str, Any]) -> Job:
    """A job for the model that `options` name; its prompt and length stand in for those of any stream."""
    from runtime.planning.request import prepare
    from runtime.prompts.sources import FixedPrompts
    from runtime.serve.edge.settings import Limits

    engine = options["engine"]
    same = {name: options[name] for name in LIKE_RUN}
    job, _ = prepare(
        FixedPrompts("a video"), seconds=Limits().stream_seconds,
        engine=None if engine == Path(EAGER) else engine, engines=engine_store() if engine is None else None,
        **same,
    )  # fmt: skip
    return job


def settings_of(options: dict[str, Any], job: Job, *, keys: tuple[str, ...]) -> ServeSettings:
    """The settings of the server, from the command's `options` and the `job` of its model."""
    from runtime.serve.edge.settings import Limits, ServeSettings

    return ServeSettings(
        store=options["store"].absolute(), name=options["name"] or job.checkpoint.folder.resolve().name,
        host=options["host"], port=options["port"], api_keys=keys, origins=options["allow_origin"],
        lease_seconds=options["lease"], retention_seconds=3600 * options["keep"],
        save_every=options["save_every"],
        limits=Limits(resident=options["sessions_per_replica"]),
    )  # fmt: skip


def _reached_at(options: dict[str, Any], url: str) -> str:
    """The URL at which servers that share the store reach this one.

    Raises:
        UsageError: if it listens at all addresses, and no URL is given.
    """
    if options["reached_at"] is not None:
        return str(options["reached_at"]).rstrip("/")
    if options["host"] in ("0.0.0.0", "::"):
        raise click.UsageError("--shared on all addresses needs a URL for the others; add --reached-at URL")
    return url


if __name__ == "__main__":
    main()
