"""The operator's side of the admin route: one call, one answer, and an error that says what to do."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any

from cluster.errors import AdminUnreachable

TIMEOUT_S = 35.0


class AdminClient:
    """Speaks to one admin port."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}

    def call(self, method: str, path: str, body: object = None) -> Any:
        """The answer's JSON. Raises AdminUnreachable with the server's own sentence, or why there was no answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}{path}", data, self._headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise AdminUnreachable(_sentence(error)) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise AdminUnreachable(
                f"nobody answers at {self._url} ({reason}); is the cluster running, and is this its configuration?"
            ) from error


def _sentence(error: urllib.error.HTTPError) -> str:
    try:
        message = str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the answer was {error.code} {error.reason}"
    return f"{message} (admin.token_file is another cluster's?)" if error.code == 401 else message
