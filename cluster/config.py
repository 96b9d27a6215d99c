"""ClusterConfig: everything that can be set, composed of the configs that the parts own. Frozen, checked at birth.

The only reader and writer of environment variables and the only reader of configuration files. Order: defaults, then
the YAML file, then `STEP35__SECTION__FIELD` variables, then the command line.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, MutableMapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from actors.attention.config import AttentionConfig
from actors.expert.config import ExpertConfig
from cluster.api.settings import ApiLimits, ApiSettings
from cluster.balancing import BalancingConfig
from cluster.errors import ConfigurationError

PACKAGE = "step35-cluster"
ENV_PREFIX = "STEP35__"
ENV_DELIMITER = "__"

DEVICE_PATTERN = r"^(cpu|cuda(:\d+)?)$"

# Set once for both tiers, because two values could never agree.
SHARED_ENGINE_FIELDS = ("device", "deterministic")


def _make_absolute(path: Path) -> Path:
    return path.expanduser().absolute()


# Replicas do not share the working directory of the command.
AbsolutePath = Annotated[Path, AfterValidator(_make_absolute)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class ActorResources(_Section):
    """What Ray reserves for one replica and where it may run."""

    num_cpus: float = Field(0.1, ge=0, description="CPU shares Ray reserves; small, so that a laptop holds them all")
    num_gpus: float = Field(0.0, ge=0, description="GPUs Ray reserves")
    labels: dict[str, str] = Field(default_factory=dict, description="node labels the replica requires")


class AttentionTier(_Section):
    """The attention deployment."""

    num_replicas: int = Field(1, ge=1, description="attention actors; each owns the state of its requests")
    device: str = Field("cpu", pattern=DEVICE_PATTERN, description="torch device of weights and KV cache")
    resources: ActorResources = Field(default_factory=ActorResources)
    engine: AttentionConfig = Field(default_factory=AttentionConfig)

    @field_validator("engine", mode="before")
    @classmethod
    def _check_shared(cls, value: Any, info: ValidationInfo) -> Any:
        """What the engine's fields may be together depends on the device."""
        device = info.data.get("device")
        value = _refuse_shared(value)
        return {**value, "device": device} if isinstance(value, dict) and device else value


class ExpertTier(_Section):
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
        return _refuse_shared(value)

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        if self.num_replicas not in (None, self.ep_size):
            raise ValueError(f"num_replicas {self.num_replicas} must equal ep_size {self.ep_size}")
        return self


class GatewayConfig(_Section):
    """The HTTP front door."""

    num_replicas: int = Field(1, ge=1, description="gateway processes")
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    api_keys_file: AbsolutePath | None = Field(None, description="bearer keys, one a line; without it the API is open")
    max_context_tokens: int | None = Field(None, ge=2, description="shortens the checkpoint's context")
    limits: ApiLimits = Field(default_factory=ApiLimits)


class AdminConfig(_Section):
    """The operator's HTTP route, kept off the public port."""

    enabled: bool = Field(True, description="whether to listen at all")
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on, on the coordinator's node")
    port: int = Field(8001, ge=1, le=65535, description="port to listen on")
    token_file: AbsolutePath = Field(
        Path("~/.step35/admin.token"), validate_default=True, description="bearer tokens, one a line; made if missing"
    )

    @property
    def url(self) -> str:
        """Where this machine reaches it."""
        return f"http://{'127.0.0.1' if self.host in ('0.0.0.0', '::') else self.host}:{self.port}"


class ControlConfig(_Section):
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


class RayConfig(_Section):
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


