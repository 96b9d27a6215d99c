"""Application builders for Ray Serve's configuration files: what `serve deploy` and KubeRay's serveConfigV2 import.

Knows nothing of Kubernetes. Serve calls a builder on a node of the cluster, where the file and the checkpoint's
config.json must be. Annotations are not postponed here: Serve reads the class of `args` from them.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from actors.weights.check import read_model_config
from cluster.config import ClusterConfig, load_config
from cluster.deploy import MapShape, build_engine, build_gateway


class BuilderArguments(BaseModel):
    """`args` of one application in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: Path = Field(description="YAML file of a ClusterConfig")


def engine(args: BuilderArguments) -> serve.Application:
    """Coordinator, experts and attention. Deploy it under the name of `ray.app_name`, without a route."""
    config = load_config(args.config)
    return build_engine(config, map_shape(config))


def gateway(args: BuilderArguments) -> serve.Application:
    """The HTTP API. Deploy it at the root, under the engine's name with -gateway."""
    return build_gateway(load_config(args.config))


def map_shape(config: ClusterConfig) -> MapShape:
    """From the checkpoint's config.json alone: ranks check their weights themselves. Raises CheckpointError."""
    model = read_model_config(config.checkpoint)
    layer_ids = tuple(spec.layer_id for spec in model.moe_layers)
    return MapShape(len(layer_ids), model.num_experts, layer_ids)
