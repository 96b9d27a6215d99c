"""The operator's routes over real HTTP: who is answered, what each order becomes, what wrong input gets."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.admin import app as admin_app
from cluster.admin.app import MAX_BODY_BYTES, MAX_CONCURRENT_REQUESTS, create_admin_app
from cluster.admin.server import AdminServer
from cluster.balancer import Balancer
from cluster.balancing import BalancingConfig
from cluster.coordinator import Coordinator, CoordinatorSettings
from cluster.errors import InvalidOrder
from cluster.experts_status import ExpertTierStatus
from routing.experts import linear_expert_map
from tests.fakes.experts import TOKEN, ScriptedControl, admin_client, admin_server, write_token

ROUTES = [
    ("GET", "/admin/experts"),
    ("POST", "/admin/experts/rebalance"),
    ("PUT", "/admin/experts/3/17/pin"),
    ("DELETE", "/admin/experts/3/17/pin"),
    ("PUT", "/admin/balancer"),
    ("GET", "/admin/state"),
    ("GET", "/admin/map"),
    ("GET", "/admin/registry"),
]
PAGE = [("GET", "/"), ("GET", "/console/{name}")]


@pytest.fixture
def control() -> ScriptedControl:
    return ScriptedControl()


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return tmp_path / "admin.token"


@pytest.fixture
async def server(control: ScriptedControl, token_file: Path) -> AsyncIterator[AdminServer]:
    async with admin_server(control, token_file) as started:
        yield started


@pytest.fixture
async def client(server: AdminServer) -> AsyncIterator[httpx.AsyncClient]:
    async with admin_client(server) as made:
        yield made


def test_the_list_of_routes_is_whole(control: ScriptedControl, token_file: Path) -> None:
    """A route that is added must be added to the tests of who may use it. There are none for documentation."""
    app = create_admin_app(control, token_file)
    found = {(method, route.path) for route in app.routes for method in route.methods}  # type: ignore[attr-defined]
    generic = {(method, path.replace("/3/17/", "/{layer_id}/{logical_id}/")) for method, path in ROUTES}
    assert found == {*generic, *PAGE, ("GET", "/health")}


@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("GET", "/nothing"), ("GET", "/docs")])
async def test_nobody_without_the_token(
    method: str, path: str, client: httpx.AsyncClient, control: ScriptedControl
) -> None:
    """No token, a wrong one, the right one in another scheme: 401, and the coordinator hears nothing of it."""
    for value in ("", "Bearer wrong", f"Basic {TOKEN}", TOKEN):
        answer = await client.request(method, path, headers={"authorization": value})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert control.orders == []


async def test_health_is_open(client: httpx.AsyncClient) -> None:
    """A probe needs no token, and learns nothing."""
    answer = await client.get("/health", headers={"authorization": ""})
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_the_page_is_open_and_holds_no_data(client: httpx.AsyncClient, control: ScriptedControl) -> None:
    """Its files are served without the token, under a policy that lets no foreign script in; nothing else is."""
    page = await client.get("/", headers={"authorization": ""})
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    for name in re.findall(r"console/([\w.]+)", page.text):
        assert (await client.get(f"/console/{name}", headers={"authorization": ""})).status_code == 200
    for name in ("nothing.js", "..%2f__init__.py", "%2e%2e/demo.py", "index.html/"):
        assert (await client.get(f"/console/{name}", headers={"authorization": ""})).status_code in (401, 404)
    assert control.orders == []


async def test_the_registry_says_what_every_metric_is(client: httpx.AsyncClient) -> None:
    """For the page, which shows their help."""
    registry = (await client.get("/admin/registry")).json()
    assert registry["step35_step_seconds"]["kind"] == "histogram"


@pytest.mark.parametrize("content", [None, "", "two words\n"])
async def test_an_unusable_token_file_allows_nobody(
    content: str | None, server: AdminServer, token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Absent, empty, malformed: the log says so."""
    if content is None:
        os.unlink(token_file)
    else:
        write_token(token_file, content)
    async with admin_client(server) as client:
        assert (await client.get("/admin/experts")).status_code == 401
    assert f"no request is allowed: the API key file {token_file} cannot be used" in caplog.text


async def test_a_rotated_token_takes_effect_at_once(client: httpx.AsyncClient, token_file: Path) -> None:
    """The old one is worth nothing from the next request on."""
    assert (await client.get("/admin/experts")).status_code == 200
    write_token(token_file, "another")
    assert (await client.get("/admin/experts")).status_code == 401
    assert (await client.get("/admin/experts", headers={"authorization": "Bearer another"})).status_code == 200


async def test_the_status_arrives_whole(client: httpx.AsyncClient, control: ScriptedControl) -> None:
    """What the coordinator says is what the reader gets, through JSON and back."""
    answer = await client.get("/admin/experts")
    assert ExpertTierStatus.from_dict(answer.json()) == control.status


