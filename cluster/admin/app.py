"""The routes of the operator's application. All but /health and the console's page need the token; failures go to the
one error table."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from cluster.admin.console import ConsoleRoutes, is_public
from cluster.admin.control import ExpertControl
from cluster.admin.origin import SameSiteMiddleware
from cluster.admin.paths import BALANCER, EXPERTS, PIN, REBALANCE
from cluster.api.admission import Admission
from cluster.api.auth import AuthMiddleware, KeyFile
from cluster.api.errors import LastResortMiddleware, install_error_handlers, request_id_of
from cluster.api.limits import BodyLimitMiddleware, ConcurrencyMiddleware, RequestIdMiddleware
from cluster.api.retry_after import RetryLine
from cluster.errors import BodyTooSlow, InvalidRequest

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S = 30.0
BODY_TIMEOUT_S = 10.0
MAX_BODY_BYTES = 64 * 1024
MAX_CONCURRENT_REQUESTS = 16
MAX_RANKS = 4096
RETRY_AFTER_S = 1
DEFAULT_HOST = "127.0.0.1"

Answer = TypeVar("Answer")
BodyType = TypeVar("BodyType", bound=BaseModel)
EpRank = Annotated[int, Field(ge=0, lt=MAX_RANKS)]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RebalanceBody(_Body):
    """dry_run: only say what would be done."""

    dry_run: bool = False


class PinBody(_Body):
    """ep_ranks: where the copies should be; null keeps them where they are."""

    ep_ranks: Annotated[list[EpRank], Field(min_length=1, max_length=MAX_RANKS)] | None = None


class PauseBody(_Body):
    """paused: no rebalance begins by itself."""

    paused: bool


def create_admin_app(control: ExpertControl, token_file: Path, host: str = DEFAULT_HOST) -> FastAPI:
    """The application. A token file that cannot be used is logged and allows nobody. host: what is listened on."""
    # No documentation routes, and no redirects, which would be built from a header the client chooses.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    AdminRoutes(control).add_to(app)
    ConsoleRoutes(control).add_to(app)
    admission = Admission(MAX_CONCURRENT_REQUESTS, RetryLine(RETRY_AFTER_S))
    install_error_handlers(app, admission.retry_after_s)
    # The last added is the outermost.
    app.add_middleware(BodyLimitMiddleware, max_body_bytes=MAX_BODY_BYTES)
    app.add_middleware(ConcurrencyMiddleware, admission=admission)
    app.add_middleware(AuthMiddleware, keys=KeyFile(token_file), is_public=is_public)
    app.add_middleware(SameSiteMiddleware, host=host)
    app.add_middleware(LastResortMiddleware)
    app.add_middleware(RequestIdMiddleware)
    return app


class AdminRoutes:
    """Each reads as parse, order, answer. Layers are the model's numbers, dense layers counted."""

    def __init__(self, control: ExpertControl) -> None:
        self._control = control

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to the app itself, so that `app.routes` lists every one."""
        for method, path, route in (
            ("GET", "/health", self.health),
            ("GET", EXPERTS, self.experts),
            ("POST", REBALANCE, self.rebalance),
            ("PUT", PIN, self.pin),
            ("DELETE", PIN, self.unpin),
            ("PUT", BALANCER, self.pause),
        ):
            app.add_api_route(path, route, methods=[method], response_model=None)

    async def health(self) -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    async def experts(self) -> dict[str, Any]:
        """Load, copies, confidence, drift and rebalances."""
        return (await _in_time(self._control.expert_status())).to_dict()

    async def rebalance(self, request: Request) -> dict[str, Any]:
        """A Proposal: what begins, or in a dry run would."""
        body = await _parse(RebalanceBody, request)
        _log_order(request, body)
        return asdict(await _in_time(self._control.rebalance(is_dry_run=body.dry_run)))

    async def pin(self, request: Request, layer_id: str, logical_id: str) -> dict[str, Any]:
        """The ExpertStatus of the expert that is pinned."""
        place = _number(layer_id, "layer_id"), _number(logical_id, "logical_id")
        body = await _parse(PinBody, request)
        _log_order(request, body)
        ranks = None if body.ep_ranks is None else tuple(body.ep_ranks)
        return asdict(await _in_time(self._control.pin(*place, ranks)))

    async def unpin(self, request: Request, layer_id: str, logical_id: str) -> dict[str, Any]:
        """The ExpertStatus of the expert that is free again."""
        place = _number(layer_id, "layer_id"), _number(logical_id, "logical_id")
        _log_order(request)
        return asdict(await _in_time(self._control.unpin(*place)))

    async def pause(self, request: Request) -> dict[str, Any]:
        """The BalancerStatus."""
        body = await _parse(PauseBody, request)
        _log_order(request, body)
        return asdict(await _in_time(self._control.set_paused(is_paused=body.paused)))


async def _in_time(call: Awaitable[Answer]) -> Answer:
    """Raises TimeoutError."""
    async with asyncio.timeout(CALL_TIMEOUT_S):
        return await call


async def _parse(kind: type[BodyType], request: Request) -> BodyType:
    """Raises InvalidRequest that names the first wrong field, or BodyTooSlow. No body means the defaults."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            text = await request.body()
    except TimeoutError as error:
        raise BodyTooSlow("The body did not arrive in time.") from error
    try:
        return kind.model_validate_json(text or b"{}")
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, details["loc"]))
        raise InvalidRequest(f"{field or 'The body'}: {details['msg']}.", field or None) from None


def _number(text: str, name: str) -> int:
    """Raises InvalidRequest."""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InvalidRequest(f"{name} must be a number, as in {EXPERTS}/3/17/pin.", name)
    return int(text)


def _log_order(request: Request, body: BaseModel | None = None) -> None:
    """Who reads the log later must see what was done by hand. The path's numbers have been checked."""
    given = "" if body is None else body.model_dump_json()
    logger.info("order %s: %s %s %s", request_id_of(request.scope), request.method, request.scope["path"], given)
