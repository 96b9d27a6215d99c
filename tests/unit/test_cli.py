"""The command line: its whole list of options, what `check` prints, what wrong input gets."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from actors.weights.check import read_model_config
from actors.weights.loader import load_expert_weights
from actors.weights.source import SafetensorsSource
from cluster.cli import _prepare_admin, _ready_message, app
from cluster.config import ClusterConfig
from cluster.errors import ConfigurationError, PortUnavailable
from routing.experts import linear_expert_map
from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.configs import FP8_QUANTIZATION, tiny_config

RUNNER = CliRunner()


def options_of(command: Any, name: str = "step35") -> dict[str, list[str]]:
    """Every command below this one with its options and arguments."""
    found = {name: sorted(option for parameter in command.params for option in parameter.opts)}
    for sub_name, sub in getattr(command, "commands", {}).items():
        found |= options_of(sub, f"{name} {sub_name}")
    return found


def test_no_new_options() -> None:
    """Settings belong into the configuration; whoever adds a flag changes this list and says why."""
    assert options_of(typer.main.get_command(app)) == {
        "step35": ["--install-completion", "--show-completion"],
        "step35 serve": ["--config", "--log-level", "checkpoint"],
        "step35 check": ["--ep-size", "checkpoint"],
        "step35 top": ["--config", "--interval", "--once"],
        "step35 experts": ["--all", "--config", "--json"],
        "step35 experts rebalance": ["--config", "--dry-run", "--json"],
        "step35 experts pin": ["--config", "--json", "--ranks", "expert", "layer"],
        "step35 experts unpin": ["--config", "--json", "expert", "layer"],
        "step35 experts pause": ["--config", "--json"],
        "step35 experts resume": ["--config", "--json"],
    }


@pytest.mark.parametrize("command", [key.split()[1:] for key in options_of(typer.main.get_command(app))])
def test_every_command_explains_itself(command: list[str]) -> None:
    """Its options each have a sentence, and the text fits a terminal."""
    result = RUNNER.invoke(app, [*command, "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    for option in options_of(typer.main.get_command(app))[" ".join(["step35", *command])]:
        assert option in result.stdout


def test_the_shell_completes_commands() -> None:
    """What --install-completion makes the shell ask; the help of step35 names it."""
    words = {"_STEP35_COMPLETE": "complete_bash", "COMP_WORDS": "step35 experts p", "COMP_CWORD": "2"}
    result = RUNNER.invoke(app, [], prog_name="step35", env=words)
    assert result.stdout.split() == ["pin", "pause"]
    assert "step35 --install-completion" in RUNNER.invoke(app, ["--help"]).stdout


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


def config_of(tmp_path: Path, port: int = 8001, **fields: Any) -> ClusterConfig:
    """As a file would give it."""
    admin = {"port": port, "token_file": str(tmp_path / "new" / "admin.token")}
    return ClusterConfig.model_validate({"checkpoint": "/models/step", "admin": admin, **fields})


def test_serve_makes_the_token_and_looks_at_the_port(tmp_path: Path) -> None:
    """Before Ray starts: the coordinator could say neither on the terminal."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        config = config_of(tmp_path, other.getsockname()[1])
        with pytest.raises(PortUnavailable, match=r"is in use: set admin\.port"):
            _prepare_admin(config)
    _prepare_admin(config)
    assert config.admin.token_file.stat().st_mode & 0o777 == 0o600
    config.admin.token_file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="run: chmod 600"):
        _prepare_admin(config)


def test_on_a_ray_cluster_that_runs_the_token_must_exist(tmp_path: Path) -> None:
    """One made here would not be the one that a coordinator elsewhere reads; its port is another machine's."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        config = config_of(tmp_path, other.getsockname()[1], ray={"address": "auto"})
        with pytest.raises(ConfigurationError, match=r"admin\.token_file = .* is not there"):
            _prepare_admin(config)
        assert not config.admin.token_file.exists()
        config.admin.token_file.parent.mkdir()
        config.admin.token_file.write_text("token\n")
        config.admin.token_file.chmod(0o600)
        _prepare_admin(config)


def test_the_ready_message_says_how_to_watch(tmp_path: Path) -> None:
    """The command as it must be typed, and where it asks; nothing of it without an admin route."""
    url = "http://127.0.0.1:8000"
    text = _ready_message(config_of(tmp_path), url, None)
    assert "watch: http://127.0.0.1:8001   (token: " in text
    assert "step35 top   and   step35 experts\n" in text
    text = _ready_message(config_of(tmp_path, ray={"address": "auto"}), url, Path("my cluster.yaml"))
    assert "step35 experts --config 'my cluster.yaml'" in text
    assert "watch: http://127.0.0.1:8001, on the coordinator's machine   (token: " in text
    assert "watch" not in _ready_message(config_of(tmp_path, admin={"enabled": False}), url, None)
