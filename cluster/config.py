"""ClusterConfig: everything that can be set, composed of the configs that the parts own. Frozen, checked at birth.

The only reader and writer of environment variables and the only reader of configuration files. Order: defaults, then
the YAML file, then `STEP35__SECTION__FIELD` variables, then the command line.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import (
    Field,
    ValidationError,
    model_validator,
)

from actors.attention.config import AttentionConfig
from actors.expert.config import ExpertConfig
from cluster.api.settings import ApiSettings
from cluster.balancing import BalancingConfig
from cluster.errors import ConfigurationError
from cluster.kube.settings import KubernetesConfig
from cluster.sections import (
    EVERY_ADDRESS,
    SHARED_ENGINE_FIELDS,
    AbsolutePath,
    AdminConfig,
    AttentionTier,
    ControlConfig,
    ExpertTier,
    GatewayConfig,
    RayConfig,
    Section,
)
from cluster.telemetry import TelemetryConfig

PACKAGE = "step35-cluster"
ENV_PREFIX = "STEP35__"
ENV_DELIMITER = "__"
POD_ENV_PREFIX = "STEP35_POD_"  # not a field of anything: each process has its own


@dataclass(frozen=True)
class PodEnvironment:
    """What the chart tells each process of its pod; empty outside of Kubernetes."""

    pod: str = ""
    node: str = ""
    namespace: str = ""
    ray_cluster: str = ""
    ray_service: str = ""


class ClusterConfig(Section):
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
    kubernetes: KubernetesConfig = Field(default_factory=KubernetesConfig)
    telemetry: TelemetryConfig = Field(default_factory=TelemetryConfig)
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
        hosts = {host.replace("localhost", "127.0.0.1") for host in (self.admin.host, self.gateway.host)}
        can_clash = len(hosts) == 1 or not hosts.isdisjoint(EVERY_ADDRESS)
        if self.admin.enabled and self.admin.port == self.gateway.port and can_clash:
            raise ValueError(
                f"admin.port {self.admin.port} must differ from gateway.port, because admin.host {self.admin.host} and "
                f"gateway.host {self.gateway.host} overlap"
            )
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
    def _check_autoscaling(self) -> Self:
        scaling, gateway = self.attention.autoscaling, self.gateway
        if scaling is None:
            return self
        if self.control.drain_timeout_s < gateway.limits.request_timeout_s:
            raise ValueError(
                f"control.drain_timeout_s {self.control.drain_timeout_s} must be at least gateway.limits."
                f"request_timeout_s {gateway.limits.request_timeout_s}: attention.autoscaling takes actors away, whose "
                "streams must end first"
            )
        num_open = gateway.num_replicas * gateway.limits.max_concurrent_requests
        if num_open < scaling.max_replicas * scaling.target_sequences:
            raise ValueError(
                f"gateway.limits.max_concurrent_requests of {gateway.num_replicas} gateways lets in {num_open}; "
                f"attention.autoscaling needs max_replicas {scaling.max_replicas} x target_sequences "
                f"{scaling.target_sequences:g}, or gateways shed however many actors there are"
            )
        return self

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


def pod_environment(environ: Mapping[str, str] | None = None) -> PodEnvironment:
    """Where this process runs."""
    given = os.environ if environ is None else environ
    names = ("name", "node", "namespace", "ray_cluster", "ray_service")
    return PodEnvironment(*(given.get(POD_ENV_PREFIX + name.upper(), "") for name in names))


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
        section = model.model_fields[name].annotation
        model = get_args(section)[0] if get_args(section) else section  # a section that may be left out
    known = list(model.model_fields)
    near = difflib.get_close_matches(path[-1], known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"
