"""The benchmark runner records what a benchmark printed, and nothing of one that failed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ops.bench import __main__ as runner

GOOD = ("timeit", "-n1", "-r1", "print('42 µs')")
BAD = ("timeit", "-n1", "-r1", "raise ValueError")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results file of the test's own."""
    path = tmp_path / "RESULTS.md"
    monkeypatch.setattr(runner, "RESULTS", path)
    return path


def _benchmarks(monkeypatch: pytest.MonkeyPatch, **modules: Sequence[str]) -> None:
    monkeypatch.setattr(runner, "BENCHMARKS", modules)


def test_section_shows_date_machine_command_and_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded text, whole."""
    _benchmarks(monkeypatch, speed=("ops.bench.speed", "--fast"))
    text = runner.section(datetime(2026, 1, 2, 3, 4, tzinfo=UTC), ["two cores"], {"speed": "a\nb\n"})
    assert text == (
        "\n## 2026-01-02 03:04 UTC\n\n- two cores\n\n### speed\n\n```\n$ python -m ops.bench.speed --fast\na\nb\n```\n"
    )


def test_a_benchmark_that_fails_is_not_recorded(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One good and one bad benchmark: the good one is in the file, and the exit status tells of the other."""
    _benchmarks(monkeypatch, good=GOOD, bad=BAD)
    assert runner.main([]) == 1
    assert "42 µs" in results.read_text()
    assert "### bad" not in results.read_text()


def test_only_named_benchmarks_run(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name selects; the bad benchmark is not started."""
    _benchmarks(monkeypatch, good=GOOD, bad=BAD)
    assert runner.main(["good"]) == 0
    assert "### good" in results.read_text()


def test_an_unknown_name_lists_the_known(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing runs and nothing is recorded."""
    _benchmarks(monkeypatch, good=GOOD)
    assert runner.main(["godo"]) == 2
    assert capsys.readouterr().err == "unknown benchmark godo; known: good\n"
    assert not results.exists()


def test_a_benchmark_past_its_deadline_is_killed(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that waits for an event that never comes ends all the same, and counts as failed."""
    monkeypatch.setattr(runner, "DEADLINE_S", 0.5)
    _benchmarks(monkeypatch, stuck=("timeit", "-n1", "-r1", "import threading; threading.Event().wait(60)"))
    assert runner.main([]) == 1
    assert not results.exists()
