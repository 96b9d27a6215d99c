"""The only file that turns classes into Ray deployments and binds them. Each class here adapts one plain object.

Knows nothing of what an actor computes: actors are made by builders named by import path, so that a process imports
only what it runs.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from actors.messages import ErrorKind, GenerateRequest, LoadReport, TokenEvent
from cluster.admin.app import create_admin_app
from cluster.admin.server import AdminServer
from cluster.attention_replica import AttentionReplica
from cluster.attention_router import IS_DRAINING
from cluster.balancer import Balancer
from cluster.config import ClusterConfig, pod_environment
from cluster.coordinator import Coordinator, CoordinatorSettings
from cluster.expert_replica import ExpertReplica
from cluster.gateway_load import known_gateway_load
from cluster.handles import RemoteCoordinator, RemoteEngine
from cluster.kube.observer import KubeObserver
from cluster.lookup import find_deployments
from cluster.membership import Place
from cluster.operator_picture import OperatorPicture
from cluster.process_telemetry import Process, ProcessTelemetry
from cluster.replica import Identity, ReplicaSettings
from cluster.resources import attention_options, coordinator_options, expert_options, gateway_options
from cluster.scaling_policy import replica_stats
from cluster.scaling_watch import watch_scaling
from cluster.view import ClusterView
from cluster.watcher import Watcher, WatchSettings
from ops.telemetry import logs
from ops.telemetry.exposition import ProcessLabels
from ops.telemetry.matrix import ExpertMatrix
from ops.telemetry.spec import Owner
from ops.telemetry.tracing import open_tracing
from routing.experts import linear_expert_map
from routing.transport.choice import choose_transport
from routing.transport.host import host_id

SERVE_NAMESPACE = "serve"
GONE_TIMEOUT_S = 5.0
LOOKUP_TIMEOUT_S = 120.0  # for Serve to build the engine's application beside the gateway's, which takes seconds
COORDINATOR, EXPERTS, ATTENTION, GATEWAY = "Coordinator", "ExpertActor", "AttentionActor", "Gateway"


@dataclass(frozen=True)
class MapShape:
    """What the coordinator must know of the model: the size of its expert map, and the number of each MoE layer."""

    num_moe_layers: int
    num_logical_experts: int
    layer_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Builders:
    """Import paths ("module:function") of what makes the actors; see `cluster.tiers` for the signatures."""

    expert: str = "cluster.tiers:build_expert"
    attention: str = "cluster.tiers:build_attention"


def build_engine(config: ClusterConfig, shape: MapShape, builders: Builders | None = None) -> serve.Application:
    """Coordinator, experts and attention, bound. The attention tier holds a handle of the expert tier that it never
    calls: Serve stops a deployment only after its callers, so requests that are still running keep their experts."""
    fields, paths = config.to_dict(), builders or Builders()
    coordinator = _deployment(CoordinatorDeployment, COORDINATOR, coordinator_options(config).to_dict()).bind(
        fields, asdict(shape)
    )
    experts = _deployment(ExpertDeployment, EXPERTS, expert_options(config).to_dict()).bind(
        fields, paths.expert, coordinator
    )
    return _deployment(AttentionDeployment, ATTENTION, attention_options(config).to_dict()).bind(
        fields, paths.attention, coordinator, experts
    )


def build_gateway(config: ClusterConfig) -> serve.Application:
    """The HTTP API, an application of its own: deleting it lets its requests end while the engine still runs.
    `serve.shutdown` alone would kill the HTTP proxies first and cut every stream."""
    return _deployment(GatewayDeployment, GATEWAY, gateway_options(config).to_dict()).bind(config.to_dict())


def gateway_app_name(config: ClusterConfig) -> str:
    return f"{config.ray.app_name}-gateway"


class CoordinatorDeployment(Coordinator):
    """The coordinator as a Serve replica."""

    def __init__(self, fields: Mapping[str, Any], shape: Mapping[str, Any]) -> None:
        config, model = _configure(fields, Owner.COORDINATOR), MapShape(**shape)
        expert_map = linear_expert_map(
            model.num_moe_layers,
            model.num_logical_experts,
            config.experts.ep_size,
            num_redundant_slots=config.experts.num_redundant_slots,
        )
        self._kube = KubeObserver(config.kubernetes, pod_environment())
        layer_ids = tuple(model.layer_ids) or tuple(range(model.num_moe_layers))
        matrix = ExpertMatrix(layer_ids, model.num_logical_experts)
        self._telemetry = _telemetry(config, Owner.COORDINATOR, matrix)
        super().__init__(
            expert_map,
            partial(_choose_transport, config),
            CoordinatorSettings(
                lease_ttl_s=config.control.lease_ttl_s,
                silent_after_s=2 * config.control.poll_s,
                recovery_grace_s=_watch_settings(config).longest_silence_s,
            ),
            balancer=Balancer(config.balancer, expert_map, layer_ids=layer_ids, tell=self._kube.tell),
            is_gone=_is_gone,
        )
        self.picture = OperatorPicture(
            config.served_name, self._telemetry.meter, matrix=matrix, own_report=self._telemetry.report
        )
        self._dropping = asyncio.get_running_loop().create_task(self.run(), name="drop-dead-members")
        self._telemetry.start(None)
        watching = watch_scaling(self._telemetry.meter, config.ray.app_name, ATTENTION)
        self._watching = asyncio.get_running_loop().create_task(watching, name="watch-scaling")
        self._kube.start(self.note_surroundings)
        admin = config.admin
        self._admin = AdminServer(create_admin_app(self, admin.token_file, admin.host), admin.host, admin.port)
        if admin.enabled:
            self._admin.start()

    async def check_health(self) -> None:
        """Raises if dead members are no longer dropped, or the operator is no longer answered."""
        self._admin.check()
        if self._dropping.done():
            raise RuntimeError("the coordinator no longer watches its members") from self._dropping.exception()

    async def __del__(self) -> None:
        """Called once by Serve, on the replica's loop."""
        self._dropping.cancel()
        self._watching.cancel()
        await self._kube.close()
        await self._admin.close()
        await self._telemetry.close()


