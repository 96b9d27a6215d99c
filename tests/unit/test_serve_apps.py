"""The application builders that Serve's configuration files import, without a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from cluster.errors import ConfigurationError
from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.configs import tiny_config

# Ray's own, of pydantic and others, when it is imported
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration of a tiny checkpoint with two expert ranks."""
    write_checkpoint(tmp_path / "tiny", tiny_config(), seed=0)
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({"checkpoint": str(tmp_path / "tiny"), "experts": {"ep_size": 2}}))
    return path


def test_the_map_has_the_checkpoints_shape(file: Path) -> None:
    """Number of MoE layers, their ids and the experts come from config.json."""
    from cluster.config import load_config
    from cluster.serve_apps import map_shape

    shape = map_shape(load_config(file))
    spec = tiny_config()
    assert shape.num_moe_layers == len(shape.layer_ids) > 0
    assert shape.num_logical_experts == spec["moe_num_experts"]


def test_both_builders_make_applications_from_the_file(file: Path) -> None:
    """The engine's entry is the attention tier; the gateway is an application of its own."""
    from cluster.deploy import ATTENTION, GATEWAY
    from cluster.serve_apps import BuilderArguments, engine, gateway

    args = BuilderArguments(config=file)
    assert engine(args)._bound_deployment.name == ATTENTION
    assert gateway(args)._bound_deployment.name == GATEWAY


def test_serve_checks_the_arguments_of_a_builder(file: Path) -> None:
    """Serve turns `args` into the annotated class: an unknown argument is refused, not ignored."""
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

    from cluster.deploy import GATEWAY
    from cluster.serve_apps import gateway

    made = call_user_app_builder_with_args_if_necessary(gateway, {"config": str(file)})
    assert made._bound_deployment.name == GATEWAY
    with pytest.raises(ValidationError, match="confg"):
        call_user_app_builder_with_args_if_necessary(gateway, {"config": str(file), "confg": 1})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """What Serve shows as the reason of DEPLOY_FAILED."""
    from cluster.serve_apps import BuilderArguments, engine

    with pytest.raises(ConfigurationError, match="nowhere"):
        engine(BuilderArguments(config=tmp_path / "nowhere.yaml"))
