"""What Serve's proxy sees of a request's headers, and a client of an answer's."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from starlette.middleware import Middleware

from cluster.config import ClusterConfig
from cluster.proxy_callback import ProxyHeaders, proxy_middlewares, with_one_id, without_steering
from cluster.resources import process_environment

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"


@pytest.mark.parametrize(
    "name",
    [
        b"x-request-timeout-seconds",
        b"X-Request-Disconnect-Disabled",
        b"x-session-id",
        b"serve_multiplexed_model_id",
        b"serve-multiplexed-model-id",
        b"x-serve-anything",
    ],
)
def test_steering_headers_never_reach_the_proxy(name: bytes) -> None:
    """By these a client could set its time-out, outlive its connection or choose a replica."""
    assert without_steering([(b"host", b"api"), (name, b"1")]) == [(b"host", b"api")]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([(b"x-request-id", b"a")], [(b"x-client-request-id", b"a")]),
        ([(b"X-Request-Id", b"a"), (b"x-client-request-id", b"b")], [(b"x-client-request-id", b"b")]),
        ([(b"x-client-request-id", b"b")], [(b"x-client-request-id", b"b")]),
        ([], []),
    ],
)
def test_a_clients_id_travels_under_its_own_name(given: Any, kept: Any) -> None:
    """So that the proxy makes an id, and the API still answers the client's."""
    assert without_steering(given) == kept


def test_the_first_id_of_an_answer_stays() -> None:
    """The gateway's: the proxy appends its own. An answer of the proxy itself keeps the proxy's."""
    assert with_one_id([(b"x-request-id", b"ours"), (b"a", b"b"), (b"X-Request-ID", b"rays")]) == [
        (b"a", b"b"),
        (b"x-request-id", b"ours"),
    ]
    assert with_one_id([(b"X-Request-ID", b"rays")]) == [(b"X-Request-ID", b"rays")]


async def test_the_middleware_cleans_both_ways() -> None:
    """The app behind it sees clean headers, the client one id; a lifespan passes untouched."""
    seen: list[Any] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        if scope["type"] == "http":
            ids = [(b"x-request-id", b"1"), (b"X-Request-ID", b"2")]
            await send({"type": "http.response.start", "status": 200, "headers": ids})

    async def receive() -> Any:
        return None

    async def send(message: Any) -> None:
        sent.append(message)

    lifespan = {"type": "lifespan"}
    await ProxyHeaders(app)(lifespan, receive, send)
    await ProxyHeaders(app)({"type": "http", "headers": [(b"x-session-id", b"1"), (b"a", b"b")]}, receive, send)
    assert seen[0] is lifespan
    assert seen[1]["headers"] == [(b"a", b"b")]
    assert sent == [{"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"1")]}]


def test_serve_takes_the_callback() -> None:
    """Ray's own loader, in a process that has the variable, finds our middleware at the path that we set."""
    path = process_environment(ClusterConfig.model_validate({"checkpoint": "/models/step"}))[VARIABLE]
    program = (
        f"import os; os.environ['{VARIABLE}'] = '{path}'\n"
        "from ray.serve._private.http_util import configure_http_middlewares as load\n"
        "from ray.serve.config import HTTPOptions\n"
        "print([middleware.cls.__name__ for middleware in load(HTTPOptions()).middlewares])"
    )
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert output.splitlines()[-1] == "['ProxyHeaders']"
    assert [type(middleware) for middleware in proxy_middlewares()] == [Middleware]
