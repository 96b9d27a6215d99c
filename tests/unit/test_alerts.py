"""Alerts: the files are what Python makes, promtool agrees, and whoever is woken finds a runbook that is true."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel
from typer.core import TyperGroup

from cluster.cli import app
from cluster.config import ClusterConfig
from ops.alerts.rule_files import CHART_GROUPS, RULES, TESTS, files
from ops.alerts.rules import ALERTS, PREFIX, Severity
from ops.alerts.tier_cases import CASES
from tests.checks.promql import labels_of, problems
from tests.fakes.promtool import MISSING, Promtool, find_promtool

ROOT = Path(__file__).parents[2]
RUNBOOKS = ROOT / "ops" / "runbooks"
PAGES = sorted(RUNBOOKS.glob(f"{PREFIX}*.md"))
FOR_ALL = [RUNBOOKS / "README.md", RUNBOOKS / "operators_guide.md"]
HEADINGS = ["Confirm", "Causes, likely first", "Do", "Over when", "Silence"]
DURATION = re.compile(r"\d+[mh]")
# A field or value in backticks, such as `attention.engine.max_running`.
SECTIONS = (
    "admin|apiKeys|attention|autoscaling|balancing|budgets|control|experts|gateway|head|kubernetes|model|monitoring|"
    "networkPolicy|nodeWatch|ray|telemetry|tests|upgrade"
)
FIELD = re.compile(rf"`((?:{SECTIONS})(?:\.\w+)+)`")

ALERT = pytest.mark.parametrize("alert", [pytest.param(alert, id=alert.name) for alert in ALERTS])
PAGE = pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES])


@pytest.fixture
def promtool(tmp_path: Path) -> Promtool:
    found = find_promtool(tmp_path)
    if found is None:
        pytest.skip(MISSING)
    return found


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_files_are_what_python_makes(path: Path) -> None:
    """Mend with: python -m ops.alerts --write."""
    assert path.read_text() == files()[path]


def test_the_chart_has_the_same_groups() -> None:
    """What Prometheus reads from a file and from a PrometheusRule is one thing."""
    assert yaml.safe_load(CHART_GROUPS.read_text()) == yaml.safe_load(RULES.read_text())["groups"]


@ALERT
def test_expressions_name_only_what_is_recorded(alert: Any) -> None:
    """Metrics, labels and values of labels are those of the registry, or Prometheus's own."""
    assert problems(alert.expression) == []


@ALERT
def test_alerts_say_what_they_must(alert: Any) -> None:
    """A sentence each, a severity, a duration, and the cluster's name."""
    assert re.fullmatch(r"[A-Z][A-Za-z]+", alert.name)
    assert alert.severity in Severity
    assert DURATION.fullmatch(alert.duration)
    assert alert.summary.endswith(".")
    assert "{{" not in alert.summary
    assert "{{ $labels.job }}" in alert.description
    assert (ROOT / alert.runbook).is_file()


@ALERT
def test_labels_in_descriptions_are_kept_by_the_expression(alert: Any) -> None:
    """A label that was summed over would be shown as nothing."""
    named = set(re.findall(r"\$labels\.(\w+)", alert.description))
    first = alert.expression.split("\nand")[0].split("\nunless")[0]
    grouped = re.search(r"by \(([^)]*)\)", first)
    kept = set(grouped[1].split(", ")) if grouped else {"job", "instance", "role", "member"}
    assert named <= kept


def test_every_alert_has_cases_and_no_name_is_used_twice() -> None:
    """Each fires under some series and stays quiet under others."""
    names = [alert.name for alert in ALERTS]
    assert len(set(names)) == len(names)
    assert {case.alert for case in CASES} == set(names)
    for case in CASES:
        assert case.fires
        assert case.quiet
        assert case.fires != case.quiet
        assert all(problems(series) == [] for series in (*case.fires, *case.quiet))


def test_promtool_accepts_the_rules(promtool: Promtool) -> None:
    """Expressions and templates parse."""
    assert promtool.run("check", "rules", str(RULES)) == ""


@pytest.mark.timeout(120)  # promtool evaluates all rules for each of some eighty tests
def test_alerts_fire_when_they_should_and_only_then(promtool: Promtool) -> None:
    """Labels and filled-in descriptions included."""
    assert promtool.run("test", "rules", str(TESTS)) == ""


