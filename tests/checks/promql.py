"""What an expression names: metrics, their matchers, and the labels that it groups and joins by; held to the registry.

Reads PromQL as tokens, as far as names go. Whether an expression is well-formed is promtool's to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ops.telemetry.exposition import ALIAS_LABELS, PROCESS_LABELS
from ops.telemetry.metrics import METRICS
from ops.telemetry.spec import Kind

SCRAPE_LABELS = ("job", "instance")
OF_PROMETHEUS = {"up": SCRAPE_LABELS}
HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")

_TOKEN = re.compile(r'"[^"]*"|\$?[A-Za-z_][\w:]*|[(){}\[\],]|=~|!~|!=|==|>=|<=|[-=<>+*/^%]|[\d.]+[a-z]*')
_METRIC = re.compile(r"(step35_|vllm:)\w+|up")
_GROUPING = ("by", "without", "on", "ignoring", "group_left", "group_right")


@dataclass(frozen=True)
class Selector:
    """A metric as an expression names it. matchers: (label, operator, value)."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]


def problems(expression: str) -> list[str]:
    """What the registry does not know, one sentence each."""
    tokens = _TOKEN.findall(expression)
    found = list(_selectors(tokens))
    if not found:
        return ["names no metric"]
    unknown = [f"{selector.name}: no such metric" for selector in found if labels_of(selector.name) is None]
    return unknown or [*_matcher_problems(found), *_grouping_problems(tokens)]


def selectors(expression: str) -> list[Selector]:
    return list(_selectors(_TOKEN.findall(expression)))


def labels_of(name: str) -> frozenset[str] | None:
    """Labels that its series can have, or None for a metric that nobody records."""
    if name in OF_PROMETHEUS:
        return frozenset(OF_PROMETHEUS[name])
    for spec in METRICS.values():
        parts = HISTOGRAM_PARTS if spec.kind is Kind.HISTOGRAM else ("",)
        for part in parts:
            bucket = ("le",) if part == "_bucket" else ()
            if name == spec.name + part:
                return frozenset((*spec.label_names, *bucket, *PROCESS_LABELS, *SCRAPE_LABELS))
            if name in {alias.name + part for alias in spec.aliases}:
                return frozenset((*ALIAS_LABELS, *bucket, *SCRAPE_LABELS))
    return None


def values_of(name: str, label_name: str) -> tuple[str, ...]:
    """All values that a label can have; none: any."""
    spec = METRICS.get(name)
    labels: Mapping[str, tuple[str, ...]] = {label.name: label.values for label in spec.labels} if spec else {}
    return labels.get(label_name, ())


def _selectors(tokens: Sequence[str]) -> Iterator[Selector]:
    for idx, token in enumerate(tokens):
        if not _METRIC.fullmatch(token):
            continue
        matchers: list[tuple[str, str, str]] = []
        if tokens[idx + 1 : idx + 2] == ["{"]:
            inner = [word for word in tokens[idx + 2 : tokens.index("}", idx)] if word != ","]
            matchers = [(inner[i], inner[i + 1], inner[i + 2].strip('"')) for i in range(0, len(inner), 3)]
        yield Selector(token, tuple(matchers))


def _matcher_problems(found: Sequence[Selector]) -> Iterator[str]:
    for selector in found:
        for label, operator, value in selector.matchers:
            known = values_of(selector.name, label)
            wanted = value.split("|") if "~" in operator else [value]
            if label not in (labels_of(selector.name) or ()):
                yield f"{selector.name}: no label {label}"
            elif known and not value.startswith("$") and set(wanted) - set(known):
                yield f"{selector.name}: {label} is never {value}"


def _grouping_problems(tokens: Sequence[str]) -> Iterator[str]:
    """`by`: every metric inside must have the label. Joins: some metric of the expression must."""
    everywhere = {label for name in _metrics(tokens) for label in labels_of(name) or ()}
    for idx, token in enumerate(tokens):
        if token not in _GROUPING or tokens[idx + 1 : idx + 2] != ["("]:
            continue
        end = tokens.index(")", idx)
        inside = tokens[end + 1 : _closing(tokens, end + 1) + 1] if token in ("by", "without") else ()
        for label in (word for word in tokens[idx + 2 : end] if word != ","):
            if label not in everywhere:
                yield f"{token} ({label}): no metric here has it"
            for name in _metrics(inside):
                if label not in (labels_of(name) or ()):
                    yield f"{token} ({label}): {name} has no such label"


def _metrics(tokens: Sequence[str]) -> list[str]:
    return [token for token in tokens if _METRIC.fullmatch(token)]


def _closing(tokens: Sequence[str], opening: int) -> int:
    """Index of the parenthesis that closes the one at `opening`."""
    assert tokens[opening] == "(", "an aggregation's labels come before its argument"
    depth = 0
    for idx in range(opening, len(tokens)):
        depth += {"(": 1, ")": -1}.get(tokens[idx], 0)
        if depth == 0:
            return idx
    raise AssertionError(f"a parenthesis is never closed: {' '.join(tokens)}")
