"""Keeps other websites' scripts out: an operator's browser can be made to send requests that the operator never wrote.

Knows nothing of tokens: it stands before them.
"""

from __future__ import annotations

import ipaddress
import re

from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.api.errors import error_response
from cluster.errors import ForeignRequest

_HOST = re.compile(r"(?P<name>[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_NAME_RULE = "The Host must be an IP address, localhost or admin.host: another name could be anybody's."
_ORIGIN_RULE = "Requests that another website's page sends are not answered."


class SameSiteMiddleware:
    """Answers 403 to a request for a name that is not ours (DNS rebinding), or from a page that is not ours (CSRF)."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        """host: the name or address that is listened on."""
        self._app = app
        self._names = {"localhost", host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
        else:
            await error_response(ForeignRequest(problem))(scope, receive, send)

    def _problem(self, scope: Scope) -> str | None:
        hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return _NAME_RULE
        # A browser names the page's origin; the scheme may be that of a proxy in between.
        if any(origin not in (f"http://{hosts[0]}", f"https://{hosts[0]}") for origin in origins):
            return _ORIGIN_RULE
        return None

    def _is_ours(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        return match is not None and (match["name"] in self._names or _is_address(match["name"].strip("[]")))


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").lower() for key, value in scope["headers"] if key == name]


def _is_address(text: str) -> bool:
    """Whether it is an IP address. No name server can make one lead elsewhere."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
