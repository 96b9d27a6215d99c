"""The scripts that the chart mounts, run as they are: the fetch of weights, the API's check, the drain."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.chart.helm import CHART, ROOT

KEY = "a-key"
FILES = {"config.json": b"{}", "model-1.safetensors": b"weights", "inner/tokenizer.json": b"[]"}


@pytest.fixture
def fetch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_weights", CHART / "files" / "fetch_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Hub:
    """Puts FILES where the hub's client would, as far as they are asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.calls = files, 0

    def __call__(self, repository: str, revision: str, folder: Path, names: list[str]) -> None:
        self.calls += 1
        for name in names:
            if name in self.files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(self.files[name])


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in FILES.items())
    (tmp_path / "SHA256SUMS").write_text(sums)
    given = {"repository": "a/b", "revision": "0" * 40, "folder": tmp_path / "w", "checksums": tmp_path / "SHA256SUMS"}
    return [f"--{name}={value}" for name, value in given.items()]


def run(fetch: ModuleType, words: list[str], hub: Hub) -> int:
    fetch.download = hub  # type: ignore[attr-defined]  # the module's seam
    status: int = fetch.main(fetch.parse_arguments(words))
    return status


def test_weights_are_fetched_once_and_checked(fetch: ModuleType, words: list[str], tmp_path: Path) -> None:
    """The next pod of the node finds them sealed."""
    hub = Hub(FILES)
    assert run(fetch, words, hub) == run(fetch, words, hub) == 0
    assert hub.calls == 1
    assert (tmp_path / "w" / "inner" / "tokenizer.json").read_bytes() == b"[]"


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({**FILES, "config.json": b"{ }"}, "config.json has the SHA-256"),
        ({name: FILES[name] for name in ("config.json",)}, "model-1.safetensors is missing"),
    ],
    ids=["changed", "missing"],
)
def test_a_file_that_is_not_as_listed_stops_the_pod(
    fetch: ModuleType, words: list[str], capsys: pytest.CaptureFixture[str], files: dict[str, bytes], complaint: str
) -> None:
    """And nothing is sealed: the next attempt looks again."""
    assert run(fetch, words, Hub(files)) == 1
    assert complaint in capsys.readouterr().err
    assert run(fetch, words, Hub(FILES)) == 0


