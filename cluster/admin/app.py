"""The routes of the operator's application. All but /health need the token; failures go to the one error table."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from cluster.admin.control import ExpertControl
from cluster.api.auth import AuthMiddleware, KeyFile
from cluster.api.errors import LastResortMiddleware, install_error_handlers
from cluster.api.limits import BodyLimitMiddleware, ConcurrencyMiddleware, RequestIdMiddleware
from cluster.errors import InvalidRequest

CALL_TIMEOUT_S = 30.0
MAX_BODY_BYTES = 64 * 1024
MAX_CONCURRENT_REQUESTS = 16
RETRY_AFTER_S = 1

Answer = TypeVar("Answer")
BodyType = TypeVar("BodyType", bound=BaseModel)


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RebalanceBody(_Body):
    """dry_run: only say what would be done."""

    dry_run: bool = False


class PinBody(_Body):
    """ep_ranks: where the copies should be; null keeps them where they are."""

    ep_ranks: list[int] | None = None


class PauseBody(_Body):
    """paused: no rebalance begins by itself."""

    paused: bool


def create_admin_app(control: ExpertControl, token_file: Path) -> FastAPI:
    """The application. A token file that cannot be used is logged and allows nobody."""
    # No documentation routes, and no redirects, which would be built from a header the client chooses.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    AdminRoutes(control).add_to(app)
    install_error_handlers(app, RETRY_AFTER_S)
    # The last added is the outermost.
    app.add_middleware(BodyLimitMiddleware, max_body_bytes=MAX_BODY_BYTES)
    app.add_middleware(
        ConcurrencyMiddleware, max_concurrent_requests=MAX_CONCURRENT_REQUESTS, retry_after_s=RETRY_AFTER_S
    )
    app.add_middleware(AuthMiddleware, keys=KeyFile(token_file))
    app.add_middleware(LastResortMiddleware)
    app.add_middleware(RequestIdMiddleware)
    return app


class AdminRoutes:
    """Each reads as parse, order, answer. Layers are the model's numbers, dense layers counted."""

    def __init__(self, control: ExpertControl) -> None:
        self._control = control

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to the app itself, so that `app.routes` lists every one."""
        pin = "/admin/experts/{layer_id}/{logical_id}/pin"
        for path, route, method in (
            ("/health", self.health, "GET"),
            ("/admin/experts", self.experts, "GET"),
            ("/admin/experts/rebalance", self.rebalance, "POST"),
            (pin, self.pin, "PUT"),
            (pin, self.unpin, "DELETE"),
            ("/admin/balancer", self.pause, "PUT"),
        ):
            app.add_api_route(path, route, methods=[method], response_model=None)

    async def health(self) -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    async def experts(self) -> dict[str, Any]:
        """GET /admin/experts: load, copies, confidence, drift and rebalances."""
        return (await _in_time(self._control.expert_status())).to_dict()

    async def rebalance(self, request: Request) -> dict[str, Any]:
        """POST /admin/experts/rebalance."""
        body = await _parse(RebalanceBody, request)
        return asdict(await _in_time(self._control.rebalance(is_dry_run=body.dry_run)))

    async def pin(self, request: Request, layer_id: str, logical_id: str) -> dict[str, Any]:
        """PUT /admin/experts/{layer_id}/{logical_id}/pin."""
        body = await _parse(PinBody, request)
        ranks = None if body.ep_ranks is None else tuple(body.ep_ranks)
        place = _number(layer_id, "layer_id"), _number(logical_id, "logical_id")
        return asdict(await _in_time(self._control.pin(*place, ranks)))

    async def unpin(self, layer_id: str, logical_id: str) -> dict[str, Any]:
        """DELETE /admin/experts/{layer_id}/{logical_id}/pin."""
        place = _number(layer_id, "layer_id"), _number(logical_id, "logical_id")
        return asdict(await _in_time(self._control.unpin(*place)))

    async def pause(self, request: Request) -> dict[str, Any]:
        """PUT /admin/balancer."""
        body = await _parse(PauseBody, request)
        return asdict(await _in_time(self._control.set_paused(is_paused=body.paused)))


async def _in_time(call: Awaitable[Answer]) -> Answer:
    async with asyncio.timeout(CALL_TIMEOUT_S):
        return await call


async def _parse(kind: type[BodyType], request: Request) -> BodyType:
    """Raises InvalidRequest that names the first wrong field."""
    try:
        return kind.model_validate_json(await request.body() or b"{}")
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, details["loc"])) or "the body"
        raise InvalidRequest(f"{field}: {details['msg']}.", field) from None


def _number(text: str, name: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InvalidRequest(f"{name} must be a number, as in /admin/experts/3/17/pin.", name)
    return int(text)