async def test_a_coordinator_without_load_can_be_looked_at(token_file: Path) -> None:
    """The real one, before its first request: every figure is a number that JSON knows."""
    expert_map = linear_expert_map(6, 16, 4, num_redundant_slots=1)
    coordinator = Coordinator(
        expert_map, lambda *_: "shm", CoordinatorSettings(), balancer=Balancer(BalancingConfig(), expert_map)
    )
    async with admin_server(coordinator, token_file) as server, admin_client(server) as client:
        status = ExpertTierStatus.from_dict((await client.get("/admin/experts")).json())
        refused = await client.post("/admin/experts/rebalance", json={})
        state, placed = (await client.get("/admin/state")).json(), (await client.get("/admin/map")).json()
    assert (status.ep_size, status.window_tokens) == (4, 0.0)
    assert refused.status_code == 409
    assert ExpertTierStatus.from_dict(state["experts"]) == status
    assert (len(state["load"]), len(placed["physical_to_logical"][0])) == (6, 20)


@pytest.mark.parametrize(
    ("method", "path", "body", "order", "answered"),
    [
        ("POST", "/admin/experts/rebalance", {"dry_run": True}, ("rebalance", True), {"is_dry_run": True}),
        ("POST", "/admin/experts/rebalance", {"dry_run": False}, ("rebalance", False), {"is_dry_run": False}),
        ("POST", "/admin/experts/rebalance", None, ("rebalance", False), {"num_moves": 12}),
        ("PUT", "/admin/experts/3/17/pin", {"ep_ranks": [0, 3]}, ("pin", 3, 17, (0, 3)), {"ep_ranks": [0, 3]}),
        ("PUT", "/admin/experts/3/17/pin", {"ep_ranks": None}, ("pin", 3, 17, None), {"is_pinned": True}),
        ("PUT", "/admin/experts/3/17/pin", None, ("pin", 3, 17, None), {"is_pinned": True}),
        ("DELETE", "/admin/experts/3/17/pin", None, ("unpin", 3, 17), {"is_pinned": False}),
        ("PUT", "/admin/balancer", {"paused": True}, ("paused", True), {"is_paused": True}),
        ("PUT", "/admin/balancer", {"paused": False}, ("paused", False), {"is_paused": False}),
    ],
)
async def test_orders_reach_the_coordinator(
    method: str,
    path: str,
    body: Any,
    order: tuple[Any, ...],
    answered: dict[str, Any],
    client: httpx.AsyncClient,
    control: ScriptedControl,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each exactly once, answered with what it has become, and in the log for whoever asks later."""
    caplog.set_level(logging.INFO, "cluster.admin.app")
    answer = await client.request(method, path, json=body)
    assert answer.status_code == 200
    assert control.orders == [order]
    assert answered.items() <= answer.json().items()
    assert f"order {answer.headers['x-request-id']}: {method} {path}" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("POST", "/admin/experts/rebalance", '{"dry_run": 1}', "dry_run"),
        ("POST", "/admin/experts/rebalance", '{"dry_run": "true"}', "dry_run"),
        ("POST", "/admin/experts/rebalance", '{"dryrun": true}', "dryrun"),
        ("POST", "/admin/experts/rebalance", "[]", None),
        ("POST", "/admin/experts/rebalance", "{", None),
        ("POST", "/admin/experts/rebalance", '{"dry_run": \ud800}'.encode("utf-8", "surrogatepass"), None),
        ("PUT", "/admin/experts/3/17/pin", '{"ep_ranks": 3}', "ep_ranks"),
        ("PUT", "/admin/experts/3/17/pin", '{"ep_ranks": []}', "ep_ranks"),
        ("PUT", "/admin/experts/3/17/pin", '{"ep_ranks": ["0"]}', "ep_ranks.0"),
        ("PUT", "/admin/experts/3/17/pin", '{"ep_ranks": [0, 1.5]}', "ep_ranks.1"),
        ("PUT", "/admin/experts/3/17/pin", '{"ep_ranks": [0, true]}', "ep_ranks.1"),
        ("PUT", "/admin/experts/3/17/pin", '{"ep_ranks": [-1]}', "ep_ranks.0"),
        ("PUT", "/admin/experts/3/17/pin", '{"ep_ranks": [1e400]}', None),
        ("PUT", "/admin/experts/3/17/pin", f'{{"ep_ranks": [{10**30}]}}', "ep_ranks.0"),
        ("PUT", "/admin/experts/3/17/pin", '{"ep_ranks": [0], "force": true}', "force"),
        ("PUT", "/admin/experts/three/17/pin", "{}", "layer_id"),
        ("PUT", "/admin/experts/-3/17/pin", "{}", "layer_id"),
        ("PUT", "/admin/experts/3/1.5/pin", "{}", "logical_id"),
        ("PUT", "/admin/experts/3/%D9%A3/pin", "{}", "logical_id"),
        ("DELETE", f"/admin/experts/{'9' * 40}/17/pin", "", "layer_id"),
        ("PUT", "/admin/balancer", "{}", "paused"),
        ("PUT", "/admin/balancer", "", "paused"),
        ("PUT", "/admin/balancer", '{"paused": null}', "paused"),
        ("PUT", "/admin/balancer", '{"paused": true, "mode": "off"}', "mode"),
    ],
)
async def test_wrong_input_names_the_field(
    method: str, path: str, body: str | bytes, param: str | None, client: httpx.AsyncClient, control: ScriptedControl
) -> None:
    """400 in OpenAI's format, and no order is given."""
    answer = await client.request(method, path, content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_request")
    assert control.orders == []
    if param is not None:
        assert error["param"] == param
        assert param in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/admin/nothing", 404),
        ("GET", "/admin/experts/", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("POST", "/admin/experts", 405),
        ("GET", "/admin/balancer", 405),
        ("OPTIONS", "/admin/experts", 405),
    ],
)
async def test_other_addresses(method: str, path: str, status: int, client: httpx.AsyncClient) -> None:
    """No redirect, no documentation, no CORS."""
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert not {"location", "access-control-allow-origin"} & set(answer.headers)


async def test_a_refused_order_says_why(client: httpx.AsyncClient, control: ScriptedControl) -> None:
    """The coordinator's own sentence, with 409."""
    answer = await client.put("/admin/experts/2/17/pin", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "invalid_order")
    assert answer.json()["error"]["message"] == "Layer 2 has no experts; 3 is the first."
    control.error = InvalidOrder("A rebalance is under way; wait for its end.")
    answer = await client.post("/admin/experts/rebalance", json={})
    assert answer.json()["error"]["message"] == "A rebalance is under way; wait for its end."


async def test_a_bug_stays_inside(
    client: httpx.AsyncClient, control: ScriptedControl, caplog: pytest.LogCaptureFixture
) -> None:
    """500 without its text, and the trace in the log."""
    control.error = KeyError("secret")
    answer = await client.get("/admin/experts")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "secret" in caplog.text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8001", "127.0.0.1.evil.example", "", "127.0.0.1@evil"])
async def test_other_hosts_are_refused(host: str, client: httpx.AsyncClient, control: ScriptedControl) -> None:
    """A name that somebody's name server may point here (DNS rebinding), on every route."""
    for path in ("/admin/experts", "/health"):
        answer = await client.get(path, headers={"host": host})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_request")
    assert control.orders == []


@pytest.mark.parametrize("host", ["localhost:9001", "LOCALHOST", "[::1]:8001", "10.1.2.3:8001", "admin.internal"])
async def test_own_hosts_are_answered(host: str, control: ScriptedControl, token_file: Path) -> None:
    """Addresses, localhost, and the name that is listened on; through a forwarded port too."""
    write_token(token_file)
    app = create_admin_app(control, token_file, "admin.internal")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        answer = await client.get("/health", headers={"host": host, "origin": f"http://{host.lower()}"})
    assert answer.status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:1", ""])
async def test_other_origins_are_refused(origin: str, client: httpx.AsyncClient, control: ScriptedControl) -> None:
    """A page of another site, or of another port of this machine, even if it knew the token."""
    answer = await client.put("/admin/balancer", json={"paused": True}, headers={"origin": origin})
    assert answer.status_code == 403
    assert control.orders == []


async def test_the_own_origin_is_answered(server: AdminServer, client: httpx.AsyncClient) -> None:
    """What a console served here will send; also behind a proxy that speaks TLS."""
    for scheme in ("http", "https"):
        answer = await client.get("/admin/experts", headers={"origin": f"{scheme}://127.0.0.1:{server.port}"})
        assert answer.status_code == 200


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_long_bodies_are_refused(is_chunked: bool, client: httpx.AsyncClient, control: ScriptedControl) -> None:
    """413, announced or not."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 1024 + 1):
            yield b" " * 1024

    content: Any = chunks() if is_chunked else b" " * (MAX_BODY_BYTES + 1)
    answer = await client.put("/admin/balancer", content=content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert control.orders == []


async def test_a_body_that_never_comes(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """408 at its deadline."""
    monkeypatch.setattr(admin_app, "BODY_TIMEOUT_S", 0.05)
    never = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield b"{"
        await never.wait()

    sending = asyncio.create_task(client.put("/admin/balancer", content=half()))
    await asyncio.wait([sending], timeout=0.5)
    never.set()
    assert (await sending).status_code == 408


async def test_a_call_that_takes_too_long(
    client: httpx.AsyncClient, control: ScriptedControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """504 at its deadline, and the call is cancelled."""
    monkeypatch.setattr(admin_app, "CALL_TIMEOUT_S", 0.05)
    control.gate.clear()
    answer = await client.get("/admin/experts")
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert control.num_cancelled == 1


async def test_so_many_at_once(client: httpx.AsyncClient, control: ScriptedControl) -> None:
    """One more than allowed gets 429 at once; health is still answered, and places come back."""
    control.gate.clear()
    running = [asyncio.create_task(client.get("/admin/experts")) for _ in range(MAX_CONCURRENT_REQUESTS)]
    for _ in running:
        await control.entered.acquire()
    refused = await client.get("/admin/experts")
    healthy = await client.get("/health")
    control.gate.set()
    assert {(await task).status_code for task in running} == {200}
    assert (refused.status_code, healthy.status_code) == (429, 200)
    assert (await client.get("/admin/experts")).status_code == 200
