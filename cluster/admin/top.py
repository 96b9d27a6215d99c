"""`step35 top`: the whole cluster on a terminal, a frame each second. One call of the admin route makes a frame."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from cluster.admin.client import AdminClient
from cluster.admin.keyboard import Keyboard
from cluster.admin.paths import STATE
from cluster.admin.token import read_token
from cluster.cluster_state import ClusterState
from cluster.config import load_admin
from cluster.errors import AdminUnreachable, ConfigurationError, OrderRefused
from cluster.sections import AdminConfig
from cluster.state_health import Level, judge
from cluster.state_numbers import numbers_of
from cluster.state_window import StateHistory
from cluster.top_view import TopView

TIMEOUT_S = 5.0  # a frame that is later is told as missing
EXIT_BROKEN = 1
QUIT_KEYS = "qQ"
FAILURES = (AdminUnreachable, ConfigurationError, OrderRefused)

console = Console(highlight=False)

ConfigFile = Annotated[Path | None, typer.Option("--config", help="The file that the cluster was started with.")]
Once = Annotated[bool, typer.Option("--once", help="Print one frame and end, for scripts. Exit code 1: broken.")]
Interval = Annotated[float, typer.Option("--interval", help="Seconds between two frames.", min=0.2, max=60.0)]

# Each paragraph in one line: typer keeps line breaks.
HELP = (
    "Watch a running cluster: health, latencies, load, drafts, experts and events, each second.\n\n"
    "The first line says how it is: HEALTHY, WARNING or BROKEN, and the lines below it why. Rates, latencies, drafts "
    "and pipeline are of the last 10 seconds; - stands for what is not known. q or Ctrl-C ends it.\n\n"
    "While the coordinator restarts the last frame stays, with a note, until it answers again.\n\n"
    "--once, or an output that is no terminal, prints one frame, made of two looks an interval apart. Its exit code is "
    "1 if the cluster is broken or does not answer, and 0 otherwise, warnings included.\n\n"
    "The load picture has a block for each EP rank (down) and layer (across): half a block is the layer's mean, a "
    "whole one twice that; green up to the mean, red from 1.5 times it."
)


class StateReader:
    """Asks one admin route for its state. The token is read each time: it may be replaced meanwhile."""

    def __init__(self, admin: AdminConfig, timeout_s: float = TIMEOUT_S) -> None:
        """Raises ConfigurationError where there is no admin route."""
        if not admin.enabled:
            raise ConfigurationError("admin.enabled is false: this cluster has no admin route")
        self._admin = admin
        self._timeout_s = timeout_s

    def read(self) -> ClusterState:
        """Raises ConfigurationError, AdminUnreachable or OrderRefused."""
        client = AdminClient(self._admin.url, read_token(self._admin.token_file), self._timeout_s)
        fields = client.call("GET", STATE)
        try:
            return ClusterState.from_dict(fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise AdminUnreachable("the cluster's answer is of another version than this program") from error


def top(config: ConfigFile = None, once: Once = False, interval: Interval = 1.0) -> None:
    reader = StateReader(load_admin(config))
    with Keyboard() as keyboard:
        if once or not console.is_terminal:
            view = look_twice(reader, lambda: keyboard.wait("", interval))
            console.print(view)
            raise typer.Exit(EXIT_BROKEN if view.health.level is Level.BROKEN else 0)
        # So that a terminal is left as it was found.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            watch(reader, console, lambda: keyboard.wait(QUIT_KEYS, interval))


def look_twice(reader: StateReader, wait: Callable[[], object]) -> TopView:
    """One frame with rates in it. wait: between the two looks. Raises what `read` does."""
    history = StateHistory()
    history.push(reader.read())
    wait()
    history.push(reader.read())
    return view_of(history)


def watch(reader: StateReader, console: Console, wait: Callable[[], bool]) -> None:
    """Frames until `wait`, which is called between two of them, says that it is enough. The first look raises what
    `read` does; later failures are shown."""
    history = StateHistory()
    history.push(reader.read())
    with Live(view_of(history), console=console, screen=True, auto_refresh=False) as live:
        live.refresh()
        while not wait():
            note = ""
            try:
                history.push(reader.read())
            except FAILURES as error:
                note = f"{error}; trying again, below is how it was"
            live.update(view_of(history, note), refresh=True)


def view_of(history: StateHistory, note: str = "") -> TopView:
    states = history.states
    numbers = numbers_of(states)
    return TopView(states[-1], numbers, judge(states[-1], numbers), note)
