"""What is kept of a Node and of a Pod, read from the API's JSON, and whether it is about to go. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cluster.kube.settings import KubernetesConfig
from cluster.surroundings import Doom, Surroundings

SOFT_EFFECT = "PreferNoSchedule"  # a wish, as DeletionCandidateOfClusterAutoscaler is


@dataclass(frozen=True)
class NodeState:
    """labels, annotations: only those that the settings name. taints: (key, effect). conditions: status by type."""

    name: str
    is_unschedulable: bool
    taints: tuple[tuple[str, str], ...]
    conditions: Mapping[str, str]
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


@dataclass(frozen=True)
class PodState:
    """deleted_at: seconds since the epoch, when a pod that is being deleted is killed at the latest.

    disruption: why it is about to be evicted, "" if it is not.
    """

    name: str
    node: str
    deleted_at: float | None
    disruption: str


def node_state(node: Mapping[str, Any], settings: KubernetesConfig) -> NodeState:
    """Raises ValueError for what is no node."""
    metadata, spec, status = (_mapping(node, name) for name in ("metadata", "spec", "status"))
    keys = {mark.partition("=")[0] for mark in settings.maintenance_marks} | set(settings.topology_labels)
    return NodeState(
        name=_name(metadata),
        is_unschedulable=spec.get("unschedulable") is True,
        taints=tuple((str(taint.get("key")), str(taint.get("effect"))) for taint in _mappings(spec, "taints")),
        conditions={str(each.get("type")): str(each.get("status")) for each in _mappings(status, "conditions")},
        labels=_only(_mapping(metadata, "labels"), keys),
        annotations=_only(_mapping(metadata, "annotations"), keys),
    )


def pod_state(pod: Mapping[str, Any], _settings: KubernetesConfig) -> PodState:
    """Raises ValueError for what is no pod."""
    metadata, spec, status = (_mapping(pod, name) for name in ("metadata", "spec", "status"))
    deleted_at = metadata.get("deletionTimestamp")
    targets = [
        str(each.get("reason") or "DisruptionTarget")
        for each in _mappings(status, "conditions")
        if each.get("type") == "DisruptionTarget" and each.get("status") == "True"
    ]
    return PodState(
        name=_name(metadata),
        node=str(spec.get("nodeName") or ""),
        deleted_at=None if deleted_at is None else datetime.fromisoformat(str(deleted_at)).timestamp(),
        disruption=targets[0] if targets else "",
    )


def node_doom(node: NodeState, settings: KubernetesConfig) -> Doom | None:
    """Why a node is about to go; None if nothing says so."""
    reason = next(_node_reasons(node, settings), None)
    return None if reason is None else Doom(f"node {node.name} {reason}")


def pod_doom(pod: PodState) -> Doom | None:
    """Why a pod is about to go; None if nothing says so."""
    if pod.deleted_at is not None:
        return Doom(f"pod {pod.name} is being deleted", pod.deleted_at)
    return Doom(f"pod {pod.name} is about to be evicted ({pod.disruption})") if pod.disruption else None


def surroundings(
    nodes: Collection[NodeState], pods: Collection[PodState], settings: KubernetesConfig, *, has_all_nodes: bool
) -> Surroundings:
    """What all of them mean for members. has_all_nodes: no other node exists."""
    dooms = {node.name: node_doom(node, settings) for node in nodes}
    pod_dooms = {pod.name: pod_doom(pod) for pod in pods}
    return Surroundings(
        doomed_pods={name: doom for name, doom in pod_dooms.items() if doom is not None},
        doomed_nodes={name: doom for name, doom in dooms.items() if doom is not None},
        domains={node.name: _domains(node, settings) for node in nodes} if has_all_nodes else None,
    )


def _domains(node: NodeState, settings: KubernetesConfig) -> tuple[str, ...]:
    """What a node shares with others, by topology label; "" where it has none."""
    return tuple(node.labels.get(label, "") for label in settings.topology_labels)


def _node_reasons(node: NodeState, settings: KubernetesConfig) -> Iterator[str]:
    if node.is_unschedulable:
        yield "is cordoned"
    for key, effect in node.taints:
        if key in settings.disruption_taints and effect != SOFT_EFFECT:
            yield f"is tainted {key}"
    for kind in settings.disruption_conditions:
        if node.conditions.get(kind) == "True":
            yield f"has the condition {kind}"
    for mark in settings.maintenance_marks:
        key, has_value, value = mark.partition("=")
        found = node.labels.get(key, node.annotations.get(key))
        if found is not None and (not has_value or value in (node.labels.get(key), node.annotations.get(key))):
            yield f"is marked {key}={found}"
    if node.conditions.get("Ready", "True") != "True":
        yield "is not ready"


def _name(metadata: Mapping[str, Any]) -> str:
    name = metadata.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError("an object without a name")
    return name


def _only(values: Mapping[str, Any], keys: set[str]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items() if key in keys}


def _mapping(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What is not there is empty."""
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is no mapping")  # noqa: TRY004 - one kind for whatever is wrong with an answer
    return value


def _mappings(fields: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = fields.get(name) or []
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        raise ValueError(f"{name} is no list of mappings")
    return value
