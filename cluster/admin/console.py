"""The routes of the operator's console: its page, which anybody who reaches the port may load, and what it shows.

The page holds no data. Its files are listed once, so that no path of a request ever reaches the file system.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import Response

from cluster.admin.control import ExpertControl
from cluster.admin.paths import CONSOLE, CONSOLE_FILE, MAP, REGISTRY, STATE
from cluster.api.paths import PUBLIC_PATHS
from ops.telemetry.plain import plain_registry

PACKAGE, FOLDER, PAGE = "ops", "console/static", "index.html"
CALL_TIMEOUT_S = 10.0
MEDIA_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class ConsoleRoutes:
    """The page and its files without a token; state, map and registry with one."""

    def __init__(self, control: ExpertControl) -> None:
        self._control = control
        self._files = console_files()

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to the app itself, so that `app.routes` lists every one."""
        for path, route in (
            (CONSOLE, self.page),
            (CONSOLE_FILE, self.file),
            (STATE, self.state),
            (MAP, self.map),
            (REGISTRY, self.registry),
        ):
            app.add_api_route(path, route, methods=["GET"], response_model=None)

    async def page(self) -> Response:
        """The page."""
        return self._answer(PAGE)

    async def file(self, name: str) -> Response:
        """One of its files. Raises HTTPException."""
        return self._answer(name)

    async def state(self) -> dict[str, Any]:
        """Everything that changes."""
        async with asyncio.timeout(CALL_TIMEOUT_S):
            return await self._control.operator_state()

    async def map(self) -> dict[str, Any]:
        """Which expert is in which slot."""
        async with asyncio.timeout(CALL_TIMEOUT_S):
            return await self._control.map_document()

    async def registry(self) -> dict[str, Any]:
        """What every metric is."""
        return plain_registry()

    def _answer(self, name: str) -> Response:
        content = self._files.get(name)
        if content is None:
            raise HTTPException(404)
        media_type = MEDIA_TYPES[name[name.rindex(".") :]]
        return Response(content, media_type=media_type, headers=HEADERS)


def console_files() -> Mapping[str, bytes]:
    """The page's files by name."""
    folder = files(PACKAGE).joinpath(FOLDER)
    found = (file for file in folder.iterdir() if file.is_file())
    return {file.name: file.read_bytes() for file in found if file.name[file.name.rfind(".") :] in MEDIA_TYPES}


def is_public(path: str) -> bool:
    """Whether a path needs no token."""
    return path in (CONSOLE, *PUBLIC_PATHS) or path.startswith(CONSOLE_FILE.partition("{")[0])
