"""What stands before the routes: keys, ids, body size, number of requests; and what happens when the client leaves."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import Route

from actors.messages import GenerateRequest
from cluster.api.app import create_app
from cluster.api.auth import KeyFile, parse_keys
from cluster.api.paths import PUBLIC_PATHS
from cluster.api.scripted import ScriptedEngine, Step
from cluster.api.served_model import ServedModel, load_served_model
from cluster.api.settings import ApiSettings
from tests.fakes.api import MODEL_NAME, api_client, drive, tell, write_model_folder

COMPLETIONS = "/v1/completions"
BODY = {"model": MODEL_NAME, "prompt": "Hi"}
KEY = "sk-good-key"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> ServedModel:
    return load_served_model(folder)


@pytest.fixture
def engine(model: ServedModel) -> ScriptedEngine:
    return ScriptedEngine(lambda request: tell(model.tokenizer.encode("x")))


def new_app(folder: Path, engine: ScriptedEngine, **settings: Any) -> FastAPI:
    return create_app(ApiSettings(checkpoint=folder, model_name=MODEL_NAME, **settings), engine)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def api_routes(app: FastAPI) -> list[tuple[str, str]]:
    """Method and path of everything that can be reached."""
    client_routes = [route for route in app.routes if isinstance(route, Route)]
    return [(method, route.path) for route in client_routes for method in sorted(route.methods or ())]


async def test_every_route_needs_the_key(folder: Path, engine: ScriptedEngine, tmp_path: Path) -> None:
    """Walks the app's own routes with no key, wrong keys and malformed Hosts: 401 everywhere but on public paths."""
    (tmp_path / "keys").write_text(KEY)
    app = new_app(folder, engine, api_keys_file=tmp_path / "keys")
    paths = {path for _, path in api_routes(app)}
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/version"} <= paths
    hosts = ["api", "x/health?", "api/health#", "", "api\\@/health", "/health"]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:
        for method, path in api_routes(app):
            for host in hosts:
                for headers in ({}, bearer("wrong"), bearer(""), {"authorization": KEY}):
                    answer = await client.request(method, path, headers={"host": host, **headers})
                    assert (answer.status_code == 401) == (path not in PUBLIC_PATHS), (method, path, host)
        unknown = await client.get("/nothing")
    assert unknown.status_code == 401
    assert unknown.json()["error"]["code"] == "invalid_api_key"
    assert unknown.headers["www-authenticate"] == "Bearer"
    assert engine.requests == []


@pytest.mark.parametrize(
    ("path", "is_public"),
    [("/health", True), ("/ready", True), ("/health/", False), ("//health", False), ("/v1/../health", False)],
)
async def test_public_paths_are_exact(
    path: str, is_public: bool, folder: Path, engine: ScriptedEngine, tmp_path: Path
) -> None:
    """Paths that only look like a public one need the key."""
    (tmp_path / "keys").write_text(KEY)
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b"", "root_path": ""}
    await new_app(folder, engine, api_keys_file=tmp_path / "keys")(scope, receive, send)
    assert (sent[0]["status"] != 401) == is_public


async def test_good_keys_pass(folder: Path, engine: ScriptedEngine, tmp_path: Path) -> None:
    """A plain and a hashed key both work, the digest itself is no key."""
    digest = hashlib.sha256(b"sk-hashed").hexdigest()
    (tmp_path / "keys").write_text(f"# team a\n{KEY}\n\nsha256:{digest}\n")
    async with api_client(folder, engine, api_keys_file=tmp_path / "keys") as client:
        statuses = [
            (await client.post(COMPLETIONS, json=BODY, headers=bearer(key))).status_code
            for key in (KEY, "sk-hashed", digest, f"sha256:{digest}", "# team a")
        ]
    assert statuses == [200, 200, 401, 401, 401]


async def test_two_authorization_headers_are_refused(folder: Path, engine: ScriptedEngine, tmp_path: Path) -> None:
    """Which of two would count is a guess; neither does."""
    (tmp_path / "keys").write_text(KEY)
    headers = [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")]
    async with api_client(folder, engine, api_keys_file=tmp_path / "keys") as client:
        assert (await client.get("/version", headers=headers)).status_code == 401


def test_keys_rotate_without_restart(tmp_path: Path) -> None:
    """A changed file takes effect at once; a broken one allows nobody until it is repaired."""
    path = tmp_path / "keys"
    path.write_text("old-key\n")
    keys = KeyFile(path)
    assert keys.allows(b"old-key")
    for content, allowed in [("new-key\n", b"new-key"), ("two words\n", None), ("back-again\n", b"back-again")]:
        path.write_text(content)
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9))
        assert not keys.allows(b"old-key")
        assert allowed is None or keys.allows(allowed)
    path.unlink()
    assert not keys.allows(b"back-again")