class ClusterConfig(_Section):
    """One cluster. Only `checkpoint` has no default."""

    checkpoint: AbsolutePath = Field(description="folder with config.json, safetensors and tokenizer")
    model_name: str | None = Field(
        None, min_length=1, max_length=256, description="name in the API; None: the folder's"
    )
    attention: AttentionTier = Field(default_factory=AttentionTier)
    experts: ExpertTier = Field(default_factory=ExpertTier)
    transport: Literal["auto", "shm", "gloo", "nccl"] = Field("auto", description="how rows travel between the tiers")
    collective_capacity_rows: int | None = Field(
        None,
        ge=1,
        description="gloo and nccl: pad exchanges of up to this many rows per rank to one size and include every rank, "
        "so that decode steps have constant shapes; None sends exact sizes; unused if auto chooses shm",
    )
    deterministic: bool = Field(False, description="results do not depend on batch or placement, at some cost")
    balancing: BalancingConfig = Field(default_factory=BalancingConfig)
    gateway: GatewayConfig = Field(default_factory=GatewayConfig)
    admin: AdminConfig = Field(default_factory=AdminConfig)
    control: ControlConfig = Field(default_factory=ControlConfig)
    ray: RayConfig = Field(default_factory=RayConfig)
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="of our own loggers")

    @model_validator(mode="after")
    def _check_deterministic(self) -> Self:
        devices = self.attention.device, self.experts.device
        if self.deterministic and devices != ("cpu", "cpu"):
            raise ValueError(
                f"deterministic is proven on device cpu only, got attention.device {devices[0]} and "
                f"experts.device {devices[1]}"
            )
        return self

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        """Rows travel in the type that the attention tier computes in; the experts' kernels must read it."""
        dtype = self.attention_engine.row_dtype
        if dtype == "bfloat16" and self.experts.device == "cpu" and "native" in self.experts.engine.kernels:
            raise ValueError(
                f"attention.engine.compute_dtype {self.attention.engine.compute_dtype} on device "
                f"{self.attention.device} sends bfloat16 rows, which native of experts.engine.kernels does not read on "
                "the CPU: use compute_dtype float32, or experts.engine.kernels [reference]"
            )
        return self

    @model_validator(mode="after")
    def _check_devices(self) -> Self:
        if self.transport == "nccl" and not self.uses_gpus:
            raise ValueError(
                f"transport nccl needs both tiers on cuda, got {self.attention.device} and {self.experts.device}"
            )
        return self

    @model_validator(mode="after")
    def _check_ports(self) -> Self:
        if self.admin.enabled and self.admin.port == self.gateway.port:
            raise ValueError(f"admin.port {self.admin.port} must differ from gateway.port, which is public")
        return self

    @model_validator(mode="after")
    def _check_slots(self) -> Self:
        is_ordered = "mode" in self.balancing.model_fields_set and self.balancing.mode != "off"
        if self.experts.num_redundant_slots == 0 and is_ordered:
            raise ValueError(
                f"balancing.mode {self.balancing.mode} needs experts.num_redundant_slots of at least 1, got 0: "
                "experts move through a slot that is free"
            )
        return self

    @property
    def balancer(self) -> BalancingConfig:
        """The balancing config; off where there is no slot to move through."""
        return self.balancing if self.experts.num_redundant_slots else self.balancing.model_copy(update={"mode": "off"})

    @model_validator(mode="after")
    def _check_capacity(self) -> Self:
        if self.collective_capacity_rows is not None and self.transport == "shm":
            raise ValueError(
                f"collective_capacity_rows {self.collective_capacity_rows} has no meaning with transport shm, "
                "which pads nothing"
            )
        return self

    @property
    def uses_gpus(self) -> bool:
        return self.attention.device.startswith("cuda") and self.experts.device.startswith("cuda")

    @property
    def served_name(self) -> str:
        """What clients send as `model`."""
        return self.model_name or self.checkpoint.name

    @property
    def attention_engine(self) -> AttentionConfig:
        """The attention tier's config with the values both tiers share."""
        return AttentionConfig(**self._with_shared(self.attention.engine, self.attention.device))

    @property
    def expert_engine(self) -> ExpertConfig:
        """The expert tier's config with the values both tiers share."""
        return ExpertConfig(**self._with_shared(self.experts.engine, self.experts.device))

    @property
    def api(self) -> ApiSettings:
        gateway = self.gateway
        return ApiSettings(
            checkpoint=self.checkpoint,
            model_name=self.served_name,
            version=_version(),
            max_context_tokens=gateway.max_context_tokens,
            api_keys_file=gateway.api_keys_file,
            limits=gateway.limits,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `ClusterConfig.model_validate` is the inverse."""
        shared = {tier: {"engine": set(SHARED_ENGINE_FIELDS)} for tier in ("attention", "experts")}
        return self.model_dump(mode="json", exclude_unset=True, exclude=shared)

    def _with_shared(self, engine: AttentionConfig | ExpertConfig, device: str) -> dict[str, Any]:
        return {**engine.model_dump(), "device": device, "deterministic": self.deterministic}


def load_config(
    file: Path | None,
    *,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> ClusterConfig:
    """Read the file and the environment. `overrides` (top-level fields) win over both; None values are skipped.

    Raises ConfigurationError that lists everything wrong.
    """
    values = _given(file, environ)
    values.update({name: value for name, value in (overrides or {}).items() if value is not None})
    try:
        return ClusterConfig.model_validate(values)
    except ValidationError as error:
        raise _wrong_configuration(file, [_explain(details) for details in error.errors()]) from None


def load_admin(file: Path | None, *, environ: Mapping[str, str] | None = None) -> AdminConfig:
    """Only the admin section, for a tool that speaks to a running cluster and needs no checkpoint. Raises
    ConfigurationError."""
    try:
        return AdminConfig.model_validate(_given(file, environ).get("admin", {}))
    except ValidationError as error:
        problems = [_explain({**details, "loc": ("admin", *details["loc"])}) for details in error.errors()]
        raise _wrong_configuration(file, problems) from None


def _given(file: Path | None, environ: Mapping[str, str] | None) -> dict[str, Any]:
    """What the file and the environment say, not checked yet."""
    values = _read_file(file) if file is not None else {}
    for path, text in _variables(os.environ if environ is None else environ):
        _set(values, path, _parse(_variable(path), text))
    return values


def _wrong_configuration(file: Path | None, problems: list[str]) -> ConfigurationError:
    source = str(file) if file is not None else "defaults"
    listed = "\n".join(f"  - {problem}" for problem in problems)
    return ConfigurationError(f"configuration ({source}): {len(problems)} problem(s)\n{listed}")


def export_environment(variables: Mapping[str, str], environ: MutableMapping[str, str] | None = None) -> None:
    """Set variables for this process and those it starts, unless the operator has set them."""
    target = os.environ if environ is None else environ
    for name, value in variables.items():
        target.setdefault(name, value)


def _read_file(file: Path) -> dict[str, Any]:
    try:
        values = _load_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"configuration file {file} cannot be read: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigurationError(f"configuration file {file} must hold a mapping, not a {type(values).__name__}")
    return values


def _variables(environ: Mapping[str, str]) -> list[tuple[tuple[str, ...], str]]:
    found = sorted((name, text) for name, text in environ.items() if name.startswith(ENV_PREFIX))
    return [(tuple(name[len(ENV_PREFIX) :].lower().split(ENV_DELIMITER)), text) for name, text in found]


def _variable(path: tuple[str, ...]) -> str:
    return ENV_PREFIX + ENV_DELIMITER.join(path).upper()


def _parse(name: str, text: str) -> Any:
    """Lists, mappings and null are YAML. Anything else stays text, which the field converts: YAML would make a number
    of the model name 3.5, a minute count of 12:30 and octal of 010."""
    bare = text.strip()
    if not bare:
        # An unset shell variable must not, say, open an API that a file has given keys.
        raise ConfigurationError(f"environment variable {name} is empty; write null to clear it")
    if bare[0] not in "[{" and bare != "null":
        return text
    try:
        return _load_yaml(bare)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"environment variable {name} is not a YAML value: {text!r}") from error


def _set(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    *parents, last = path
    for depth, name in enumerate(parents, start=1):
        inner = values.get(name, {})
        if not isinstance(inner, dict):
            section = ".".join(parents[:depth])
            raise ConfigurationError(f"{section} = {inner!r}: must be a mapping, {_variable(path)} sets a field of it")
        # A copy, because a YAML alias may have put the same mapping elsewhere too.
        values[name] = dict(inner)
        values = values[name]
    values[last] = value


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a mapping that names a key twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is named twice", key.start_mark)
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else key)
        return super().construct_mapping(node, deep)


def _load_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_UniqueKeyLoader)


def _version() -> str:
    """Of the installed package; a source tree that is not installed has none."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return "unknown"


def _refuse_shared(value: Any) -> Any:
    for name in SHARED_ENGINE_FIELDS:
        if isinstance(value, dict) and name in value:
            raise ValueError(f"{name} is not set here: it stands one level up, once for what it concerns")
    return value


def _explain(details: Mapping[str, Any]) -> str:
    """One problem: field, value, rule, and for an unknown field the nearest known one."""
    path = tuple(str(part) for part in details["loc"])
    name = ".".join(path) or "the whole"
    if details["type"] == "extra_forbidden":
        return f"{name} is not a field{_hint(path)}"
    if details["type"] == "missing":
        return f"{name} is missing"
    rule = str(details["msg"]).removeprefix("Value error, ")
    return f"{name} = {details['input']!r}: {rule}"


def _hint(path: tuple[str, ...]) -> str:
    model: Any = ClusterConfig
    for name in path[:-1]:
        model = model.model_fields[name].annotation
    known = list(model.model_fields)
    near = difflib.get_close_matches(path[-1], known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"
