"""`step35 top` against a real HTTP server: frames, exit codes, and what it does while nobody answers."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from cluster.admin.keyboard import Keyboard
from cluster.admin.top import StateReader, watch
from cluster.cli import app
from cluster.config import load_admin
from cluster.errors import AdminUnreachable, OrderRefused
from tests.fakes.experts import TOKEN, write_token
from tests.fakes.states import cluster_state, members

RUNNER = CliRunner()
SHAPES = [{"num_layers": 10, "ep_size": 8}, {"num_layers": 42, "ep_size": 288}]


@dataclass
class Coordinator:
    """Answers GET /admin/state on a port of this machine: each time a state one second later."""

    fields: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    num_asked: int = 0
    port: int = 0

    def answer(self, authorization: str | None, path: str) -> tuple[int, bytes]:
        self.num_asked += 1
        if authorization != f"Bearer {TOKEN}":
            return 401, b'{"error": {"message": "no"}}'
        if path != "/admin/state":
            return 404, b'{"error": {"message": "There is nothing at this address."}}'
        if self.status != 200:
            return self.status, b'{"error": {"message": "The coordinator is being started."}}'
        return 200, json.dumps(cluster_state(float(self.num_asked), **self.fields)).encode()


@contextmanager
def listening(coordinator: Coordinator) -> Iterator[None]:
    """Serves on the coordinator's port, a free one the first time."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = coordinator.answer(self.headers["authorization"], self.path)
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", coordinator.port), Handler)
    coordinator.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_token(tmp_path / "admin.token")
    return tmp_path / "cluster.yaml"


def run(config: Path, coordinator: Coordinator, *arguments: str, columns: int = 80) -> Result:
    configure(config, coordinator)
    command = ["top", "--once", "--interval", "0.2", "--config", str(config), *arguments]
    return RUNNER.invoke(app, command, env={"COLUMNS": str(columns)})


def configure(config: Path, coordinator: Coordinator) -> None:
    token_file = config.with_name("admin.token")
    config.write_text(f"admin: {{port: {coordinator.port}, token_file: {token_file}}}\n")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("columns", [80, 160])
def test_one_frame(shape: dict[str, Any], columns: int, config: Path) -> None:
    """Two looks, so that rates are known; exit code 0; no control codes for a script to stumble over."""
    coordinator = Coordinator(shape)
    with listening(coordinator):
        result = run(config, coordinator, columns=columns)
    assert (result.exit_code, result.stderr) == (0, "")
    assert coordinator.num_asked == 2
    assert result.stdout.startswith("● HEALTHY ")
    assert "612/s completion" in result.stdout
    assert "\x1b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= columns


def test_the_exit_code_is_one_if_it_is_broken(config: Path) -> None:
    """No expert rank 3. A warning is none."""
    state = members(1.0, 8)
    coordinator = Coordinator({"members": [each for each in state if each["ep_rank"] != 3]})
    with listening(coordinator):
        broken = run(config, coordinator)
        coordinator.fields = {"members": [{**each, "age_s": 9.0 if each["ep_rank"] == 3 else 0.4} for each in state]}
        worth_a_look = run(config, coordinator)
    assert broken.exit_code == 1
    assert "no ready member holds EP rank 3" in broken.stdout
    assert worth_a_look.exit_code == 0
    assert worth_a_look.stdout.startswith("● WARNING ")


def test_nobody_listens(config: Path) -> None:
    """Says what to look at, exit code 1."""
    coordinator = Coordinator()
    with listening(coordinator):
        pass
    result = run(config, coordinator)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nobody listens at http://127.0.0.1:" in result.stderr


def test_another_token(config: Path) -> None:
    """The field of the configuration is named, and the token is not."""
    write_token(config.with_name("admin.token"), "wrong-token")
    coordinator = Coordinator()
    with listening(coordinator):
        result = run(config, coordinator)
    assert result.exit_code == 1
    assert "is admin.token_file another cluster's?" in result.stderr
    assert "wrong-token" not in result.stderr


def test_another_version(config: Path) -> None:
    """A state that cannot be read: a sentence, no trace."""
    coordinator = Coordinator({"members": [{"member": "a"}]})
    with listening(coordinator):
        result = run(config, coordinator)
    assert result.exit_code == 1
    assert "of another version than this program" in result.stderr


@pytest.mark.parametrize("interval", ["0", "0.1", "61", "often"])
def test_an_interval_that_is_none(interval: str) -> None:
    """Told before anybody is asked, exit code 2."""
    assert RUNNER.invoke(app, ["top", "--interval", interval]).exit_code == 2


