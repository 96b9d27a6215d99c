"""The command line: its whole list of options, what `check` prints, what wrong input gets."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cluster.cli import app
from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.configs import tiny_config

RUNNER = CliRunner()


def test_no_new_options() -> None:
    """Settings belong into the configuration; whoever adds a flag changes this list and says why."""
    command = typer.main.get_command(app)
    options = {
        name: sorted(option for parameter in sub.params for option in parameter.opts)
        for name, sub in command.commands.items()  # type: ignore[attr-defined]
    }
    assert options == {"serve": ["--config", "--log-level", "checkpoint"], "check": ["--ep-size", "checkpoint"]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "tiny"
    write_checkpoint(folder, tiny_config(), seed=0)
    return folder


def test_check_shows_what_each_rank_would_hold(checkpoint: Path) -> None:
    """One line for attention, one for each of the four ranks: 16 experts over 4."""
    result = RUNNER.invoke(app, ["check", str(checkpoint), "--ep-size", "4"])
    assert result.exit_code == 0
    assert "sound" in result.output
    assert [f"expert {rank}" in result.output for rank in range(5)] == [True, True, True, True, False]
    assert "4 experts in each of" in result.output


def test_check_lists_what_is_wrong(checkpoint: Path) -> None:
    """EP size 3 does not divide 16 experts: exit code 1, both numbers."""
    result = RUNNER.invoke(app, ["check", str(checkpoint), "--ep-size", "3"])
    assert result.exit_code == 1
    assert "ep_size 3 must divide the 16 routed experts" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve"], "checkpoint is missing"),
        (["serve", "absent-folder"], "config.json"),
        (["serve", "absent-folder", "--log-level", "loud"], "log_level = 'loud'"),
        (["serve", "--config", "absent.yaml"], "absent.yaml cannot be read"),
        (["check", "absent-folder"], "config.json"),
    ],
)
def test_wrong_input_is_refused_before_anything_starts(arguments: list[str], message: str) -> None:
    """A sentence on stderr, no trace, exit code 1, and no Ray."""
    result = RUNNER.invoke(app, arguments, env={"STEP35__CHECKPOINT": None})
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output
