"""The command line: its whole list of options, what `check` prints, what wrong input gets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from actors.weights.check import read_model_config
from actors.weights.loader import load_expert_weights
from actors.weights.source import SafetensorsSource
from cluster.cli import app
from routing.experts import linear_expert_map
from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.configs import FP8_QUANTIZATION, tiny_config

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


def test_check_tells_what_is_read_from_what_is_held(tmp_path: Path) -> None:
    """fp8 experts take twice their bytes in memory, and the draft modules none."""
    write_checkpoint(tmp_path, tiny_config(quantization_config=FP8_QUANTIZATION), seed=0)
    config = read_model_config(tmp_path)
    expert_map = linear_expert_map(len(config.moe_layers), config.num_experts, 4)
    with SafetensorsSource(tmp_path) as source:
        layers = load_expert_weights(source, config, expert_map, 0)
    held = sum(layer.gate.nbytes + layer.up.nbytes + layer.down.nbytes for layer in layers)
    result = RUNNER.invoke(app, ["check", str(tmp_path), "--ep-size", "4"])
    (row,) = (line for line in result.output.splitlines() if "expert 0" in line)
    assert re.findall(r"[\d.]+ MiB", row) == ["0.1 MiB", f"{held / 2**20:.1f} MiB"]
    assert re.search(r"3 draft modules: [\d.]+ MiB more for each attention rank", result.output)
    assert "6 layers " in result.output


def test_check_lists_what_is_wrong(checkpoint: Path) -> None:
    """EP size 3 does not divide 16 experts: exit code 1, both numbers."""
    result = RUNNER.invoke(app, ["check", str(checkpoint), "--ep-size", "3"])
    assert result.exit_code == 1
    assert "ep_size 3 must divide the 16 routed experts" in result.stderr


@pytest.mark.parametrize("command", ["check", "serve"])
def test_what_the_gateway_would_refuse_is_told_first(command: str, tmp_path: Path) -> None:
    """A checkpoint without its tokenizer is not sound; its problem is listed with those of the weights, each once."""
    write_checkpoint(tmp_path, tiny_config(), seed=0)
    (tmp_path / "tokenizer.json").unlink()
    next(tmp_path.glob("*.safetensors")).unlink()
    result = RUNNER.invoke(app, [command, str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.count("tokenizer.json cannot be read") == 1
    assert ".safetensors" in result.stderr
    (tmp_path / "config.json").write_text("[]")
    assert RUNNER.invoke(app, [command, str(tmp_path)]).stderr.count("config.json cannot be used") == 1


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
