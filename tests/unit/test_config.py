"""ClusterConfig: defaults that run, errors that name field, value and rule, one order of precedence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.config import (
    AdminConfig,
    ClusterConfig,
    PodEnvironment,
    export_environment,
    load_admin,
    load_config,
    pod_environment,
)
from cluster.errors import ConfigurationError
from cluster.tiers import transport_options

CHECKPOINT = {"checkpoint": Path("/models/step")}


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "cluster.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_checkpoint_is_all_it_needs() -> None:
    """One attention actor, eight expert ranks, this machine only."""
    config = load_config(None, overrides=CHECKPOINT, environ={})
    assert (config.attention.num_replicas, config.experts.ep_size, config.gateway.host) == (1, 8, "127.0.0.1")
    assert config.served_name == "step"
    assert config.api.model_name == "step"


def test_file_then_environment_then_command_line(tmp_path: Path) -> None:
    """Each overrides the one before; what it does not name stays."""
    file = write(tmp_path, "checkpoint: /a\nlog_level: error\nexperts: {ep_size: 2, num_redundant_slots: 1}\n")
    environ = {"STEP35__EXPERTS__EP_SIZE": "4", "STEP35__LOG_LEVEL": "warning", "STEP35_OTHER": "x", "HOME": "/"}
    config = load_config(file, overrides={"log_level": "debug", "checkpoint": None}, environ=environ)
    assert (config.experts.ep_size, config.experts.num_redundant_slots) == (4, 1)
    assert (config.log_level, config.checkpoint) == ("debug", Path("/a"))


def test_nested_variables_reach_the_engines() -> None:
    """A variable can set a field of a part's own config, and its text is YAML."""
    environ = {"STEP35__ATTENTION__ENGINE__MAX_RUNNING": "7", "STEP35__ATTENTION__RESOURCES__LABELS": "{tier: a}"}
    config = load_config(None, overrides=CHECKPOINT, environ=environ)
    assert config.attention.engine.max_running == 7
    assert config.attention.resources.labels == {"tier": "a"}


def test_deterministic_and_device_have_one_source() -> None:
    """Both tiers get the same flag, each its tier's device, and their other fields unchanged."""
    config = ClusterConfig.model_validate({"checkpoint": "/a", "deterministic": True})
    assert config.attention_engine.deterministic
    assert config.expert_engine.deterministic
    devices = {"attention": {"device": "cuda:1", "engine": {"max_running": 3}}, "experts": {"device": "cuda:0"}}
    config = ClusterConfig.model_validate({"checkpoint": "/a", **devices})
    assert (config.attention_engine.device, config.expert_engine.device) == ("cuda:1", "cuda:0")
    assert config.attention_engine.max_running == 3


def test_the_engine_is_checked_with_its_tiers_device() -> None:
    """bfloat16 is wrong for native kernels on a CPU and right on a GPU; the way through plain values keeps that."""
    tiers = {"attention": {"device": "cuda", "engine": {"compute_dtype": "bfloat16"}}, "experts": {"device": "cuda"}}
    config = ClusterConfig.model_validate({"checkpoint": "/a", **tiers})
    assert config.attention_engine.row_dtype == "bfloat16"
    assert ClusterConfig.model_validate(config.to_dict()) == config


@pytest.mark.parametrize(
    "fields",
    [
        {"experts": {"engine": {"kernels": ["reference"]}}},
        {"experts": {"device": "cuda"}},
        {"attention": {"engine": {"compute_dtype": "float32", "kernels": ["reference"]}}},
    ],
)
def test_rows_that_the_experts_read_are_accepted(fields: dict[str, Any]) -> None:
    """Other kernels, another device or another type than the refused combination."""
    engine = {"compute_dtype": "bfloat16", "kernels": ["reference"]}
    ClusterConfig.model_validate({"checkpoint": "/a", "attention": {"engine": engine}, **fields})


