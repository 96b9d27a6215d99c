"""The helm binary, and each profile rendered once."""

from __future__ import annotations

import pytest

from tests.chart.helm import Helm, HelmUnavailable, Rendered, find_helm

PROFILES = ("values-cpu-demo.yaml", "values-h100-8x.yaml", "values-h200.yaml", "values-multinode-rdma.yaml")


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Skips where there is none to be had; CI forbids skips."""
    try:
        return Helm(find_helm())
    except HelmUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def profiles(helm: Helm) -> dict[str, Rendered]:
    return {name: helm.template(profile=name) for name in PROFILES}


@pytest.fixture(scope="session")
def demo(profiles: dict[str, Rendered]) -> Rendered:
    return profiles["values-cpu-demo.yaml"]


@pytest.fixture(scope="session")
def gpus(profiles: dict[str, Rendered]) -> Rendered:
    return profiles["values-h100-8x.yaml"]


@pytest.fixture(scope="session")
def everything(helm: Helm) -> Rendered:
    """Every optional object and field at once."""
    return helm.template(EVERYTHING, profile="values-multinode-rdma.yaml")


EVERYTHING = {
    "ingress": {"enabled": True, "className": "nginx", "host": "llm.example.com", "tlsSecret": "llm-tls"},
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}], "hostnames": ["llm.example.com"]},
    "nodeWatch": {"enabled": True, "nodes": True},
    "monitoring": {
        "scrape": "PodMonitor",
        "alerts": True,
        "dashboards": True,
        "labels": {"release": "prometheus"},
        "runbookBaseUrl": "https://wiki.example.com/step35",
        "collector": {"existingSecret": "collector"},
        "telemetry": {"metrics": {"expert_matrix": True}, "tracing": {"endpoint": "https://otlp.example.com"}},
    },
    "ray": {
        "auth": {"existingSecret": "ray-token"},
        "gcsFaultTolerance": {"enabled": True, "redisAddress": "redis:6379", "existingSecret": "redis"},
    },
    "image": {"digest": "sha256:" + "a" * 64, "pullSecrets": ["registry"]},
    "model": {
        "weights": {
            "source": "download",
            "subPath": "step",
            "download": {
                "repository": "stepfun-ai/Step-3.5-Flash",
                "revision": "0" * 40,
                "checksumsConfigMap": "step35-sums",
                "endpoint": "https://hub.example.com",
                "existingSecret": "hub",
                "cache": {"hostPath": "/var/cache/step35"},
            },
        }
    },
    "networkPolicy": {
        "extraEgress": [{"ports": [{"port": 6379, "protocol": "TCP"}]}],
        "collector": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
    },
    "gateway": {"service": {"type": "LoadBalancer", "annotations": {"example.com/internal": "true"}}},
    "attention": {
        "priorityClassName": "serving",
        "runtimeClassName": "nvidia",
        "schedulerName": "volcano",
        "podLabels": {"kueue.x-k8s.io/queue-name": "llm"},
        "podAnnotations": {"k8s.v1.cni.cncf.io/networks": "rdma-net"},
        "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}],
        "extraEnv": [{"name": "LEVEL", "value": "1"}],
    },
}