def screen() -> Console:
    """A terminal of 80 x 24 that keeps what was written to it."""
    return Console(file=io.StringIO(), force_terminal=True, width=80, height=24, highlight=False, legacy_windows=False)


def frames(console: Console) -> list[str]:
    """What was shown, frame by frame: each begins where the cursor goes home. Without colours and wrapping."""
    assert isinstance(console.file, io.StringIO)
    written = re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue()).split("\x1b[H")
    return [" ".join(frame.split()) for frame in written if "steps" in frame]


def watched(config: Path, coordinator: Coordinator, *steps: Callable[[], None]) -> list[str]:
    """Frames of a watch; before each but the first a step is made, and after the last it is left."""
    configure(config, coordinator)
    console, left = screen(), list(steps)

    def wait() -> bool:
        if not left:
            return True
        left.pop(0)()
        return False

    watch(StateReader(load_admin(config), timeout_s=2.0), console, wait)
    return frames(console)


def nothing() -> None:
    """Time goes by."""


def test_watching(config: Path) -> None:
    """A frame for each state, of the terminal's size; the terminal is given back at the end."""
    coordinator = Coordinator()
    with listening(coordinator):
        seen = watched(config, coordinator, nothing, nothing)
    assert coordinator.num_asked == 3
    assert "-/s completion" in seen[0]
    assert "612/s completion" in seen[-1]
    assert "\x1b[?1049l" in seen[-1]


def test_a_coordinator_that_restarts(config: Path) -> None:
    """The last frame stays with a note; it is asked again and again, and goes on when it answers."""
    coordinator = Coordinator()
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(listening(coordinator))
        starts_again = partial(second.enter_context, listening(coordinator))
        seen = watched(config, coordinator, nothing, first.close, nothing, starts_again)
    told = ["NO ANSWER" in text for text in seen[-4:]]
    assert told == [False, True, True, False]
    assert "nobody listens at" in seen[-2]
    assert "612/s completion" in seen[-2]
    assert "HEALTHY" in seen[-1]


def test_a_token_that_is_replaced(config: Path) -> None:
    """It is read each time: a wrong one is told of, and the right one is taken as soon as it is there."""
    token_file = config.with_name("admin.token")
    coordinator = Coordinator()
    with listening(coordinator):
        seen = watched(
            config, coordinator, lambda: write_token(token_file, "wrong"), token_file.unlink,
            lambda: write_token(token_file),
        )  # fmt: skip
    assert "does not know this token" in seen[-3]
    assert "cannot be read" in seen[-2]
    assert "HEALTHY" in seen[-1]


def test_a_coordinator_that_is_not_ready(config: Path) -> None:
    """Its own sentence is the note."""
    coordinator = Coordinator()
    with listening(coordinator):
        seen = watched(config, coordinator, lambda: setattr(coordinator, "status", 503))
    assert "The coordinator is being started.; trying again" in seen[-1]


def test_the_first_look_fails_at_once(config: Path) -> None:
    """No screen is opened for a cluster that is not there, or for a wrong token."""
    coordinator = Coordinator()
    with listening(coordinator):
        write_token(config.with_name("admin.token"), "wrong")
        with pytest.raises(OrderRefused):
            watched(config, coordinator)
    with pytest.raises(AdminUnreachable):
        watched(config, coordinator)


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal: the person's and the program's."""
    person, program = pty.openpty()
    try:
        yield person, program
    finally:
        for end in (person, program):
            os.close(end)


def test_q_ends_a_wait_and_other_keys_do_not() -> None:
    """Without Enter."""
    with terminal() as (person, program), Keyboard(program) as keyboard:
        os.write(person, b"x")
        assert not keyboard.wait("qQ", 0.05)
        os.write(person, b"xq")
        assert keyboard.wait("qQ", 5.0)


def test_the_terminal_is_left_as_it_was_found() -> None:
    """Echo and lines are on again."""
    import termios

    with terminal() as (_, program):
        before = termios.tcgetattr(program)
        with Keyboard(program):
            assert termios.tcgetattr(program) != before
        assert termios.tcgetattr(program) == before


def test_without_a_terminal_waiting_is_waiting() -> None:
    """A pipe has no keys, whatever is in it."""
    reader, writer = os.pipe()
    try:
        os.write(writer, b"q")
        with Keyboard(reader) as keyboard:
            assert not keyboard.wait("qQ", 0.01)
    finally:
        os.close(reader)
        os.close(writer)