@pytest.mark.parametrize("transport", ["auto", "gloo"])
def test_padded_exchanges_reach_the_transport(monkeypatch: pytest.MonkeyPatch, transport: str) -> None:
    """Both tiers open their ports with the capacity that the configuration names, and exact sizes without it."""
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    fields = {"checkpoint": "/a", "transport": transport}
    padded = ClusterConfig.model_validate({**fields, "collective_capacity_rows": 8})
    assert transport_options(padded, "cpu").capacity_rows == 8
    assert transport_options(ClusterConfig.model_validate(fields), "cpu").capacity_rows is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experts: {ep_size: 0}", r"experts\.ep_size = 0: .*greater than or equal to 1"),
        ("experts: {ep_sise: 4}", r"experts\.ep_sise is not a field; did you mean ep_size\?"),
        (
            "attention: {engine: {max_runing: 4}}",
            r"attention\.engine\.max_runing is not a field; did you mean max_running",
        ),
        ("colour: blue", r"colour is not a field; known here: .*transport"),
        ("experts: {num_replicas: 4}", r"num_replicas 4 must equal ep_size 8"),
        ("attention: {engine: {deterministic: true}}", r"deterministic is not set here: it stands one level up"),
        ("experts: {engine: {device: cuda}}", r"device is not set here"),
        ("transport: carrier-pigeon", r"transport = 'carrier-pigeon'"),
        ("collective_capacity_rows: 0", r"collective_capacity_rows = 0: .*greater than or equal to 1"),
        ("{transport: shm, collective_capacity_rows: 8}", r"collective_capacity_rows 8 has no meaning with .* shm"),
        ("transport: nccl", r"transport nccl needs both tiers on cuda, got cpu and cpu"),
        ("attention: {device: tpu}", r"attention\.device = 'tpu'"),
        (
            "attention: {engine: {compute_dtype: bfloat16, kernels: [reference]}}",
            r"attention\.engine\.compute_dtype bfloat16 on device cpu .* experts\.engine\.kernels \[reference\]",
        ),
        ("attention: {device: cuda}", r"compute_dtype auto on device cuda sends bfloat16 .* experts\.engine\.kernels"),
        ("deterministic: true\nexperts: {device: cuda}", r"deterministic .* attention\.device cpu .*device cuda"),
        ("attention: {engine: {compute_dtype: bfloat16}}", r"compute_dtype bfloat16 on device cpu is not served"),
        ("control: {poll_s: 15}", r"poll_s 15\.0 must be at most half of lease_ttl_s 20\.0"),
        ("gateway: {port: 70000}", r"gateway\.port = 70000"),
        ("attention: {num_replicas: many}", r"attention\.num_replicas = 'many'"),
        (
            "attention: {num_replicas: 5, autoscaling: {max_replicas: 4}}",
            r"autoscaling\.max_replicas 4 must be at least num_replicas 5",
        ),
        ("attention: {autoscaling: {max_replica: 4}}", r"attention\.autoscaling\.max_replica is not a field"),
        ("attention: {autoscaling: {}}", r"control\.drain_timeout_s 20\.0 must be at least .*request_timeout_s 600\.0"),
        (
            "{attention: {autoscaling: {max_replicas: 11}}, control: {drain_timeout_s: 600}}",
            r"max_concurrent_requests of 1 gateways lets in 256; .* max_replicas 11 x target_sequences 24",
        ),
        ("attention: {resources: {num_gpus: .nan}}", r"attention\.resources\.num_gpus = nan"),
        ("control: {drain_timeout_s: .inf}", r"control\.drain_timeout_s = inf: .*finite"),
        ("ray: {address: auto, num_cpus: 2}", r"num_cpus size a cluster started here, but address names 'auto'"),
        ("ray: {address: auto, object_store_bytes: 100000000}", r"object_store_bytes size a cluster started here"),
        ("experts: {ep_size: 4, ep_size: 8}", r"'ep_size' is named twice"),
        ("admin: {port: 8000}", r"admin\.port 8000 must differ from gateway\.port, because .* overlap"),
        ("{admin: {port: 9, host: localhost}, gateway: {port: 9}}", r"admin\.port 9 must differ .*host localhost"),
        ("{admin: {port: 9, host: 10.0.0.1}, gateway: {port: 9, host: 0.0.0.0}}", r"admin\.port 9 must differ"),
        ('{admin: {port: 9, host: "::"}, gateway: {port: 9}}', r"admin\.port 9 must differ"),
        ("admin: {tokenfile: x}", r"admin\.tokenfile is not a field; did you mean token_file\?"),
        ("admin: {token_file: null}", r"admin\.token_file = None"),
    ],
)
def test_errors_name_field_value_and_rule(tmp_path: Path, text: str, message: str) -> None:
    """Nothing wrong is ignored, and the sentence is enough to repair it."""
    with pytest.raises(ConfigurationError, match=message):
        load_config(write(tmp_path, text), overrides=CHECKPOINT, environ={})