def test_weights_that_nobody_listed_stop_the_pod(
    fetch: ModuleType, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shard left by another checkpoint in the same cache would be read."""
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "stray.safetensors").write_bytes(b"x")
    assert run(fetch, words, Hub(FILES)) == 1
    assert "stray.safetensors is not in the checksums" in capsys.readouterr().err


def test_the_head_fetches_descriptions_alone(fetch: ModuleType, words: list[str], tmp_path: Path) -> None:
    """It builds the engine from config.json and never holds a weight."""
    assert run(fetch, [*words, "--descriptions-only"], Hub(FILES)) == 0
    assert not list((tmp_path / "w").rglob("*.safetensors"))
    assert (tmp_path / "w" / "config.json").exists()


@pytest.mark.parametrize(
    "line", ["abc  config.json", f"{'0' * 64}  /etc/passwd", f"{'0' * 64}  ../x", "", f"{'0' * 64} x"]
)
def test_checksums_that_are_none_are_refused(fetch: ModuleType, line: str) -> None:
    """Names that leave the folder too."""
    with pytest.raises(ValueError, match=r"line 1|list no file"):
        fetch.parse_sums(line)


class Api(BaseHTTPRequestHandler):
    """What the chart's check asks of the API; class attributes choose what is wrong."""

    protocol_version = "HTTP/1.1"
    ready, needs_key, ending = 200, True, "[DONE]"

    def do_GET(self) -> None:
        if self.path == "/ready":
            self.answer(self.ready, {})
        else:
            self.answer(200 if self.knows() else 401, {"data": [{"id": "step-nano"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert asked["stream"] is True
        chunks = [json.dumps({"choices": [{"delta": {"content": text}}]}) for text in ("Hel", "lo")]
        body = "".join(f"data: {event}\n\n" for event in [*chunks, self.ending]).encode()
        self.send(200 if self.knows() else 401, body)

    def knows(self) -> bool:
        return not self.needs_key or self.headers.get("authorization") == f"Bearer {KEY}"

    def answer(self, status: int, body: dict[str, Any]) -> None:
        self.send(status, json.dumps(body).encode())

    def send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def api(request: pytest.FixtureRequest) -> Iterator[str]:
    """param: what is wrong with it."""
    handler = type("Handler", (Api,), getattr(request, "param", {}))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def check(url: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHART / "files" / "check_api.py"), url]
    return subprocess.run(
        command, env={"PATH": "/usr/bin:/bin", **variables}, capture_output=True, text=True, timeout=60
    )


def test_the_check_passes_an_api_that_is_as_it_should_be(api: str) -> None:
    """Ready, 401 without a key, a stream with one."""
    done = check(api, API_NEEDS_KEY="true", API_KEY=KEY)
    assert done.returncode == 0, done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("ok")] == [
        "ok: ready",
        "ok: 401 without a key",
        "ok: a streamed completion",
    ]


@pytest.mark.parametrize(
    ("api", "failed"),
    [
        ({"ready": 503}, "ready"),
        ({"needs_key": False}, "401 without a key"),
        ({"ending": "{}"}, "a streamed completion"),
    ],
    indirect=["api"],
)
def test_the_check_fails_an_api_that_is_not(api: str, failed: str) -> None:
    """The first thing that is wrong is named."""
    done = check(api, API_NEEDS_KEY="true", API_KEY=KEY)
    assert done.returncode == 1
    assert f"FAILED: {failed}" in done.stdout


def test_the_check_says_what_it_did_not_look_at(api: str) -> None:
    """Without a key there is no completion to ask for."""
    done = check(api, API_NEEDS_KEY="true")
    assert done.returncode == 0
    assert "skipped: a streamed completion" in done.stdout


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A `ray` that writes down how it was called, and a wget that answers as the real one: 8 twice, then 4."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ray").write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/ray; exit ${{RAY_STATUS:-0}}\n')
    (folder / "wget").write_text(
        f"#!/bin/bash\necho x >> {tmp_path}/asked\n[ $(wc -l < {tmp_path}/asked) -ge 3 ] && exit 4\nexit 8\n"
    )
    (folder / "sleep").write_text("#!/bin/bash\n")
    for tool in folder.iterdir():
        tool.chmod(0o755)
    return folder


def drain(tools: Path, **variables: str) -> int:
    command = ["bash", str(CHART / "files" / "drain.sh"), "60", "8000"]
    env = {"PATH": f"{tools}:{os.defpath}", **variables}
    return subprocess.run(command, env=env, timeout=60).returncode


def test_a_pod_drains_until_its_proxy_is_gone(tools: Path, tmp_path: Path) -> None:
    """A proxy that drains answers 503: only a closed port ends the wait."""
    assert drain(tools) == 0
    assert (tmp_path / "ray").read_text().split()[:3] == ["drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    assert len((tmp_path / "asked").read_text().split()) == 3


def test_a_pod_whose_ray_is_gone_does_not_wait(tools: Path, tmp_path: Path) -> None:
    """There is nobody to drain."""
    assert drain(tools, RAY_STATUS="1") == 0
    assert not (tmp_path / "asked").exists()


def test_wget_tells_a_closed_port_from_a_server_that_refuses() -> None:
    """The difference that the drain relies on: exit status 4."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/"
        assert subprocess.run(["wget", "--tries", "1", "-T", "2", "-q", "-O", "/dev/null", url]).returncode == 4


def test_ray_still_has_the_command_that_drains() -> None:
    """It is hidden from Ray's help, so its options are checked here."""
    from ray.core.generated import autoscaler_pb2
    from ray.scripts.scripts import drain_node

    assert {"reason", "reason_message", "deadline_remaining_seconds"} <= {option.name for option in drain_node.params}
    assert "DRAIN_NODE_REASON_PREEMPTION" in dict(autoscaler_pb2.DrainNodeReason.items())


def test_the_image_has_what_the_chart_asks_of_it() -> None:
    """Both are in one repository: user, tools of the probes, folders, the nano model; and no HEALTHCHECK."""
    text = (ROOT / "ops" / "docker" / "Dockerfile").read_text()
    runtime = text.split(" AS runtime")[1]
    assert "HEALTHCHECK" not in [line.split(" ")[0] for line in text.splitlines()]
    assert "USER ${UID}:${UID}" in runtime
    assert "ARG UID=1000" in runtime
    for word in ("wget", "bash", "/etc/step35", "/models"):
        assert word in runtime
    assert "/opt/step35/nano" in text
    assert "g++" not in runtime, "compilers stay in the stage that needs them"
    copied = [
        word
        for line in text.splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    ]
    assert all((ROOT / word).exists() for word in copied)
