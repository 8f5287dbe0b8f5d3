"""The ASGI application: routes, pages and metrics behind the gate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from debride import __version__

from .batching import Batcher
from .direct import Direct
from .gate import Gate
from .metrics import CONTENT_TYPE, Metrics
from .models import Models, Served
from .openapi import document
from .pages import page_routes
from .routes import Api
from .settings import ServeSettings


def create_app(models: Sequence[Served], settings: ServeSettings, *, quiet: bool = False) -> ASGIApp:
    """The application that serves `models`, an ASGI 3 callable that needs its lifespan events."""
    served, metrics = Models(models), Metrics()
    batchers = {(m.name, m.version): _batcher(m, settings, metrics) for m in models}
    api = Api(served, batchers, settings)

    @asynccontextmanager
    async def lifespan(_: Router) -> AsyncIterator[None]:
        for batcher in batchers.values():
            batcher.start()
        api.ready = True
        try:
            yield
        finally:
            api.ready = False
            await asyncio.gather(*(batcher.stop(settings.timeout) for batcher in batchers.values()))
            api.close()

    async def exposition(request: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    model_routes = api.routes()
    routes = [
        *model_routes,
        Route("/metrics", exposition, methods=["GET"]),
        *page_routes(document(list(served), token=bool(settings.token), version=__version__)),
    ]
    router = Router(routes, redirect_slashes=False, lifespan=lifespan)
    direct = Direct(router, {"infer": api.infer, "classify": api.classify}, model_routes)
    return Gate(direct, settings, metrics, quiet=quiet)


def _batcher(model: Served, settings: ServeSettings, metrics: Metrics) -> Batcher:
    batcher: Batcher

    def waiting() -> int:
        return batcher.waiting

    watch = metrics.model(
        model.name, model.version, sha256=model.sha256, provider=model.session.provider, waiting=waiting
    )
    batcher = Batcher(
        model.session.run,
        model.plan,
        max_batch=settings.max_batch,
        max_delay=settings.max_delay,
        limit=settings.queue,
        workers=settings.workers,
        watch=watch,
    )
    return batcher