class ExpertDeployment:
    """One EP rank as a Serve replica. Takes no requests: rows reach it through its port."""

    async def __init__(  # type: ignore[misc]  # Serve awaits a constructor; loading must not hold up its loop
        self, fields: Mapping[str, Any], builder: str, coordinator: DeploymentHandle[Any]
    ) -> None:
        config = _configure(fields, Owner.EXPERT)
        remote = RemoteCoordinator(coordinator, config.control.call_timeout_s)
        self._telemetry = _telemetry(config, Owner.EXPERT)
        self._replica = ExpertReplica(
            _identity(),
            remote,
            partial(_load(builder), config),
            _replica_settings(config),
            _watch_settings(config),
            self._telemetry,
        )
        self._telemetry.start(remote)
        await _open(self._replica)

    async def check_health(self) -> None:
        """Called by Serve on the replica's loop; raising three times in a row replaces the replica."""
        self._replica.check_health()

    async def __del__(self) -> None:
        """Called once by Serve when the replica stops."""
        await self._replica.close()
        await self._telemetry.close()


class AttentionDeployment:
    """One attention actor as a Serve replica. Its only request is `generate`."""

    async def __init__(  # type: ignore[misc]  # Serve awaits a constructor; loading must not hold up its loop
        self,
        fields: Mapping[str, Any],
        builder: str,
        coordinator: DeploymentHandle[Any],
        experts: DeploymentHandle[Any],
    ) -> None:
        config = _configure(fields, Owner.ATTENTION)
        self._experts = experts
        self._telemetry = _telemetry(config, Owner.ATTENTION)
        self._coordinator = RemoteCoordinator(coordinator, config.control.call_timeout_s)
        self._num_accepted = 0
        self._replica = AttentionReplica(
            _identity(),
            self._coordinator,
            partial(_load(builder), config),
            _replica_settings(config),
            _watch_settings(config),
            self._telemetry.meter,
        )
        self._telemetry.start(self._coordinator)
        await _open(self._replica)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        """A Serve stream of the request's events; when the stream is cancelled, the sequence is aborted."""
        self._num_accepted += 1
        async with aclosing(self._replica.generate(request)) as events:
            async for event in events:
                if event.error is not None and event.error.kind is ErrorKind.OVERLOADED:
                    self._num_accepted -= 1
                yield event

    async def load_report(self) -> LoadReport:
        return self._replica.load_report()

    def record_routing_stats(self) -> dict[str, Any]:
        """Called by Serve every few seconds; `attention_router` reads it in the gateways."""
        return {IS_DRAINING: self._replica.is_draining}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve every few seconds if the deployment is autoscaled."""
        gateways = await known_gateway_load(self._coordinator)
        return replica_stats(self._replica.load_report(), self._num_accepted, gateways)

    async def check_health(self) -> None:
        """Called by Serve on the replica's loop; raising three times in a row replaces the replica."""
        self._replica.check_health()

    async def __del__(self) -> None:
        """Called once by Serve, after the running requests have ended or run out of time."""
        await self._replica.close()
        await self._telemetry.close()


