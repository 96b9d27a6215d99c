"""The files made of alerts and cases: rules for Prometheus, tests for promtool, and the groups for the chart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ops.alerts.cases import Case
from ops.alerts.rules import ALERTS, GROUPS, PREFIX, Alert
from ops.alerts.tier_cases import CASES
from ops.made_files import ROOT

RULES = ROOT / "ops" / "alerts" / "step35.rules.yml"
TESTS = ROOT / "ops" / "alerts" / "step35.tests.yml"
# Helm reads its own files only, and the template puts a list of groups into the object's spec.
CHART_GROUPS = ROOT / "helm" / "step35-cluster" / "files" / "alerts" / "step35.yaml"

HEADER = "# Made from ops/alerts/rules.py and the cases beside it: python -m ops.alerts --write\n"
INTERVAL = "30s"  # between two values of a series
EVALUATION_INTERVAL = "1m"


class _Dumper(yaml.SafeDumper):
    """Expressions over several lines stay so."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def files() -> Mapping[Path, str]:
    """Path and content of each file, as it should be."""
    return {
        RULES: _yaml({"groups": groups()}),
        TESTS: _yaml(promtool_tests()),
        CHART_GROUPS: _yaml(groups()),
    }


def groups() -> list[dict[str, Any]]:
    """What a rules file has under `groups`, and a PrometheusRule under `spec.groups`."""
    return [{"name": group.name, "rules": [_rule(alert) for alert in group.alerts]} for group in GROUPS]


def promtool_tests() -> dict[str, Any]:
    """Two tests for each case: it fires and says so, and it is quiet."""
    alerts = {alert.name: alert for alert in ALERTS}
    tests = [test for case in CASES for test in _tests(case, alerts[case.alert])]
    return {"rule_files": [RULES.name], "evaluation_interval": EVALUATION_INTERVAL, "tests": tests}


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.full_name,
        "expr": alert.expression,
        "for": alert.duration,
        "labels": {"severity": alert.severity.value},
        "annotations": {"summary": alert.summary, "description": alert.description, "runbook": alert.runbook},
    }


def _tests(case: Case, alert: Alert) -> list[dict[str, Any]]:
    annotations = {"summary": alert.summary, "description": case.says, "runbook": alert.runbook}
    firing = {"exp_labels": {**case.labels, "severity": alert.severity.value}, "exp_annotations": annotations}
    return [
        {
            "name": f"{PREFIX}{case.alert} {name}",
            "interval": INTERVAL,
            "input_series": [{"series": series, "values": values} for series, values in given.items()],
            "alert_rule_test": [{"eval_time": case.at, "alertname": alert.full_name, "exp_alerts": expected}],
        }
        for name, given, expected in (("fires", case.fires, [firing]), ("is quiet", case.quiet, []))
    ]


def _yaml(value: Any) -> str:
    return HEADER + yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
