"""`step35 experts` against a real admin server: what is ordered, what is printed, what each failure is told as."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cluster.admin.client import AdminClient
from cluster.cli import app
from cluster.errors import AdminUnreachable, InvalidOrder
from tests.fakes.experts import TOKEN, ScriptedControl, admin_server

RUNNER = CliRunner()


@dataclass
class Operator:
    """Runs commands with the configuration of one server."""

    config: Path
    token_file: Path
    control: ScriptedControl

    async def run(self, *arguments: str, **variables: str) -> Result:
        """In a thread, because the server runs on this loop."""
        command = ["experts", *arguments]
        return await asyncio.to_thread(RUNNER.invoke, app, command, env={**variables, "COLUMNS": "80"})


@pytest.fixture
async def operator(tmp_path: Path) -> AsyncIterator[Operator]:
    control = ScriptedControl()
    async with admin_server(control, tmp_path / "admin.token") as server:
        yield Operator(configuration(tmp_path, server.port), tmp_path / "admin.token", control)


def configuration(folder: Path, port: int) -> Path:
    """A file as `step35 serve` gets it; the command needs only its admin section."""
    file = folder / "cluster.yaml"
    file.write_text(f"experts: {{ep_size: 8}}\nadmin: {{port: {port}, token_file: {folder}/admin.token}}\n")
    return file


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Somebody else's server: its port. Says the same to each, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


async def test_the_table(operator: Operator) -> None:
    """The status of the cluster that the configuration names, 80 columns wide."""
    result = await operator.run("--config", str(operator.config))
    assert (result.exit_code, result.stderr) == (0, "")
    assert "layer bal.  r0  r1" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert operator.control.orders == [("status",)]


async def test_json_is_the_status(operator: Operator) -> None:
    """All of it, for scripts."""
    result = await operator.run("--json", "--config", str(operator.config))
    assert json.loads(result.stdout) == json.loads(json.dumps(operator.control.status.to_dict()))


@pytest.mark.parametrize(
    ("arguments", "order", "told"),
    [
        (["rebalance"], ("rebalance", False), "a rebalance begins: 12 moves in 3 stages"),
        (["rebalance", "--dry-run"], ("rebalance", True), "a rebalance would begin: 12 moves"),
        (["pin", "3", "17"], ("pin", 3, 17, None), "expert 17 of layer 3: pinned; now on EP rank 1"),
        (["pin", "3", "17", "--ranks", "0,3"], ("pin", 3, 17, (0, 3)), "pinned; now on EP ranks 0,3"),
        (["pin", "3", "17", "--ranks", " 0 , 3 "], ("pin", 3, 17, (0, 3)), "pinned; now on EP ranks 0,3"),
        (["unpin", "3", "17"], ("unpin", 3, 17), "not pinned"),
        (["pause"], ("paused", True), "the balancer is paused"),
        (["resume"], ("paused", False), "the balancer is not paused; its mode is auto"),
    ],
)
async def test_orders(arguments: list[str], order: tuple[Any, ...], told: str, operator: Operator) -> None:
    """--config is understood before and after the command; with --json the answer is printed as it came."""
    config = ["--config", str(operator.config)]
    for given in ([*config, *arguments], [*arguments, *config]):
        result = await operator.run(*given)
        assert (result.exit_code, result.stderr) == (0, "")
        assert told in result.stdout
    result = await operator.run(*arguments, "--json", *config)
    assert isinstance(json.loads(result.stdout), dict)
    assert operator.control.orders == [order] * 3


async def test_a_refused_order(operator: Operator) -> None:
    """The coordinator's sentence, exit code 1."""
    operator.control.error = InvalidOrder("A rebalance is under way; wait for its end.")
    result = await operator.run("rebalance", "--config", str(operator.config))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "A rebalance is under way; wait for its end.\n"


@pytest.mark.parametrize("ranks", ["", "a", "0;3", "-1", "0,,3", "١"])
async def test_ranks_that_are_none(ranks: str, operator: Operator) -> None:
    """Told before anything is asked, exit code 2."""
    result = await operator.run("pin", "3", "17", "--ranks", ranks, "--config", str(operator.config))
    assert result.exit_code == 2
    assert "--ranks" in result.stderr
    assert operator.control.orders == []


async def test_another_token(operator: Operator) -> None:
    """401 names the field of the configuration."""
    other = operator.token_file.with_name("other.token")
    other.write_text("wrong\n")
    result = await operator.run("--config", str(operator.config), STEP35__ADMIN__TOKEN_FILE=str(other))
    assert result.exit_code == 1
    assert "is admin.token_file another cluster's?" in result.stderr
    assert "wrong" not in result.stderr


async def test_variables_are_heeded_and_proxies_are_not(operator: Operator) -> None:
    """A port by its variable, as for `serve`; no proxy of the environment ever sees the token."""
    port = str(_port_of(operator.config))
    proxies = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "no_proxy": ""}
    variables = {"STEP35__ADMIN__PORT": port, "STEP35__ADMIN__TOKEN_FILE": str(operator.token_file)}
    result = await operator.run(**variables, **proxies)
    assert (result.exit_code, result.stderr) == (0, "")


def run(*arguments: str) -> Result:
    return RUNNER.invoke(app, ["experts", *arguments])


def test_nobody_listens(tmp_path: Path) -> None:
    """Says what to look at."""
    (tmp_path / "admin.token").write_text(TOKEN)
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        result = run("--config", str(configuration(tmp_path, reserved.getsockname()[1])))
    assert result.exit_code == 1
    assert "nobody listens at http://127.0.0.1:" in result.stderr
    assert "is the cluster running, is this its --config" in result.stderr


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n<p>hi", "is not an admin route"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nhi", "answers 404, and not as an admin route does"),
        (b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n", "answers 302"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", "is not an admin route"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "cannot be reached"),
        (b"", "cannot be reached"),
        (b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{"map_epoch": 1', "is not an admin route"),
        (b'HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n{"map_epoch": 1}', "of another version"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]", "of another version"),
    ],
)
def test_somebody_else_answers(answer: bytes, told: str, tmp_path: Path) -> None:
    """A web server, one that redirects, one that breaks off, no web server, another version: a sentence, no trace."""
    (tmp_path / "admin.token").write_text(TOKEN)
    with answering(answer) as port:
        result = run("--config", str(configuration(tmp_path, port)))
    assert result.exit_code == 1
    assert told in result.stderr


def test_nobody_answers() -> None:
    """A listener that says nothing is not waited for for ever."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = AdminClient(f"http://127.0.0.1:{silent.getsockname()[1]}", TOKEN, timeout_s=0.1)
        with pytest.raises(AdminUnreachable, match=r"no answer from http://127\.0\.0\.1:\d+ within 0\.1 s"):
            client.call("GET", "/admin/experts")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("admin: {enabled: false}", "admin.enabled is false"),
        ("admin: {prot: 1}", "admin.prot is not a field; did you mean port?"),
        ("admin: {port: 0}", "admin.port = 0"),
        ("admin: {token_file: /no/such/file}", "admin.token_file = /no/such/file: cannot be read"),
        ("admin: 5", "admin = 5"),
    ],
)
def test_a_configuration_that_leads_nowhere(text: str, told: str, tmp_path: Path) -> None:
    """Field, value and rule, as for `serve`."""
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    result = run("--config", str(file))
    assert result.exit_code == 1
    assert told in result.stderr


def _port_of(config: Path) -> int:
    return int(config.read_text().split("port: ")[1].split(",")[0])
