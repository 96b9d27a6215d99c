"""ExpertConfig: refusals name field, value and rule."""

import pytest
from pydantic import ValidationError

from actors.expert.config import ExpertConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"deterministic": True, "device": "cuda"}, "deterministic is proven on device cpu only, got device cuda"),
        ({"device": "tpu"}, "device\n.*pattern.*input_value='tpu'"),
        ({"receive_timeout_s": 0}, "receive_timeout_s\n.*greater than 0"),
    ],
)
def test_refusals_name_field_value_and_rule(fields: dict[str, object], message: str) -> None:
    """Wrong values and wrong combinations."""
    with pytest.raises(ValidationError, match=message):
        ExpertConfig.model_validate(fields)


def test_every_field_is_described() -> None:
    """The documentation of settings is made from these lines."""
    assert [name for name, field in ExpertConfig.model_fields.items() if not field.description] == []
