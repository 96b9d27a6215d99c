"""AttentionConfig: defaults stand together, and every refusal names field, value and rule."""

import pytest
from pydantic import ValidationError

from actors.attention.config import AttentionConfig


def test_the_defaults_are_valid_and_frozen() -> None:
    """A config without a line works; nothing changes it afterwards."""
    config = AttentionConfig()
    assert config.num_microbatches == 1
    with pytest.raises(ValidationError, match="frozen"):
        config.block_size = 8  # type: ignore[misc]


def test_every_field_is_described() -> None:
    """The documentation of settings is made from these lines."""
    undescribed = [name for name, field in AttentionConfig.model_fields.items() if not field.description]
    assert undescribed == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_size": 0}, "block_size\n.*greater than or equal to 1.*input_value=0"),
        ({"max_running": 8, "max_step_tokens": 7}, "max_step_tokens 7 must be at least max_running 8"),
        ({"kv_cache_tokens": 5, "kv_cache_bytes": 6}, "kv_cache_tokens 5 and kv_cache_bytes 6: only one"),
        ({"exchange_timeout_s": 9.0, "recovery_timeout_s": 8.0}, "recovery_timeout_s 8.0 must be at least exchange"),
        ({"exchange_timeout_s": float("inf")}, "exchange_timeout_s\n.*finite"),
        ({"num_microbatches": 3}, "num_microbatches\n.*input_value=3"),
        ({"deterministic": True, "device": "cuda:1"}, "deterministic is proven on device cpu only, got device cuda:1"),
        ({"device": "tpu"}, "device\n.*pattern.*input_value='tpu'"),
        ({"param_dtype": "float16"}, "param_dtype\n.*input_value='float16'"),
        ({"max_runing": 4}, "max_runing\n.*Extra inputs are not permitted"),
    ],
)
def test_refusals_name_field_value_and_rule(fields: dict[str, object], message: str) -> None:
    """Wrong values, wrong combinations and unknown names."""
    with pytest.raises(ValidationError, match=message):
        AttentionConfig.model_validate(fields)
