"""The application: access checks, routes and streams put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from fastapi import FastAPI

from runtime.planning.job import Job
from runtime.serve.disk.fence import Fence
from runtime.serve.disk.store import Store
from runtime.serve.edge import errors
from runtime.serve.edge.access import AccessChecks
from runtime.serve.edge.logs import silence_uvicorn
from runtime.serve.edge.metrics import Metrics
from runtime.serve.edge.origins import CrossOrigin
from runtime.serve.edge.settings import ServeSettings
from runtime.serve.edge.tracing import Tracing
from runtime.serve.routes import about, realtime, sessions, videos
from runtime.serve.routes.serving import Server
from runtime.serve.shared.peers import Peers, RelayMiddleware
from runtime.serve.shared.streams import SharedStreams
from runtime.serve.streams.table import Streams
from runtime.serve.streams.worker import Worker


def create_app(job: Job, settings: ServeSettings, *, memory: int, tracing: Tracing | None = None) -> FastAPI:
    """Load the model of `job`, and return the application that serves it within `memory` bytes.

    `tracing` traces its work and is closed at the end; None traces nothing.

    Raises:
        UserError: if it does not fit, or another server has the store.
    """
    tracing = Tracing() if tracing is None else tracing
    store, metrics = Store(settings.store, shared=settings.shared is not None), Metrics()
    settings = replace(settings, relay_key=store.relay_key)
    worker = Worker(job, memory=memory, most=settings.limits.resident)
    peers = None
    if settings.shared is None:
        streams = Streams(store, worker, settings, metrics, tracing)
    else:
        streams = SharedStreams(store, worker, settings, metrics, tracing, Fence(settings.shared))
        peers = Peers(streams, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await streams.start()
        except Exception as error:
            app.state.failure = error
            silence_uvicorn()  # whoever runs the server says what is wrong
            raise
        try:
            yield
        finally:
            await streams.close()
            await asyncio.to_thread(tracing.close)

    app = FastAPI(title="vmla-serve", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.failure = None
    """The exception because of which the application could not start."""
    app.state.server = Server(streams=streams, settings=settings, metrics=metrics, peers=peers)
    errors.install(app)
    for part in (about, sessions, videos, realtime):
        app.include_router(part.router)
    if peers is not None:
        app.add_middleware(RelayMiddleware, peers=peers)
    app.add_middleware(AccessChecks, settings=settings, metrics=metrics, tracing=tracing)
    app.add_middleware(CrossOrigin, origins=settings.origins)
    return app
