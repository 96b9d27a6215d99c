"""The operator's side of the admin route: one call, one answer, or an error that says what to do."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from http.client import HTTPMessage
from typing import IO, Any

from cluster.errors import AdminUnreachable, OrderRefused

TIMEOUT_S = 35.0  # longer than the server takes at most, so that it is the one to say what was late
MAX_ANSWER_BYTES = 64 * 2**20


class AdminClient:
    """Speaks to one admin port."""

    def __init__(self, url: str, token: str, timeout_s: float = TIMEOUT_S) -> None:
        self._url = url
        self._headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        self._timeout_s = timeout_s
        # The token is for this server alone: neither for a proxy that the environment names, nor for where it points.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)

    def call(self, method: str, path: str, body: object = None) -> Any:
        """The answer's JSON. Raises OrderRefused with the server's own sentence, AdminUnreachable where there was no
        answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}{path}", data, self._headers, method=method)
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                return json.loads(response.read(MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from error
        except (OSError, http.client.HTTPException) as error:
            raise AdminUnreachable(self._no_answer(getattr(error, "reason", error))) from error
        except ValueError as error:
            raise AdminUnreachable(f"what answers at {self._url} is not an admin route; see admin.port") from error

    def _refusal(self, error: urllib.error.HTTPError) -> OrderRefused | AdminUnreachable:
        if error.code == 401:
            return OrderRefused(f"{self._url} does not know this token: is admin.token_file another cluster's?")
        try:
            return OrderRefused(str(json.loads(error.read(MAX_ANSWER_BYTES))["error"]["message"]))
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            return AdminUnreachable(f"{self._url} answers {error.code}, and not as an admin route does; see admin.port")

    def _no_answer(self, reason: object) -> str:
        if isinstance(reason, TimeoutError):
            return f"no answer from {self._url} within {self._timeout_s:g} s"
        if isinstance(reason, ConnectionRefusedError):
            return (
                f"nobody listens at {self._url}: is the cluster running, is this its --config, and is this the "
                "coordinator's machine?"
            )
        return f"{self._url} cannot be reached: {reason}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        """Never."""
