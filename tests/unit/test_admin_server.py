"""The admin server as a part of its process: its port, its end, its bounds. Real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.admin import server as admin_server_module
from cluster.admin.server import MAX_CONNECTIONS, AdminServer, listen
from cluster.errors import ClusterError, PortUnavailable
from tests.fakes.experts import ScriptedControl, admin_client, admin_server

HOST = "127.0.0.1"
REQUEST = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"


async def no_app(scope: Any, receive: Any, send: Any) -> None:
    """Says nothing, which the server makes a 500 of."""


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return tmp_path / "admin.token"


async def test_it_listens_as_soon_as_it_has_started(token_file: Path) -> None:
    """Before the loop has run once more; a connection that comes then is answered."""
    async with admin_server(ScriptedControl(), token_file) as server:
        with socket.create_connection((HOST, server.port)) as early:
            early.setblocking(False)
            early.send(REQUEST)
            async with asyncio.timeout(5):
                answer = await asyncio.get_running_loop().sock_recv(early, 100)
    assert answer.startswith(b"HTTP/1.1 200")


async def test_a_port_in_use_is_named() -> None:
    """With the field that changes it."""
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortUnavailable, match=rf"port {port} of {HOST} is in use: set admin\.port"):
            AdminServer(no_app, HOST, port).start()


async def test_a_host_that_is_not_ours_is_named() -> None:
    """An address of the documentation range, and a name that nobody has."""
    for host in ("192.0.2.1", "no-such-host.invalid"):
        with pytest.raises(PortUnavailable, match=rf"port 1234 of {host} cannot be listened on .*admin\.host"):
            listen(host, 1234)


async def test_the_port_is_free_at_once_after_the_end(token_file: Path) -> None:
    """Three times the same port, each with a connection that the server is the one to close."""
    port = 0
    for _ in range(3):
        server = AdminServer(no_app, HOST, port)
        server.start()
        port = server.port
        _, writer = await asyncio.open_connection(HOST, port)
        writer.write(REQUEST)
        await writer.drain()
        await server.close()
        writer.close()
    listen(HOST, port).close()


async def test_closed_before_it_has_run() -> None:
    """The listener goes, whatever the loop had done until then. Twice is once."""
    server = AdminServer(no_app, HOST, 0)
    await server.close()
    server.start()
    await server.close()
    await server.close()
    listen(HOST, server.port).close()
    server.check()


async def test_a_running_request_ends_before_the_server(token_file: Path) -> None:
    """New connections are refused meanwhile, and the answer arrives whole."""
    control = ScriptedControl()
    control.gate.clear()
    async with admin_server(control, token_file) as server, admin_client(server) as client:
        asked = asyncio.create_task(client.get("/admin/experts"))
        await control.entered.acquire()
        closing = asyncio.create_task(server.close())
        await asyncio.sleep(0.05)  # a connection taken in the very moment of the end would be lost by asyncio itself
        assert not await can_connect(server.port)
        control.gate.set()
        assert (await asked).json()["map_epoch"] == control.status.map_epoch
        await closing


async def test_a_request_that_does_not_end_is_cancelled(token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time that it is given, so that the coordinator's own end is not held up."""
    monkeypatch.setattr(admin_server_module, "CLOSE_TIMEOUT_S", 1.0)
    control = ScriptedControl()
    control.gate.clear()
    async with admin_server(control, token_file) as server, admin_client(server) as client:
        asked = asyncio.create_task(client.get("/admin/experts"))
        await control.entered.acquire()
        async with asyncio.timeout(4):
            await server.close()
        with pytest.raises(httpx.HTTPError):
            (await asked).raise_for_status()
    assert control.num_cancelled == 1


async def test_a_server_that_has_died_is_noticed(token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner's health check says so, with the cause."""
    crash = asyncio.Event()

    async def main_loop(self: object) -> None:
        await crash.wait()
        raise OSError("out of sockets")

    monkeypatch.setattr(admin_server_module._Server, "main_loop", main_loop)
    async with admin_server(ScriptedControl(), token_file) as server:
        server.check()
        crash.set()
        (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "admin-server"]
        await asyncio.wait([task])
        with pytest.raises(ClusterError, match="admin server has ended") as caught:
            server.check()
        assert isinstance(caught.value.__cause__, OSError)


async def test_signals_stay_with_their_owner(token_file: Path) -> None:
    """The coordinator's process has handlers of its own."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in signals]
    async with admin_server(ScriptedControl(), token_file) as server, admin_client(server) as client:
        await client.get("/health")
        assert [signal.getsignal(number) for number in signals] == before


async def test_too_many_connections_are_cut(token_file: Path) -> None:
    """The first ones stay usable."""
    async with admin_server(ScriptedControl(), token_file) as server:
        connections = [await asyncio.open_connection(HOST, server.port) for _ in range(MAX_CONNECTIONS)]
        late, late_writer = await asyncio.open_connection(HOST, server.port)
        with contextlib.suppress(ConnectionResetError):
            assert await late.read() == b""
        reader, writer = connections[0]
        writer.write(REQUEST)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        for _, opened in [*connections, (late, late_writer)]:
            opened.close()


@pytest.mark.parametrize("sent", [b"", b"GET /heal", REQUEST])
async def test_idle_connections_are_closed(sent: bytes, token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether nothing, half a head or a whole request came before."""
    monkeypatch.setattr(admin_server_module, "IDLE_S", 0.1)
    async with admin_server(ScriptedControl(), token_file) as server:
        reader, writer = await asyncio.open_connection(HOST, server.port)
        writer.write(sent)
        async with asyncio.timeout(5):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200") == (sent == REQUEST)
        writer.close()


async def can_connect(port: int) -> bool:
    """Whether anybody accepts connections there."""
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    return True
