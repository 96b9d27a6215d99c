"""The operator's guide can be followed with eyes half closed: one form, commands that parse, names that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from textwrap import dedent

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.config import ClusterConfig

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "ops" / "runbooks" / "operators_guide.md").read_text()
CHART = "\n".join(path.read_text() for path in sorted((ROOT / "helm/step35-cluster/templates").rglob("*.*")))
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", GUIDE, flags=re.MULTILINE))
BLOCKS = [dedent(block) for block in re.findall(r"^ *```sh\n(.*?)^ *```", GUIDE, flags=re.MULTILINE | re.DOTALL)]
PARTS = ["When", "Do", "It worked when", "If not"]
BY_ITSELF = "What happens by itself"


@pytest.mark.parametrize("title", [title for title in SECTIONS if title != "Ways in"])
def test_sections_have_one_form(title: str) -> None:
    """When to come here, what to do, what is seen when it worked, and what to do when not, in this order."""
    parts = re.findall(r"^\*\*([A-Z][a-z ]+?)\.?\*\*", SECTIONS[title], flags=re.MULTILINE)
    assert [part for part in parts if part != BY_ITSELF] == PARTS
    assert BY_ITSELF not in parts or parts.index(BY_ITSELF) == 1


def test_whatever_can_be_lost_is_there() -> None:
    """Each tier, the control plane, and a rebalance in two states."""
    assert {title for title in SECTIONS if title.startswith("Lost ")} == {
        f"Lost {what}" for what in ("expert rank", "attention replica", "coordinator", "head")
    }
    assert {"Stuck rebalance", "Back out of a bad rebalance"} < set(SECTIONS)


@pytest.mark.parametrize("block", [pytest.param(block, id=block.split("\n", 1)[0][:40]) for block in BLOCKS])
def test_blocks_are_shell(block: str) -> None:
    """bash understands each; nothing is run."""
    checked = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, timeout=10, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_functions_that_commands_use_are_defined_first() -> None:
    """In the block that the guide says to paste."""
    first = BLOCKS[0]
    assert first.startswith("NS=")
    for name in ("pods", "head_pod", "step35"):
        assert f"\n{name}() {{" in first
    variables = {name for block in BLOCKS for name in re.findall(r"\$([A-Z_]+)", block)}
    defined = {name for block in BLOCKS for name in re.findall(r"\b([A-Z_]+)=", block)}
    assert variables - defined == set()


def test_local_commands_exist() -> None:
    """Those of this repository's own environment; the others are checked with the runbooks'."""
    commands = re.findall(r"\.venv/bin/step35 ([\w-]+)([^`\n]*)", GUIDE)
    assert commands
    for name, rest in commands:
        told = CliRunner().invoke(app, [name, "--help"])
        assert told.exit_code == 0
        assert [option for option in re.findall(r"--[\w-]+", rest) if option not in told.output] == []


def test_what_is_in_the_pods_is_what_the_chart_puts_there() -> None:
    """Containers and files."""
    containers, files = set(re.findall(r" -c ([a-z-]+) -- ", GUIDE)), set(re.findall(r"/etc/step35/[\w./-]+", GUIDE))
    assert containers
    assert files
    assert [name for name in containers if f"- name: {name}\n" not in CHART] == []
    assert [path for path in files if path not in CHART] == []


def test_seconds_are_the_defaults() -> None:
    """A field with a number of seconds behind it has that default."""
    config = ClusterConfig.model_validate({"checkpoint": "/anywhere"})
    told = re.findall(r"`([a-z_.]+)` \((\d+) s\)", GUIDE)
    assert told
    for field, seconds in told:
        value: object = config
        for name in field.split("."):
            value = getattr(value, name)
        assert value == float(seconds), field