@pytest.mark.parametrize("content", [None, "", "# only a comment\n", "sha256:12\n", "kéy\n", "a b\n"])
async def test_an_unusable_key_file_allows_nobody(
    content: str | None, folder: Path, engine: ScriptedEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Absent, empty or malformed: every request is a 401, health still answers, and the log says so without the key."""
    if content is not None:
        (tmp_path / "keys").write_text(content)
    async with api_client(folder, engine, api_keys_file=tmp_path / "keys") as client:
        keys = ["", "sha256:12", "a b", "None"]
        statuses = {(await client.post(COMPLETIONS, json=BODY, headers=bearer(key))).status_code for key in keys}
        assert (await client.get("/health")).status_code == 200
    assert statuses == {401}
    assert "no request is allowed" in caplog.text
    assert "a b" not in caplog.text


def test_key_file_errors_name_the_line() -> None:
    """The operator learns where the mistake is, the log does not learn the key."""
    with pytest.raises(ValueError, match="line 3") as caught:
        parse_keys("# keys\ngood\nbad key\n")
    assert "bad key" not in str(caught.value)


async def test_websockets_are_refused(folder: Path, engine: ScriptedEngine, tmp_path: Path) -> None:
    """There is no way around the key by another protocol."""
    (tmp_path / "keys").write_text(KEY)
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    app = new_app(folder, engine, api_keys_file=tmp_path / "keys")
    await app({"type": "websocket", "path": "/health", "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_request_ids_are_ours(folder: Path, engine: ScriptedEngine) -> None:
    """The engine never sees a client's id; the answer has both, the client's only if it is harmless. An x-request-id
    may be the proxy's, which is no business of the client."""
    async with api_client(folder, engine) as client:
        good = await client.post(COMPLETIONS, json=BODY, headers={"x-client-request-id": "mine-1"})
        bad = await client.post(COMPLETIONS, json=BODY, headers={"x-client-request-id": "a<b>"})
        proxied = await client.post(COMPLETIONS, json=BODY, headers={"x-request-id": "proxy-1"})
    assert good.headers["x-client-request-id"] == "mine-1"
    assert "x-client-request-id" not in bad.headers
    assert "x-client-request-id" not in proxied.headers
    assert proxied.headers["x-request-id"] != "proxy-1"
    assert good.json()["id"] == f"cmpl-{good.headers['x-request-id']}"
    assert engine.requests[0].request_id == f"{good.headers['x-request-id']}-0"
    assert re.fullmatch(r"[0-9a-f]{32}", bad.headers["x-request-id"])


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_long_bodies_are_refused(is_chunked: bool, folder: Path, engine: ScriptedEngine) -> None:
    """413 whether the length is announced or only found out; one byte less is read."""
    limit = 2048
    exact = json.dumps({**BODY, "user": ""}).encode()
    exact = json.dumps({**BODY, "user": "u" * (limit - len(exact))}).encode()

    async def chunks(data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), 100):
            yield data[start : start + 100]

    def content(data: bytes) -> Any:
        return chunks(data) if is_chunked else data

    async with api_client(folder, engine, limits={"max_body_bytes": limit}) as client:
        fits = await client.post(COMPLETIONS, content=content(exact))
        over = await client.post(COMPLETIONS, content=content(exact + b" "))
    assert (len(exact), fits.status_code, over.status_code) == (limit, 200, 413)
    assert over.json()["error"]["code"] == "body_too_large"
    assert len(engine.requests) == 1


@pytest.mark.parametrize("declared", ["9" * 30, "9999999999"])
async def test_absurd_content_lengths(declared: str, folder: Path, engine: ScriptedEngine) -> None:
    """A length that lies is refused before anything is read."""
    async with api_client(folder, engine) as client:
        answer = await client.post(COMPLETIONS, content=b"{}", headers={"content-length": declared})
    assert answer.status_code == 413


async def test_a_body_that_never_comes(folder: Path, engine: ScriptedEngine) -> None:
    """A client that sends half a body and waits gets a 408."""
    never = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield b"{"
        await never.wait()

    async with api_client(folder, engine, limits={"body_timeout_s": 0.05}) as client:
        answer = await client.post(COMPLETIONS, content=half())
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "request_timeout")


