"""Targets of the local Prometheus: found by asking, kept for a while after they fell silent, written at once."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from ops.prometheus import __main__ as command
from ops.prometheus.errors import PrometheusMissing
from ops.prometheus.scrape_files import RULES, ScrapeFiles
from ops.prometheus.server import find_binary
from ops.prometheus.targets import Targets, TargetTable, ask
from ops.telemetry.exporter import Exporter, ExporterConfig
from ops.telemetry.exposition import ProcessLabels
from ops.telemetry.matrix import ExpertMatrix
from ops.telemetry.recording import RecordingMeter
from ops.telemetry.spec import Owner

ANY_PORT = ExporterConfig(port=0)


@pytest.fixture
def _signals_as_before() -> Iterator[None]:
    """main() sets handlers."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_silent_target_stays_for_a_while() -> None:
    """Ten seconds here: silent since 100, listed until 110, gone at 111; back when it answers again."""
    table = TargetTable(keep_s=10.0)
    assert table.update({5: False, 3: True}, 100.0) == Targets((3, 5), (3,))
    assert table.update({5: False}, 110.0) == Targets((3, 5), (3,))
    assert table.update({5: False}, 111.0) == Targets((5,), ())
    assert table.update({5: False, 3: False}, 112.0) == Targets((3, 5), ())


def test_a_port_that_never_answered_is_no_target() -> None:
    """Sixty-four ports of which none answers are no dead targets."""
    assert TargetTable().update({}, 0.0) == Targets()


def test_asking_finds_our_exporters_only() -> None:
    """One with a matrix, one without; not a port that nobody has, nor one that says nothing or something else."""
    matrix = ExpertMatrix((3,), 2)
    matrix.set({"step35_expert_load_tokens": np.ones((1, 2))})
    exporters = [
        Exporter(RecordingMeter(Owner.COORDINATOR), ProcessLabels(Owner.COORDINATOR, "c"), ANY_PORT, matrix=matrix),
        Exporter(RecordingMeter(Owner.COORDINATOR), ProcessLabels(Owner.COORDINATOR, "d"), ANY_PORT),
        Exporter(RecordingMeter(Owner.EXPERT), ProcessLabels(Owner.EXPERT, "e", ep_rank=1), ANY_PORT),
    ]
    try:
        ports = [exporter.start() for exporter in exporters]
        with socket.create_server(("127.0.0.1", 0)) as foreign, socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            talking = threading.Thread(target=_talk_nonsense, args=(foreign,))
            talking.start()
            found = ask([*ports, foreign.getsockname()[1], nobody.getsockname()[1]])
            talking.join(10)
        assert found == {ports[0]: True, ports[1]: False, ports[2]: False}
    finally:
        for exporter in exporters:
            exporter.close()


def test_files_name_targets_rules_and_both_paths(tmp_path: Path) -> None:
    """The lists that the configuration names are those that are written; nothing half-written is left."""
    files = ScrapeFiles(tmp_path)
    files.write_config()
    files.write_targets(Targets((9464, 9465), (9464,)))
    config = yaml.safe_load(files.config.read_text())
    lists = [json.loads(Path(job["file_sd_configs"][0]["files"][0]).read_text()) for job in config["scrape_configs"]]
    assert lists == [[{"targets": ["127.0.0.1:9464", "127.0.0.1:9465"]}], [{"targets": ["127.0.0.1:9464"]}]]
    assert config["rule_files"] == [str(RULES)]
    assert RULES.is_file()
    assert [job["metrics_path"] for job in config["scrape_configs"]] == ["/metrics", "/metrics/experts"]
    assert list(tmp_path.glob("*.draft")) == []


def test_a_missing_binary_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever reads it knows what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PrometheusMissing, match="apt-get install --no-install-recommends prometheus"):
        find_binary()


@pytest.mark.usefixtures("_signals_as_before")
def test_failures_are_a_message_and_status_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No trace."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command.main(["--folder", str(tmp_path / "made")]) == 1
    assert capsys.readouterr().err.startswith("there is no prometheus")


@pytest.mark.parametrize(
    "wrong", [["--listen", "9090"], ["--listen", "h:0"], ["--num-ports", "0"], ["--first-port", "x"]]
)
def test_a_wrong_command_line_is_status_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """And a sentence that names the option."""
    with pytest.raises(SystemExit) as ended:
        command.main(wrong)
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def _talk_nonsense(server: socket.socket) -> None:
    server.settimeout(10)
    connection, _ = server.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"SSH-2.0-nothing of ours\r\n")
