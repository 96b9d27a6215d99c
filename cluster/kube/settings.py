"""KubernetesConfig: whether to look at Kubernetes, what means that a node is about to go, how often to say something.
Imports nothing of Kubernetes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from cluster.sections import Section


def _as_word(value: object) -> object:
    """YAML makes booleans of on and off."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


class KubernetesConfig(Section):
    """What the coordinator does with the service account of its pod. Seconds."""

    enabled: Annotated[Literal["auto", "on", "off"], BeforeValidator(_as_word)] = Field(
        "auto", description="auto: where the pod has a service account's token; on: refuse to start without one"
    )
    nodes: bool = Field(True, description="follow nodes too, which takes a ClusterRole")
    events: bool = Field(True, description="write Events about the RayService")
    disruption_taints: tuple[str, ...] = Field(
        (
            "node.kubernetes.io/unschedulable",
            "node.kubernetes.io/out-of-service",
            "node.cloudprovider.kubernetes.io/shutdown",
            "ToBeDeletedByClusterAutoscaler",
            "karpenter.sh/disrupted",
            "karpenter.sh/disruption",
            "cloud.google.com/impending-node-termination",
            "aws-node-termination-handler/asg-lifecycle-termination",
            "aws-node-termination-handler/scheduled-maintenance",
            "aws-node-termination-handler/spot-itn",
        ),
        description="keys of taints on a node that is about to go; effect PreferNoSchedule never counts",
    )
    disruption_conditions: tuple[str, ...] = Field(
        ("PreemptScheduled", "RebootScheduled", "RedeployScheduled", "TerminateScheduled"),
        description="conditions that are True on a node that is about to go; a node that is not ready counts always",
    )
    maintenance_marks: tuple[str, ...] = Field(
        ("cloud.google.com/active-node-maintenance=ONGOING",),
        description="labels or annotations, key or key=value, on a node that is about to go",
    )
    topology_labels: tuple[str, ...] = Field(
        ("topology.kubernetes.io/zone", "nvidia.com/gpu.clique"),
        description="node labels whose equal values mean nodes that fail together, from wide to narrow",
    )
    events_per_minute: float = Field(6.0, gt=0, le=60, description="Events at most, in the long run")
    call_timeout_s: float = Field(10.0, gt=0, description="deadline of one call, and of a watch's first answer")
    watch_s: float = Field(60.0, ge=1, description="length of one watch; a dead connection is noticed after it")
    first_backoff_s: float = Field(0.5, gt=0, description="wait after a failure; doubles")
    max_backoff_s: float = Field(30.0, gt=0, description="longest wait after a failure")
    denied_retry_s: float = Field(300.0, gt=0, description="wait after access was denied")