async def test_too_many_requests(folder: Path, model: ServedModel) -> None:
    """Beyond the limit a request gets 429 with Retry-After at once; health gets through; places are given back."""
    release, asked = asyncio.Event(), asyncio.Semaphore(0)
    tokens = tell(model.tokenizer.encode("x"))

    def script(request: GenerateRequest) -> list[Step]:
        asked.release()
        return [release, *tokens]

    engine = ScriptedEngine(script)
    async with api_client(folder, engine, limits={"max_concurrent_requests": 2, "retry_after_s": 3}) as client:
        running = [asyncio.create_task(client.post(COMPLETIONS, json={**BODY, "stream": s})) for s in (False, True)]
        for _ in running:
            await asked.acquire()
        refused = await client.post(COMPLETIONS, json=BODY)
        healthy = await client.get("/health")
        release.set()
        answered = [(await task).status_code for task in running]
        again = await client.post(COMPLETIONS, json=BODY)
    assert (refused.status_code, refused.headers["retry-after"]) in ((429, "3"), (429, "4"))
    assert (healthy.status_code, answered, again.status_code) == (200, [200, 200], 200)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("num_told", [0, 2])
async def test_leaving_clients_abort_their_sequences(
    stream: bool, num_told: int, folder: Path, model: ServedModel
) -> None:
    """When the client goes away, before or after the first token, every one of its sequences is closed at once."""
    never, asked = asyncio.Event(), asyncio.Event()
    tokens = tell(model.tokenizer.encode("one two three four"))[:num_told]

    def script(request: GenerateRequest) -> list[Step]:
        if request.request_id.endswith("-1"):
            asked.set()
        return [*tokens, never]

    engine = ScriptedEngine(script)
    leave = asyncio.Event()
    body = json.dumps({**BODY, "n": 2, "stream": stream}).encode()
    request = asyncio.create_task(drive(new_app(folder, engine), body, COMPLETIONS, leave))
    async with asyncio.timeout(5):
        await asked.wait()
        leave.set()
        await engine.abort_seen.wait()
        sent = await request
    assert sorted(engine.aborted) == sorted(asked_for.request_id for asked_for in engine.requests)
    assert len(engine.aborted) == 2
    assert all(message.get("status", 200) in (200, 499) for message in sent)


async def test_cancelled_requests_abort_their_sequences(folder: Path) -> None:
    """A server that cancels the request's task, as Ray Serve does, closes the sequence as well."""
    never, asked = asyncio.Event(), asyncio.Event()

    def script(request: GenerateRequest) -> list[Step]:
        asked.set()
        return [never]

    engine = ScriptedEngine(script)
    body = json.dumps({**BODY, "stream": True}).encode()
    request = asyncio.create_task(drive(new_app(folder, engine), body, COMPLETIONS, asyncio.Event()))
    async with asyncio.timeout(5):
        await asked.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    assert engine.aborted == [engine.requests[0].request_id]


async def test_a_client_that_stops_reading_counts_as_gone(
    folder: Path, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that does not end aborts the sequence instead of holding it for ever."""
    monkeypatch.setattr("cluster.api.stream.WRITE_TIMEOUT_S", 0.05)
    never = asyncio.Event()
    engine = ScriptedEngine(lambda request: [*tell(model.tokenizer.encode("one two"))[:1], never])
    app = new_app(folder, engine)

    async def deaf(scope: Any, receive: Any, send: Any) -> None:
        async def send_or_hang(message: Any) -> None:
            if message["type"] == "http.response.body" and message.get("more_body"):
                await never.wait()
            await send(message)

        await app(scope, receive, send_or_hang)

    body = json.dumps({**BODY, "stream": True}).encode()
    async with asyncio.timeout(5):
        await drive(deaf, body, COMPLETIONS, asyncio.Event())
    assert engine.aborted == [engine.requests[0].request_id]


async def test_a_client_that_leaves_within_its_body(
    folder: Path, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a body and then nobody: no engine call, and no error in the log, for it is not ours."""
    sent: list[Any] = []

    async def cut(scope: Any, receive: Any, send: Any) -> None:
        messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

        async def receive_cut() -> Any:
            return next(messages)

        await new_app(folder, engine)(scope, receive_cut, send)

    sent = await drive(cut, b"", COMPLETIONS, asyncio.Event())
    assert sent[0]["status"] == 499
    assert engine.requests == []
    assert caplog.records == []


async def test_bugs_are_logged_once_and_not_shown(
    folder: Path, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that nothing expects is a plain 500 with our id, under which the log has the trace, once."""
    app = new_app(folder, engine)

    @app.get("/bug")
    async def bug() -> None:
        raise KeyError("secret at 0x7f00")

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:
        answer = await client.get("/bug")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    (record,) = caplog.records
    assert answer.headers["x-request-id"] in record.getMessage()
    assert record.exc_info is not None