def test_promtool_finds_an_alert_that_does_not_fire(promtool: Promtool) -> None:
    """The tests above can fail: without its series an alert is missed."""
    tests = yaml.safe_load(TESTS.read_text())
    test = next(test for test in tests["tests"] if test["name"] == f"{PREFIX}ExpertRanksMissing fires")
    file = promtool.folder / "without.tests.yml"
    file.write_text(yaml.safe_dump({**tests, "rule_files": [str(RULES)], "tests": [{**test, "input_series": []}]}))
    assert f"{PREFIX}ExpertRanksMissing" in promtool.run("test", "rules", str(file))


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    """Of the same name; README.md and the operator's guide are for all."""
    pages = {page for page in RUNBOOKS.iterdir() if page not in FOR_ALL}
    assert {page.name for page in pages} == {f"{alert.full_name}.md" for alert in ALERTS}


@PAGE
def test_runbooks_have_one_form(page: Path) -> None:
    """What is wanted at three in the morning is always in the same place, and the severity is the alert's."""
    text = page.read_text()
    assert text.startswith(f"# {page.stem}\n\n")
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == HEADINGS
    alert = next(alert for alert in ALERTS if alert.full_name == page.stem)
    assert text.splitlines()[2].startswith(f"{alert.severity.value.capitalize()}. ")
    assert "**Users feel:**" in text
    assert f"alertname={page.stem} " in text
    assert len(text.splitlines()) <= 70


@pytest.mark.parametrize("page", [*PAGES, *FOR_ALL], ids=lambda page: page.stem)
def test_runbooks_name_only_what_exists(page: Path) -> None:
    """Queries, metrics, commands with their options, links, fields of the configuration and values of the chart."""
    text = page.read_text()
    for block in re.findall(r"```promql\n(.*?)```", text, flags=re.DOTALL):
        for query in block.strip().splitlines():
            assert problems(query) == [], query
    assert [name for name in re.findall(r"\bstep35_\w+", text) if labels_of(name) is None] == []
    assert [command for command in _commands(text) if not _exists(command)] == []
    assert [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not (RUNBOOKS / link).is_file()] == []
    assert [field for field in FIELD.findall(text) if not _is_set_somewhere(field)] == []


def test_the_check_of_commands_finds_what_is_wrong() -> None:
    """Unknown commands and unknown options."""
    assert _exists("step35 experts rebalance --dry-run")
    assert not _exists("step35 experts move")
    assert not _exists("step35 experts rebalance --now")
    assert not _exists("step35 expert")


@PAGE
def test_queries_of_runbooks_are_understood(page: Path, promtool: Promtool) -> None:
    """promtool parses each one."""
    queries = [
        line for block in re.findall(r"```promql\n(.*?)```", page.read_text(), re.DOTALL) for line in block.split("\n")
    ]
    rules = [{"record": f"query_{idx}", "expr": query} for idx, query in enumerate(filter(None, queries))]
    assert rules
    assert promtool.check(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]})) == ""


def _commands(text: str) -> Iterator[str]:
    """Everything after `step35` up to the end of the line or of the backticks."""
    yield from re.findall(r"(?<![\w/-])step35(?: [\w-]+[^`\n]*)", text)


def _exists(command: str) -> bool:
    """Each word is a command of the one before it, an option that it has, or an argument or an option's value."""
    node: Any = typer.main.get_command(app)
    for before, word in pairwise(shlex.split(command)):
        if word.startswith("-"):
            if not any(word in parameter.opts for parameter in node.params):
                return False
        elif isinstance(node, TyperGroup) and not before.startswith("--"):
            found = node.commands.get(word)
            if found is None:
                return False
            node = found
    return True


def _is_set_somewhere(field: str) -> bool:
    return _is_field(field) or _is_value(field)


def _is_field(field: str) -> bool:
    model: Any = ClusterConfig
    for name in field.split("."):
        if not (isinstance(model, type) and issubclass(model, BaseModel) and name in model.model_fields):
            return False
        model = model.model_fields[name].annotation
    return True


def _is_value(field: str) -> bool:
    values: Any = yaml.safe_load((ROOT / "helm" / "step35-cluster" / "values.yaml").read_text())
    for name in field.split("."):
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return True
