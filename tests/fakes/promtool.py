"""The real promtool: whether rules are well-formed, and what expressions make of series written by hand."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MISSING = "promtool is not installed; it is part of the Debian package prometheus"
TIMEOUT_S = 60
DIGITS = 4  # promtool compares values to the bit


@dataclass(frozen=True)
class Promtool:
    """The binary, and a folder for its input."""

    binary: str
    folder: Path

    def check(self, rules: str) -> str:
        """What promtool says against a rules file; empty: nothing."""
        file = self.folder / "checked.rules.yml"
        file.write_text(rules)
        return self.run("check", "rules", str(file))

    def evaluate(self, expression: str, series: Mapping[str, str], expected: Mapping[str, float], at: str) -> str:
        """What promtool says against the claim that `expression` gives these values, by labels; empty: nothing."""
        samples = [{"labels": labels, "value": round(value, DIGITS)} for labels, value in expected.items()]
        test = {"expr": f"round({expression}, {10**-DIGITS})", "eval_time": at, "exp_samples": samples}
        given = [{"series": name, "values": values} for name, values in series.items()]
        return self.test([{"interval": "30s", "input_series": given, "promql_expr_test": [test]}])

    def test(self, tests: Sequence[dict[str, Any]]) -> str:
        file = self.folder / "expressions.test.yml"
        file.write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": "30s", "tests": list(tests)}))
        return self.run("test", "rules", str(file))

    def run(self, *words: str) -> str:
        done = subprocess.run([self.binary, *words], capture_output=True, text=True, timeout=TIMEOUT_S)
        return "" if done.returncode == 0 else done.stdout + done.stderr


def find_promtool(folder: Path) -> Promtool | None:
    binary = shutil.which("promtool")
    return Promtool(binary, folder) if binary else None