@serve.ingress()
class GatewayDeployment:
    """The HTTP API as a Serve ingress replica."""

    async def __init__(self, fields: Mapping[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits a constructor
        self._config = _configure(fields, Owner.GATEWAY)
        timeout_s = min(LOOKUP_TIMEOUT_S, self._config.control.start_timeout_s)
        coordinator, attention = await find_deployments((COORDINATOR, ATTENTION), self._config.ray.app_name, timeout_s)
        self._telemetry = _telemetry(self._config, Owner.GATEWAY)
        process = ProcessLabels(Owner.GATEWAY, _identity().member_id, model_name=self._config.served_name)
        self._tracing = open_tracing(self._config.telemetry.tracing, process)
        remote = RemoteCoordinator(coordinator, self._config.control.call_timeout_s)
        self._watcher = Watcher(remote, self._follow, settings=_watch_settings(self._config))
        self._engine = RemoteEngine(attention, self._watcher, self._config.control.lease_ttl_s)
        self._watcher.start()
        self._telemetry.start(remote)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve after the constructor."""
        from cluster.api.app import create_app

        return create_app(self._config.api, self._engine, meter=self._telemetry.meter, tracing=self._tracing)

    async def check_health(self) -> None:
        """Called by Serve on the replica's loop."""
        self._watcher.check()

    async def __del__(self) -> None:
        """Called once by Serve when the replica stops."""
        await self._watcher.close()
        await self._telemetry.close()
        await asyncio.to_thread(self._tracing.close)

    def _follow(self, view: ClusterView) -> None:
        logs.THIS_PROCESS.map_epoch = view.expert_map.map_epoch


def _deployment(cls: Callable[..., object], name: str, options: Mapping[str, Any]) -> serve.Deployment:
    return serve.deployment(name=name, **options)(cls)


async def _open(replica: ExpertReplica | AttentionReplica) -> None:
    """A replica that fails to open must not keep its rank until the lease runs out."""
    try:
        await replica.open()
    except BaseException:
        await replica.close()
        raise


def _configure(fields: Mapping[str, Any], role: Owner | None = None) -> ClusterConfig:
    """The configuration a replica was deployed with, and logging as it says. Replicas write to Ray's worker log."""
    config = ClusterConfig.model_validate(fields)
    if config.telemetry.logs.format == "json":
        logs.THIS_PROCESS.member, logs.THIS_PROCESS.role = _identity().member_id, role or ""
        logs.write_json()
    else:
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for package in ("cluster", "actors", "routing", "ops"):
        logging.getLogger(package).setLevel(config.log_level.upper())
    return config


def _telemetry(config: ClusterConfig, role: Owner, matrix: ExpertMatrix | None = None) -> ProcessTelemetry:
    """matrix: served to scrapes if the configuration says so."""
    identity, metrics = _identity(), config.telemetry.metrics
    process = Process(role, identity.member_id, identity.host_id, config.served_name)
    return ProcessTelemetry(process, metrics, matrix if metrics.expert_matrix else None)


def _identity() -> Identity:
    """The Ray actor's name is unique for the life of its process, and lets the coordinator look for it."""
    pod = pod_environment()
    return Identity(str(ray.get_runtime_context().get_actor_name()), host_id(), Place(pod.pod, pod.node))


async def _is_gone(member_id: str) -> bool:
    """True only if Ray is sure: a cluster that does not answer is no proof of death."""
    try:
        async with asyncio.timeout(GONE_TIMEOUT_S):
            await asyncio.to_thread(ray.get_actor, member_id, SERVE_NAMESPACE)
    except ValueError:
        return True
    except (RayError, TimeoutError):
        return False
    return False


def _choose_transport(config: ClusterConfig, attention_host_ids: list[str], expert_host_ids: list[str]) -> str:
    return choose_transport(
        config.transport,
        attention_host_ids=attention_host_ids,
        expert_host_ids=expert_host_ids,
        has_gpus=config.uses_gpus,
    )


def _replica_settings(config: ClusterConfig) -> ReplicaSettings:
    return ReplicaSettings(
        join_timeout_s=config.control.start_timeout_s, drain_timeout_s=config.control.drain_timeout_s
    )


def _watch_settings(config: ClusterConfig) -> WatchSettings:
    return WatchSettings(poll_s=config.control.poll_s)


def _load(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    builder: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return builder