def test_all_problems_at_once(tmp_path: Path) -> None:
    """A missing checkpoint and two wrong fields are one error with three lines."""
    with pytest.raises(ConfigurationError, match=r"3 problem\(s\)") as caught:
        load_config(write(tmp_path, "gateway: {port: 0}\nspeed: 9\n"), environ={})
    assert "checkpoint is missing" in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"])
def test_files_that_are_no_mapping_are_refused(tmp_path: Path, text: str) -> None:
    """A list, broken YAML, a binary file: a sentence with the file's name."""
    with pytest.raises(ConfigurationError, match=r"cluster\.yaml"):
        load_config(write(tmp_path, text), environ={})


def test_an_unreadable_file_or_variable_is_named(tmp_path: Path) -> None:
    """The operator sees which one."""
    with pytest.raises(ConfigurationError, match=r"absent\.yaml cannot be read"):
        load_config(tmp_path / "absent.yaml", environ={})
    with pytest.raises(ConfigurationError, match="STEP35__GATEWAY__PORT is not a YAML value"):
        load_config(None, environ={"STEP35__GATEWAY__PORT": "["})


def test_frozen_and_back_through_plain_values() -> None:
    """A config reaches a replica as plain values and is the same there; nobody changes it."""
    config = load_config(None, overrides=CHECKPOINT, environ={"STEP35__ATTENTION__ENGINE__MAX_RUNNING": "7"})
    assert ClusterConfig.model_validate(config.to_dict()) == config
    with pytest.raises(ValidationError):
        config.log_level = "debug"  # type: ignore[misc]


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas do not share the working directory of the command."""
    monkeypatch.chdir(tmp_path)
    fields = {"checkpoint": "ck", "gateway": {"api_keys_file": "keys"}}
    config = ClusterConfig.model_validate(fields)
    assert config.checkpoint == tmp_path / "ck"
    assert config.gateway.api_keys_file == tmp_path / "keys"


def test_the_operators_own_variables_win() -> None:
    """Exporting sets what is absent and leaves what is there."""
    environ = {"A": "operator"}
    export_environment({"A": "ours", "B": "ours"}, environ)
    assert environ == {"A": "operator", "B": "ours"}


@pytest.mark.parametrize(
    "fields",
    [
        {"admin": {"port": 8000, "enabled": False}},
        {"admin": {"port": 8000, "host": "10.0.0.1"}, "gateway": {"host": "10.0.0.2"}},
    ],
)
def test_ports_may_be_equal_where_they_cannot_clash(fields: dict[str, Any]) -> None:
    """Nobody listens on one of them, or they are two addresses."""
    ClusterConfig.model_validate({"checkpoint": "/a", **fields})


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8001"),
        ("0.0.0.0", "http://127.0.0.1:8001"),
        ("::", "http://[::1]:8001"),
        ("fd00::7", "http://[fd00::7]:8001"),
        ("admin.internal", "http://admin.internal:8001"),
    ],
)
def test_the_admin_route_has_an_address(host: str, url: str) -> None:
    """One that can be connected to."""
    assert AdminConfig(host=host).url == url


def test_the_admin_section_alone(tmp_path: Path) -> None:
    """A tool that speaks to a running cluster needs no checkpoint; file and environment count as for `serve`, and the
    token is where `serve` makes it."""
    file = write(tmp_path, "admin: {port: 9001, token_file: ~/tokens}")
    admin = load_admin(file, environ={"STEP35__ADMIN__HOST": "10.0.0.1"})
    assert (admin.host, admin.port, admin.token_file) == ("10.0.0.1", 9001, Path.home() / "tokens")
    assert load_admin(None, environ={}) == ClusterConfig.model_validate(CHECKPOINT).admin
    assert load_admin(None, environ={}).token_file == Path.home() / ".step35" / "admin.token"
    with pytest.raises(ConfigurationError, match=r"admin\.port = 0"):
        load_admin(write(tmp_path, "admin: {port: 0}"), environ={})


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_variable_is_refused(tmp_path: Path, text: str) -> None:
    """It could be an unset shell variable, and must not turn authentication off; null says so explicitly."""
    file = write(tmp_path, "checkpoint: /a\ngateway: {api_keys_file: /keys}\n")
    name = "STEP35__GATEWAY__API_KEYS_FILE"
    with pytest.raises(ConfigurationError, match=f"{name} is empty; write null to clear it"):
        load_config(file, environ={name: text})
    assert load_config(file, environ={name: "null"}).gateway.api_keys_file is None


@pytest.mark.parametrize(
    ("variable", "section", "field", "text", "value"),
    [
        ("RAY__APP_NAME", "ray", "app_name", "12:30", "12:30"),
        ("RAY__APP_NAME", "ray", "app_name", "on", "on"),
        ("RAY__APP_NAME", "ray", "app_name", "3.50", "3.50"),
        ("GATEWAY__HOST", "gateway", "host", "::", "::"),
        ("GATEWAY__PORT", "gateway", "port", "010000", 10000),
        ("CONTROL__POLL_S", "control", "poll_s", "1e0", 1.0),
    ],
)
def test_a_variable_means_what_its_field_says(
    variable: str, section: str, field: str, text: str, value: object
) -> None:
    """The text of a plain value reaches the field as it is: no YAML 1.1 minutes, switches or octal numbers."""
    config = load_config(None, overrides=CHECKPOINT, environ={f"STEP35__{variable}": text})
    assert getattr(getattr(config, section), field) == value


@pytest.mark.parametrize("section", ["8000", "null", "[1]"])
def test_a_variable_does_not_hide_a_broken_section(tmp_path: Path, section: str) -> None:
    """The file's mistake is told, not overwritten by the mapping that the variable needs."""
    with pytest.raises(ConfigurationError, match=r"gateway = .*must be a mapping, STEP35__GATEWAY__PORT sets"):
        load_config(write(tmp_path, f"gateway: {section}"), environ={"STEP35__GATEWAY__PORT": "9000"})


def test_a_variable_changes_one_of_two_aliased_sections(tmp_path: Path) -> None:
    """A YAML alias is one mapping in two places; a variable names only one of them."""
    text = "checkpoint: /a\nattention: {resources: &r {num_cpus: 1}}\nexperts: {resources: *r}\n"
    config = load_config(write(tmp_path, text), environ={"STEP35__EXPERTS__RESOURCES__NUM_CPUS": "2"})
    assert (config.attention.resources.num_cpus, config.experts.resources.num_cpus) == (1, 2)


def test_a_process_knows_its_pod() -> None:
    """From its own environment, never from the cluster's configuration; nothing outside of Kubernetes."""
    environ = {
        "STEP35_POD_NAME": "p",
        "STEP35_POD_NODE": "n",
        "STEP35_POD_NAMESPACE": "models",
        "STEP35_POD_RAY_CLUSTER": "c",
        "STEP35_POD_RAY_SERVICE": "s",
    }
    assert pod_environment(environ) == PodEnvironment("p", "n", "models", "c", "s")
    assert pod_environment({}) == PodEnvironment()
    config = load_config(None, overrides=CHECKPOINT, environ=environ)
    assert config == load_config(None, overrides=CHECKPOINT, environ={})
