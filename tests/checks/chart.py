"""What is made from other files in the chart: README.md from values.yaml, and the schema's definitions from
ClusterConfig's sections. `python -m tests.checks.chart --write` makes both; a test says when they are stale.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from actors.attention.config import AttentionConfig
from actors.expert.config import ExpertConfig
from cluster.api.settings import ApiLimits
from cluster.balancing import BalancingConfig
from cluster.config import ClusterConfig
from cluster.kube.settings import KubernetesConfig
from cluster.telemetry import TelemetryConfig

CHART = Path(__file__).parents[2] / "helm" / "step35-cluster"
README, SCHEMA, VALUES, HEADER = (
    CHART / name for name in ("README.md", "values.schema.json", "values.yaml", "ABOUT.md")
)

# ClusterConfig's sections that values hold under their own names, without what the chart sets itself: paths of fields.
SECTIONS: dict[str, tuple[type[BaseModel], frozenset[str]]] = {
    "attentionEngine": (AttentionConfig, frozenset({"device", "deterministic"})),
    "expertEngine": (ExpertConfig, frozenset({"device", "deterministic"})),
    "apiLimits": (ApiLimits, frozenset()),
    "balancing": (BalancingConfig, frozenset()),
    "kubernetes": (KubernetesConfig, frozenset({"enabled", "nodes"})),
    "telemetry": (TelemetryConfig, frozenset({"metrics.host", "tracing.headers_file"})),
    "control": (ClusterConfig.model_fields["control"].annotation, frozenset({"drain_timeout_s"})),  # type: ignore[dict-item]
}
MARKER = "<!-- values -->"
KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z_][\w-]*):(?: (?P<value>[^#]*?))?\s*(?:#.*)?$")


class Value(NamedTuple):
    """One documented value: its path, its default as written, and its sentence."""

    path: str
    default: str
    text: str


def main(words: list[str]) -> int:
    """Exit status 1 when something is stale and was not asked to be written."""
    stale = [path for path, text in made().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if "--write" in words:
            path.write_text(made()[path])
        print(f"{path.relative_to(CHART.parents[1])}: {'written' if '--write' in words else 'stale'}")
    return 1 if stale and "--write" not in words else 0


def made() -> dict[Path, str]:
    """Each file that is made, as it should be."""
    return {README: readme(), SCHEMA: schema()}


def readme() -> str:
    rows = "\n".join(
        f"| `{value.path}` | `{value.default}` | {value.text} |" for value in documented(VALUES.read_text())
    )
    table = f"| Value | Default | What it is |\n|---|---|---|\n{rows}"
    return HEADER.read_text().replace(MARKER, table)


def schema() -> str:
    """The schema as it is, with the definitions of ClusterConfig's sections put in anew."""
    fields = json.loads(SCHEMA.read_text())
    fields["definitions"] = {**fields["definitions"], **{name: section(name) for name in SECTIONS}}
    return json.dumps(fields, indent=2, sort_keys=False) + "\n"


def section(name: str) -> dict[str, Any]:
    """One closed object, in the dialect of draft 7, without references."""
    model, left_out = SECTIONS[name]
    made = model.model_json_schema()
    inner = made.pop("$defs", {})
    made.pop("required", None)
    resolved = resolve(made, inner)
    for path in left_out:
        *parents, last = path.split(".")
        del reduce(lambda node, name: node["properties"][name], parents, resolved)["properties"][last]
    return {"type": "object", "additionalProperties": False, "properties": resolved["properties"]}


def resolve(node: Any, inner: dict[str, Any]) -> Any:
    """References replaced by what they name; titles and defaults left out, because values.yaml holds the defaults."""
    if isinstance(node, list):
        return [resolve(item, inner) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return resolve(
            {**inner[node["$ref"].rsplit("/", 1)[1]], **{k: v for k, v in node.items() if k != "$ref"}}, inner
        )
    dropped = ("default",) if "properties" in node else ("default", "title")
    kept = {key: value for key, value in node.items() if key not in dropped or isinstance(value, dict)}
    kept.pop("title", None) if isinstance(kept.get("title"), str) else None
    return {key: resolve(value, inner) for key, value in kept.items()}


def documented(text: str) -> Iterator[Value]:
    """Every value with a `# --` comment above it, in the file's order."""
    parents: list[tuple[int, str]] = []
    comment, lines = "", text.splitlines()
    for number, line in enumerate(lines):
        if line.strip().startswith("# -- "):
            comment = line.strip().removeprefix("# -- ")
            continue
        match = KEY.match(line)
        if match is None:
            continue
        indent = len(match["indent"])
        parents = [parent for parent in parents if parent[0] < indent]
        path = ".".join([*(name for _, name in parents), match["key"]])
        if comment:
            yield Value(path, match["value"] or _block(lines[number + 1 :], indent), comment)
            comment = ""
        parents.append((indent, match["key"]))


def leaves(node: Any, path: str = "") -> Iterator[str]:
    """Paths of everything in the values that is not a mapping of further values."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}" if path else key)
    else:
        yield path


def _block(lines: list[str], indent: int) -> str:
    """A default written over several lines, in one."""
    inner = []
    for line in lines:
        if not line.strip() or len(line) - len(line.lstrip()) <= indent:
            break
        inner.append(line.strip())
    return "; ".join(inner)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
