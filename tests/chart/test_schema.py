"""Wrong values are refused with a message that names them; the schema knows every value that there is."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from tests.chart.helm import CHART, Helm
from tests.checks.chart import VALUES, documented, leaves, made

# One wrong value, what else is set, and what the message must name.
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("a value that is not known", {"replicas": 2}, "replicas"),
    ("a typing error in a tier", {"experts": {"epsize": 8}}, "epsize"),
    ("a typing error in an engine", {"attention": {"engine": {"max_runing": 8}}}, "max_runing"),
    ("an engine's range", {"attention": {"engine": {"max_running": 0}}}, "/attention/engine/max_running"),
    ("what the chart sets itself", {"control": {"drain_timeout_s": 5}}, "drain_timeout_s"),
    ("no attention actor", {"attention": {"replicas": 0}}, "/attention/replicas"),
    ("no expert rank", {"experts": {"epSize": 0}}, "/experts/epSize"),
    ("rings that two pods do not share", {"transport": "shm"}, "/transport"),
    ("a tag that moves", {"image": {"tag": "latest"}}, "/image/tag"),
    ("a digest that is none", {"image": {"digest": "sha256:1"}}, "/image/digest"),
    ("weights by tag", {"model": {"weights": {"image": {"reference": "r/w:1"}}}}, "/model/weights/image/reference"),
    (
        "weights by branch",
        {"model": {"weights": {"download": {"revision": "main"}}}},
        "/model/weights/download/revision",
    ),
    ("a way out of the volume", {"model": {"weights": {"subPath": "../etc"}}}, "/model/weights/subPath"),
    ("root", {"securityContext": {"runAsUser": 0}}, "/securityContext/runAsUser"),
    ("another strategy", {"upgrade": {"strategy": "Rolling"}}, "/upgrade/strategy"),
    ("a variable of another kind", {"collectivesEnv": {"LD_PRELOAD": "/x"}}, "LD_PRELOAD"),
    ("a size without a unit known", {"attention": {"shmSize": "8 GB"}}, "/attention/shmSize"),
    ("a long name", {"fullnameOverride": "a" * 48}, "/fullnameOverride"),
    ("scale to zero", {"autoscaling": {"minReplicas": 0}}, "/autoscaling/minReplicas"),
    ("keys without a Secret", {"apiKeys": {"existingSecret": ""}}, "apiKeys.existingSecret"),
    ("an operator without a Secret", {"admin": {"existingSecret": ""}}, "admin.existingSecret"),
    ("no claim", {"model": {"weights": {"source": "pvc"}}}, "model.weights.pvc.claimName"),
    ("no folder", {"model": {"weights": {"source": "hostPath"}}}, "model.weights.hostPath.path"),
    ("no reference", {"model": {"weights": {"source": "image"}}}, "model.weights.image.reference"),
    ("no repository", {"model": {"weights": {"source": "download"}}}, "model.weights.download.repository"),
    ("cuda without GPUs", {"attention": {"device": "cuda"}}, "attention.gpus"),
    ("GPUs for nothing", {"experts": {"gpus": 1}}, "experts.gpus"),
    ("nccl on CPUs", {"transport": "nccl"}, "transport"),
    ("deterministic on GPUs", {"deterministic": True, "attention": {"device": "cuda", "gpus": 1}}, "deterministic"),
    (
        "no slot to move through",
        {"experts": {"redundantSlots": 0}, "balancing": {"mode": "auto"}},
        "experts.redundantSlots",
    ),
    (
        "most below least",
        {"autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 2}},
        "autoscaling.maxReplicas",
    ),
    ("a short grace", {"budgets": {"terminationGracePeriodSeconds": 120}}, "budgets.terminationGracePeriodSeconds"),
    ("a short delay", {"budgets": {"clusterDeletionDelaySeconds": 60}}, "budgets.clusterDeletionDelaySeconds"),
    ("one port for two", {"admin": {"port": 8000}}, "admin.port"),
    ("no accounts", {"serviceAccount": {"create": False}}, "serviceAccount.headName"),
    ("no Redis", {"ray": {"gcsFaultTolerance": {"enabled": True}}}, "ray.gcsFaultTolerance.redisAddress"),
    ("no host", {"ingress": {"enabled": True}}, "ingress.host"),
    ("no gateway", {"httpRoute": {"enabled": True}}, "httpRoute.parentRefs"),
    ("nodes alone", {"nodeWatch": {"nodes": True}}, "nodeWatch.nodes"),
    ("another way to scrape", {"monitoring": {"scrape": "yes"}}, "/monitoring/scrape"),
    ("a typing error in telemetry", {"monitoring": {"telemetry": {"tracing": {"sampling": 1}}}}, "sampling"),
    ("who listens", {"monitoring": {"telemetry": {"metrics": {"host": "127.0.0.1"}}}}, "host"),
    ("headers by path", {"monitoring": {"telemetry": {"tracing": {"headers_file": "/etc/passwd"}}}}, "headers_file"),
    (
        "a token in an address",
        {"monitoring": {"telemetry": {"tracing": {"endpoint": "https://me:word@collector"}}}},
        "/monitoring/telemetry/tracing/endpoint",
    ),
    (
        "more than all requests",
        {"monitoring": {"telemetry": {"tracing": {"sample_ratio": 2}}}},
        "/monitoring/telemetry/tracing/sample_ratio",
    ),
    (
        "another kind of log",
        {"monitoring": {"telemetry": {"logs": {"format": "xml"}}}},
        "/monitoring/telemetry/logs/format",
    ),
    ("headers in the values", {"monitoring": {"collector": {"headers": "authorization: x"}}}, "headers"),
    ("runbooks in a folder", {"monitoring": {"runbookBaseUrl": "ops/runbooks"}}, "/monitoring/runbookBaseUrl"),
    (
        "a matrix each second",
        {"monitoring": {"expertMatrixIntervalSeconds": 1}},
        "/monitoring/expertMatrixIntervalSeconds",
    ),
    (
        "a Secret for nobody",
        {"monitoring": {"collector": {"existingSecret": "headers"}}},
        "monitoring.telemetry.tracing.endpoint",
    ),
    (
        "ports that nobody knows",
        {"monitoring": {"telemetry": {"metrics": {"port": 0}}}},
        "monitoring.telemetry.metrics.port",
    ),
    (
        "ports that there are not",
        {"monitoring": {"telemetry": {"metrics": {"port": 65530}}}},
        "monitoring.telemetry.metrics.port: 65530",
    ),
    ("the API's port", {"gateway": {"port": 9465}}, "9464 to 9471 include gateway.port 9465"),
    (
        "Ray's port",
        {"monitoring": {"telemetry": {"metrics": {"port": 8073}}}},
        "8073 to 8080 include Ray's metrics 8080",
    ),
    ("more gateways than ports", {"gateway": {"replicas": 7}}, "monitoring.telemetry.metrics.num_ports: 8"),
]


@pytest.mark.parametrize(("values", "named"), [wrong[1:] for wrong in WRONG], ids=[wrong[0] for wrong in WRONG])
def test_a_wrong_value_is_refused_by_name(helm: Helm, values: dict[str, Any], named: str) -> None:
    """One thing wrong in an otherwise right set of values."""
    done = helm.try_template(values)
    assert done.returncode != 0
    assert named in done.stderr


def test_the_schema_knows_every_value_and_no_other() -> None:
    """Own objects are closed, and each value has a rule."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load(VALUES.read_text())
    assert not list(unruled(values, schema, schema))
    assert not list(open_objects(schema, schema["properties"]))


