"""Builds the actor of one replica: opens the port the view asks for and loads the plain actor onto it.

Imported only in a replica that holds an actor, because this is where torch and the weights come in.
"""

from __future__ import annotations

import ray
import ray.util

from actors.attention.actor import AttentionActor
from actors.expert.actor import ExpertActor
from actors.frame_limits import frame_limits
from actors.weights.check import read_model_config
from cluster.attention_replica import BuiltAttention
from cluster.config import ClusterConfig
from cluster.expert_replica import BuiltExpert
from ops.telemetry.exposition import ProcessLabels
from ops.telemetry.spec import Owner
from ops.telemetry.tracing import open_tracing
from routing.experts import ExpertMap
from routing.transport.contract import FrameLimits
from routing.transport.select import TransportOptions, open_attention_port, open_expert_port


def build_expert(config: ClusterConfig, ep_rank: int, expert_map: ExpertMap, transport: str) -> BuiltExpert:
    """Slow: loads one rank's shard. Raises CheckpointError, TransportError; the port is closed on failure."""
    options = transport_options(config, config.experts.device)
    port = open_expert_port(transport, ep_rank=ep_rank, limits=_limits(config), options=options)
    try:
        actor = ExpertActor(config.expert_engine, config.checkpoint, expert_map, ep_rank, port)
    except BaseException:
        port.close()
        raise
    return BuiltExpert(actor, port.endpoint)


def build_attention(config: ClusterConfig, expert_map: ExpertMap, transport: str) -> BuiltAttention:
    """Slow: loads the attention tier's weights. Raises CheckpointError, ValueError for a KV cache that is too small,
    TransportError; the port is closed on failure."""
    options = transport_options(config, config.attention.device)
    limits = _limits(config)
    port = open_attention_port(transport, ep_size=expert_map.ep_size, limits=limits, options=options)
    member = str(ray.get_runtime_context().get_actor_name())
    tracing = open_tracing(config.telemetry.tracing, ProcessLabels(Owner.ATTENTION, member))
    try:
        actor = AttentionActor(config.attention_engine, config.checkpoint, expert_map, port, tracing)
    except BaseException:
        port.close()
        tracing.close()
        raise
    return BuiltAttention(actor, port.endpoint)


def _limits(config: ClusterConfig) -> FrameLimits:
    """Both tiers compute them from the same configuration and checkpoint."""
    return frame_limits(config.attention_engine, read_model_config(config.checkpoint))


def transport_options(config: ClusterConfig, device: str) -> TransportOptions:
    """How a replica of one tier opens its port. device: the tier's."""
    return TransportOptions(
        host=ray.util.get_node_ip_address(),
        timeout_s=config.attention.engine.exchange_timeout_s,
        device=device,
        capacity_rows=config.collective_capacity_rows,
    )
