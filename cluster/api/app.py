"""Puts the HTTP application together: routes, error table, middlewares. Knows no gateway and no Ray."""

from __future__ import annotations

import asyncio
import time

from fastapi import FastAPI

from cluster.api.admission import Admission
from cluster.api.auth import AuthMiddleware, KeyFile
from cluster.api.engine import Engine
from cluster.api.errors import LastResortMiddleware, install_error_handlers
from cluster.api.limits import BodyLimitMiddleware, ConcurrencyMiddleware, RequestIdMiddleware
from cluster.api.metrics import ApiMetrics
from cluster.api.observation import ObservationMiddleware
from cluster.api.openai import OpenAiRoutes
from cluster.api.retry_after import RetryLine
from cluster.api.served_model import load_served_model
from cluster.api.settings import ApiSettings
from cluster.errors import NotReady
from ops.telemetry.meter import Meter, SilentMeter
from ops.telemetry.spec import Owner
from ops.telemetry.tracing import NO_TRACING, Tracing


def create_app(
    settings: ApiSettings, engine: Engine, *, meter: Meter | None = None, tracing: Tracing = NO_TRACING
) -> FastAPI:
    """The application for one checkpoint. Reads its tokenizer and template: about a second for the real one.

    meter: of the gateway; None records nothing. tracing: the caller closes it.
    Raises CheckpointError if they cannot be served. A key file that cannot be used is logged and allows nobody.
    """
    model = load_served_model(settings.checkpoint, settings.max_context_tokens)
    # No documentation routes, and no redirects, which would be built from a header the client chooses.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    OpenAiRoutes(settings, model, engine, created=int(time.time())).add_to(app)
    _add_operator_routes(app, settings, engine)
    admission = Admission(settings.limits.max_concurrent_requests, RetryLine(settings.limits.retry_after_s))
    install_error_handlers(app, admission.retry_after_s)
    _add_middlewares(app, settings, admission)
    # Outside of what may refuse a request, inside of what names it.
    app.add_middleware(ObservationMiddleware, metrics=ApiMetrics(meter or SilentMeter(Owner.GATEWAY)), tracing=tracing)
    app.add_middleware(RequestIdMiddleware)
    return app


def _add_operator_routes(app: FastAPI, settings: ApiSettings, engine: Engine) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """The gateway answers. Whether tokens flow is what /ready says."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """200 only when a token can be produced."""
        try:
            async with asyncio.timeout(settings.limits.ready_timeout_s):
                readiness = await engine.ready()
        except TimeoutError as error:
            raise NotReady("The engine does not say whether it is ready.") from error
        if not readiness.ready:
            raise NotReady(readiness.reason or "The cluster is starting.")
        return {"status": "ready"}

    @app.get("/version")
    async def version() -> dict[str, str]:
        """The version of this program. Not public: it tells an attacker what to try."""
        return {"version": settings.version}


def _add_middlewares(app: FastAPI, settings: ApiSettings, admission: Admission) -> None:
    """The last added is the outermost: what nothing else handles, key, place, body."""
    app.add_middleware(BodyLimitMiddleware, max_body_bytes=settings.limits.max_body_bytes)
    app.add_middleware(ConcurrencyMiddleware, admission=admission)
    if settings.api_keys_file is not None:
        app.add_middleware(AuthMiddleware, keys=KeyFile(settings.api_keys_file))
    app.add_middleware(LastResortMiddleware)
