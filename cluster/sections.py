"""The sections of ClusterConfig that no other package owns: tiers, front door, admin port, control plane, Ray. Frozen.

Values and their rules only; files and variables are read by `cluster.config`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from actors.attention.config import AttentionConfig
from actors.expert.config import ExpertConfig
from cluster.api.settings import ApiLimits
from cluster.autoscaling import AutoscalingConfig

EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # listens on all -> where this machine reaches it
DEVICE_PATTERN = r"^(cpu|cuda(:\d+)?)$"

# Set once for both tiers, because two values could never agree.
SHARED_ENGINE_FIELDS = ("device", "deterministic")


def _make_absolute(path: Path) -> Path:
    return path.expanduser().absolute()


# Replicas do not share the working directory of the command.
AbsolutePath = Annotated[Path, AfterValidator(_make_absolute)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class ActorResources(Section):
    """What Ray reserves for one replica and where it may run."""

    num_cpus: float = Field(0.1, ge=0, description="CPU shares Ray reserves; small, so that a laptop holds them all")
    num_gpus: float = Field(0.0, ge=0, description="GPUs Ray reserves")
    labels: dict[str, str] = Field(default_factory=dict, description="node labels the replica requires")


class AttentionTier(Section):
    """The attention deployment."""

    num_replicas: int = Field(
        1, ge=1, description="attention actors, the fewest where autoscaled; each owns the state of its requests"
    )
    autoscaling: AutoscalingConfig | None = Field(
        None, description="how their number follows the load; None: it does not"
    )
    device: str = Field("cpu", pattern=DEVICE_PATTERN, description="torch device of weights and KV cache")
    resources: ActorResources = Field(default_factory=ActorResources)
    engine: AttentionConfig = Field(default_factory=AttentionConfig)

    @field_validator("engine", mode="before")
    @classmethod
    def _check_shared(cls, value: Any, info: ValidationInfo) -> Any:
        """What the engine's fields may be together depends on the device."""
        device = info.data.get("device")
        value = refuse_shared(value)
        return {**value, "device": device} if isinstance(value, dict) and device else value

    @model_validator(mode="after")
    def _check_autoscaling(self) -> Self:
        if self.autoscaling is not None and self.autoscaling.max_replicas < self.num_replicas:
            raise ValueError(
                f"autoscaling.max_replicas {self.autoscaling.max_replicas} must be at least num_replicas "
                f"{self.num_replicas}"
            )
        return self


class ExpertTier(Section):
    """The expert deployment."""

    ep_size: int = Field(8, ge=1, description="EP ranks; must divide the checkpoint's routed experts")
    num_replicas: int | None = Field(None, ge=1, description="must equal ep_size: one replica holds one rank")
    num_redundant_slots: int = Field(
        1, ge=0, description="expert slots per rank and layer beyond one for each expert; rebalancing needs one"
    )
    device: str = Field("cpu", pattern=DEVICE_PATTERN, description="torch device of the expert weights")
    resources: ActorResources = Field(default_factory=ActorResources)
    engine: ExpertConfig = Field(default_factory=ExpertConfig)

    @field_validator("engine", mode="before")
    @classmethod
    def _check_shared(cls, value: Any) -> Any:
        return refuse_shared(value)

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        if self.num_replicas not in (None, self.ep_size):
            raise ValueError(f"num_replicas {self.num_replicas} must equal ep_size {self.ep_size}")
        return self


class GatewayConfig(Section):
    """The HTTP front door."""

    num_replicas: int = Field(1, ge=1, description="gateway processes")
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    api_keys_file: AbsolutePath | None = Field(None, description="bearer keys, one a line; without it the API is open")
    max_context_tokens: int | None = Field(None, ge=2, description="shortens the checkpoint's context")
    limits: ApiLimits = Field(default_factory=ApiLimits)


class AdminConfig(Section):
    """The operator's HTTP route, kept off the public port."""

    enabled: bool = Field(True, description="whether to listen at all")
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on, on the coordinator's node")
    port: int = Field(8001, ge=1, le=65535, description="port to listen on")
    token_file: AbsolutePath = Field(
        Path("~/.step35/admin.token"), validate_default=True, description="bearer tokens, one a line; made if missing"
    )

    @property
    def url(self) -> str:
        """Where the coordinator's node reaches it."""
        host = EVERY_ADDRESS.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


class ControlConfig(Section):
    """Membership, health and shutdown. Seconds."""

    lease_ttl_s: float = Field(20.0, ge=1, description="silence after which a member is dead")
    poll_s: float = Field(2.0, gt=0, description="one long poll for a view, and so the period of renewal")
    call_timeout_s: float = Field(10.0, gt=0, description="deadline of one call to the coordinator")
    health_check_s: float = Field(5.0, ge=1, description="period of Ray's health checks")
    start_timeout_s: float = Field(600.0, gt=0, description="time from start to the first token")
    drain_timeout_s: float = Field(20.0, ge=0, description="time for running requests to end at shutdown")

    @model_validator(mode="after")
    def _check_periods(self) -> Self:
        if self.poll_s * 2 > self.lease_ttl_s:
            raise ValueError(f"poll_s {self.poll_s} must be at most half of lease_ttl_s {self.lease_ttl_s}")
        return self


class RayConfig(Section):
    """The Ray cluster to run on."""

    address: str | None = Field(None, description="an existing cluster ('auto' finds one); None starts one here")
    num_cpus: int | None = Field(None, ge=1, description="CPUs of a cluster started here; None counts them")
    object_store_bytes: int = Field(200 * 2**20, ge=80 * 2**20, description="object store of a cluster started here")
    namespace: str = Field("step35", min_length=1, description="Ray namespace of the driver")
    app_name: str = Field("step35", min_length=1, description="name of the Serve application")

    @model_validator(mode="after")
    def _check_local(self) -> Self:
        local = sorted({"num_cpus", "object_store_bytes"} & self.model_fields_set)
        if self.address is not None and local:
            raise ValueError(f"{' and '.join(local)} size a cluster started here, but address names {self.address!r}")
        return self


def refuse_shared(value: Any) -> Any:
    """Raises ValueError for a field of an engine's section that both tiers share."""
    for name in SHARED_ENGINE_FIELDS:
        if isinstance(value, dict) and name in value:
            raise ValueError(f"{name} is not set here: it stands one level up, once for what it concerns")
    return value