def test_every_value_is_documented() -> None:
    """Each value that can be set stands below a comment, its own or its parent's."""
    paths = {value.path for value in documented(VALUES.read_text())}
    values = yaml.safe_load(VALUES.read_text())
    bare = [
        path for path in leaves(values) if not any(path == known or path.startswith(f"{known}.") for known in paths)
    ]
    assert not bare


def test_what_is_made_from_other_files_is_current() -> None:
    """README and the schema's definitions; mend with: python -m tests.checks.chart --write."""
    stale = [path.name for path, text in made().items() if path.read_text() != text]
    assert not stale


def unruled(node: Any, rule: dict[str, Any], root: dict[str, Any], path: str = "") -> Any:
    """Values that the schema has nothing to say of."""
    rule = resolve(rule, root)
    if isinstance(node, dict) and "properties" in rule:
        for key, value in node.items():
            if key not in rule["properties"]:
                yield f"{path}.{key}"
            else:
                yield from unruled(value, rule["properties"][key], root, f"{path}.{key}")


def open_objects(root: dict[str, Any], rules: dict[str, Any], path: str = "") -> Any:
    """Objects with known fields that would take unknown ones too."""
    for key, rule in rules.items():
        resolved = resolve(rule, root)
        if "properties" in resolved:
            if resolved.get("additionalProperties") is not False:
                yield f"{path}.{key}"
            yield from open_objects(root, resolved["properties"], f"{path}.{key}")


def resolve(rule: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    return root["definitions"][rule["$ref"].rsplit("/", 1)[1]] if "$ref" in rule else rule
