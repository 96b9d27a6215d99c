"""PrometheusServer: one Prometheus process. Started once, ended whatever happens; every wait has a deadline."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from ops.prometheus.errors import PrometheusFailed, PrometheusMissing

START_S = 30.0
STOP_S = 15.0  # after a termination, which writes what is in memory
POLL_S = 0.1
LOG_LINES = 8


def find_binary() -> str:
    """Raises PrometheusMissing."""
    found = shutil.which("prometheus")
    if found is None:
        raise PrometheusMissing(
            "there is no prometheus on the PATH: install the package prometheus (Debian, Ubuntu: "
            "apt-get install --no-install-recommends prometheus; stop the service that it starts)"
        )
    return found


class PrometheusServer:
    """A context: ready inside, gone after it."""

    def __init__(self, binary: str, config: Path, folder: Path, host: str, port: int) -> None:
        """folder: for its data and its log."""
        self._command = [
            binary,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={host}:{port}",
            "--log.level=warn",
        ]
        self._log = folder / "prometheus.log"
        self._host, self._port = host, port
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Raises PrometheusFailed."""
        _check_free(self._host, self._port)
        with self._log.open("wb") as log:
            # A group of its own: Ctrl-C is for this program, which then ends it in order.
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def check(self) -> None:
        """Raises PrometheusFailed if it has ended by itself."""
        process = self._process
        assert process is not None, "a server is entered before it is asked"
        if process.poll() is not None:
            end = "\n".join(self._log.read_text(errors="replace").splitlines()[-LOG_LINES:])
            raise PrometheusFailed(f"prometheus ended with status {process.returncode}:\n{end}")

    def close(self) -> None:
        """End it: asked first, then killed."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while not self._is_ready():
            self.check()
            if time.monotonic() > deadline:
                raise PrometheusFailed(f"prometheus was not ready within {START_S:.0f} s; its log is {self._log}")
            threading.Event().wait(POLL_S)

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=1.0)
        try:
            connection.request("GET", "/-/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def _check_free(host: str, port: int) -> None:
    """Another Prometheus there would look as if ours were ready."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise PrometheusFailed(f"cannot listen on {host}:{port} ({error.strerror}): choose another --listen") from error
