"""A cluster as an operator starts it: `step35 serve` in a process of its own, watched from outside.

Knows nothing of Ray's API: it reads /ready and the process list, as any operator can.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 110.0
LOOK_PERIOD_S = 0.2


class ClusterProcess:
    """One `step35 serve`. Ends what it started, and nothing else, in `close`."""

    def __init__(self, folder: Path, checkpoint: Path, **fields: Any) -> None:
        """fields: of ClusterConfig, besides the checkpoint, the port and the names, which are made here."""
        self.port = _free_port()
        self.app_name = f"live-{self.port}"
        self._output = folder / "serve.log"
        self.file = folder / "cluster.yaml"
        fields["gateway"] = {"port": self.port, **fields.get("gateway", {})}
        self.admin_port = _free_port()
        fields["admin"] = {"port": self.admin_port, "token_file": str(folder / "admin.token")}
        config = {"checkpoint": str(checkpoint), "ray": {"app_name": self.app_name}}
        self.file.write_text(yaml.safe_dump({**config, **fields}), encoding="utf-8")
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cluster.cli", "serve", "--config", str(self.file)],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    def output(self) -> str:
        return self._output.read_text(encoding="utf-8", errors="replace")

    def wait_ready(self, *, is_ready: bool = True) -> None:
        """Until /ready says so; fails the test when the process has ended or the time is over."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while (self.ready_status() == 200) is not is_ready:
            assert self._process.poll() is None, f"step35 serve ended:\n{self.output()}"
            assert time.monotonic() < deadline, f"ready is not {is_ready}:\n{self.output()}"
            _pause()

    def ready_status(self) -> int:
        """HTTP status of /ready, 0 while nobody listens."""
        try:
            return httpx.get(f"{self.url}/ready", timeout=5).status_code
        except httpx.HTTPError:
            return 0

    def replica_pids(self, deployment: str) -> list[int]:
        """Processes of one of our deployments, by the title Ray gives them."""
        app_name = f"{self.app_name}-gateway" if deployment == "Gateway" else self.app_name
        title = f"ray::ServeReplica:{app_name}:{deployment}"
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if path.read_bytes().startswith(title.encode()):
                    found.append(int(path.parent.name))
            except OSError:
                continue  # the process has ended in between
        return found

    def kill_replica(self, deployment: str) -> int:
        """SIGKILL one process of a deployment; returns its pid."""
        pid = self.replica_pids(deployment)[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> int:
        """The exit code. Raises TimeoutExpired."""
        return self._process.wait(timeout_s)

    def close(self) -> None:
        """SIGTERM, then SIGKILL for the process group that was made for it."""
        if self._process.poll() is None:
            self.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _pause() -> None:
    """Another process's state can only be looked at again."""
    time.sleep(LOOK_PERIOD_S)  # noqa: TID251
