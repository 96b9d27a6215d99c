"""Every profile, and everything at once: helm accepts it, the schemas of Kubernetes and operators what it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.chart.conftest import PROFILES
from tests.chart.helm import Helm, Rendered

CRDS = Path(__file__).parent / "crds"
OLDEST, NEWEST = "1.31", "1.35"
# The Gateway API brings its own definitions; its one object is checked by hand in test_entrances.py.
UNKNOWN_KINDS = {"HTTPRoute"}

# Kinds -> schema of version v1.
CUSTOM: dict[str, dict[str, Any]] = {
    definition["spec"]["names"]["kind"]: definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for definition in (yaml.safe_load(path.read_text()) for path in CRDS.glob("*.yaml"))
}


@pytest.mark.parametrize("profile", PROFILES)
def test_helm_finds_nothing_to_say(helm: Helm, profile: str) -> None:
    """`helm lint --strict` on the chart with each profile."""
    done = helm.lint(profile)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout + done.stderr


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_renders_valid_objects(profiles: dict[str, Rendered], profile: str, version: str) -> None:
    """On the oldest Kubernetes that the chart names and on a new one."""
    assert_valid(profiles[profile], version)


def test_everything_at_once_renders_valid_objects(everything: Rendered) -> None:
    """All optional objects and fields together."""
    kinds = {made["kind"] for made in everything.objects}
    assert {"Ingress", "HTTPRoute", "PodMonitor", "Role", "ClusterRole", "NetworkPolicy", "Pod"} <= kinds
    assert_valid(everything, NEWEST)


@pytest.mark.parametrize("source", ["hostPath", "image", "pvc"])
def test_every_source_of_weights_renders_valid_objects(helm: Helm, source: str) -> None:
    """The sources that no profile of the parametrised ones has, and those that they have."""
    given = {
        "hostPath": {"hostPath": {"path": "/weights"}},
        "image": {"image": {"reference": "registry/weights@sha256:" + "b" * 64}},
        "pvc": {"pvc": {"claimName": "weights"}},
    }[source]
    assert_valid(helm.template({"model": {"weights": {"source": source, **given}}}), NEWEST)


def test_the_default_values_need_only_what_has_no_default(helm: Helm) -> None:
    """A claim and two Secrets."""
    made = helm.template(
        {
            "model": {"weights": {"pvc": {"claimName": "weights"}}},
            "apiKeys": {"existingSecret": "keys"},
            "admin": {"existingSecret": "admin"},
        },
        profile="values.yaml",
    )
    assert_valid(made, NEWEST)


def test_a_wrong_object_would_be_noticed() -> None:
    """The oracle of the tests above: one unknown field deep in a RayService, one wrong type in a core object."""
    with pytest.raises(AssertionError, match="workerGroupSpec"):
        assert_custom({"kind": "RayService", "spec": {"rayClusterConfig": {"workerGroupSpec": []}}})
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"ports": [{"port": "a"}]}},
            NEWEST,
            strict=True,
        )


def assert_valid(rendered: Rendered, version: str) -> None:
    names = [(made["kind"], made["metadata"]["name"]) for made in rendered.objects]
    assert len(names) == len(set(names)), f"two objects of one name: {names}"
    for made in rendered.objects:
        if made["kind"] in CUSTOM:
            assert_custom(made)
        elif made["kind"] not in UNKNOWN_KINDS:
            kubernetes_validate.validate(made, version, strict=True)
    for tier in ("head", "attention", "experts"):
        template = rendered.template(tier)
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {**template["metadata"], "name": tier}}
        kubernetes_validate.validate({**pod, "spec": template["spec"]}, NEWEST, strict=True)
        assert_volumes(template["spec"])


def assert_custom(made: dict[str, Any]) -> None:
    """As the API server: types, ranges, and no field that it would drop."""
    schema = CUSTOM[made["kind"]]
    unknown = sorted(unknown_fields(made, schema))
    assert not unknown, f"{made['kind']} has no field {', '.join(unknown)}"
    errors = jsonschema.Draft7Validator(_for_validator(schema)).iter_errors(made)
    wrong = [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in errors]
    assert not wrong, wrong


def unknown_fields(node: Any, schema: dict[str, Any], path: str = "") -> set[str]:
    """Fields that a structural schema prunes. metadata is the API server's own."""
    if isinstance(node, list):
        return set().union(*(unknown_fields(item, schema.get("items", {}), path) for item in node))
    if not isinstance(node, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return set()
    known, others = schema.get("properties"), schema.get("additionalProperties")
    found: set[str] = set()
    for key, value in node.items():
        where = f"{path}.{key}" if path else key
        if known is not None and key in known:
            found |= set() if key == "metadata" and not path else unknown_fields(value, known[key], where)
        elif isinstance(others, dict):
            found |= unknown_fields(value, others, where)
        elif known is not None:
            found.add(where)
    return found


def _for_validator(schema: Any) -> Any:
    """OpenAPI's int-or-string as JSON schema says it."""
    if isinstance(schema, list):
        return [_for_validator(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _for_validator(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        made = {key: value for key, value in made.items() if key not in ("anyOf", "type")} | {
            "type": ["integer", "string"]
        }
    return made


def assert_volumes(spec: dict[str, Any]) -> None:
    """Every mount has a volume, and no volume is there for nothing."""
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    mounted = {mount["name"] for container in containers for mount in container.get("volumeMounts", [])}
    assert mounted == {volume["name"] for volume in spec["volumes"]}
