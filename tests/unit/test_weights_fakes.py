"""The random checkpoints that other tests build on: legal configs, same seed same bytes, sane values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from actors.model.config import parse_model_config
from actors.weights.check import check_checkpoint
from tests.fakes.checkpoint import demo_config, random_weights, recipe_of, write_checkpoint
from tests.fakes.configs import FP8_QUANTIZATION, real_config, tiny_config
from tests.fakes.tokenizer import MIN_VOCAB_SIZE, tokenizer_json


def test_the_real_config_has_the_published_lists() -> None:
    """48 entries each; full attention, theta and partial rotary on every fourth layer; clamps on 43 and 44."""
    fields = real_config()
    full = [layer_id for layer_id, kind in enumerate(fields["layer_types"]) if kind == "full_attention"]
    assert full == list(range(0, 45, 4))
    assert [fields["rope_theta"].count(theta) for theta in (5_000_000, 10_000)] == [12, 36]
    assert [fields["partial_rotary_factors"].count(factor) for factor in (0.5, 1.0)] == [12, 36]
    assert fields["swiglu_limits"] == [0] * 43 + [7, 7] + [0] * 3
    assert fields["swiglu_limits_shared"] == [0] * 44 + [16] + [0] * 3
    assert fields["moe_layers_enum"] == ",".join(map(str, range(3, 45)))


def test_the_demo_model_is_the_one_of_the_benchmarks() -> None:
    """44M parameters in the sizes that the numbers are quoted for."""
    config = parse_model_config(demo_config())
    num_parameters = sum(tensor.numel() for tensor in random_weights(demo_config()).values())
    assert round(num_parameters / 1e6) == 44
    assert (config.hidden_size, config.num_layers, config.vocab_size) == (256, 8, 4096)
    assert (config.num_experts, config.moe_intermediate_size, config.top_k) == (64, 96, 8)
    assert len(config.mtp_layers) == 3
    assert config.max_positions >= 4096


@pytest.mark.parametrize("num_layers", [2, 3, 6, 9])
@pytest.mark.parametrize("num_mtp", [0, 1, 3])
def test_tiny_configs_of_any_depth_are_legal(num_layers: int, num_mtp: int) -> None:
    """Per-layer lists follow the layer counts."""
    config = parse_model_config(tiny_config(num_hidden_layers=num_layers, num_nextn_predict_layers=num_mtp))
    assert (len(config.layers), len(config.mtp_layers)) == (num_layers, num_mtp)
    assert len(config.moe_layers) == num_layers - min(2, num_layers - 1)


def test_overrides_replace_fields() -> None:
    """What is given wins, also over the lists that would follow from it."""
    fields = tiny_config(moe_layers_enum="5", swiglu_limits=[0.0] * 9, head_dim=8)
    assert [spec.layer_id for spec in parse_model_config(fields).moe_layers] == [5]
    assert fields["swiglu_limits"] == [0.0] * 9
    assert fields["attention_other_setting"]["head_dim"] == 8


def test_same_seed_same_weights() -> None:
    """The seed decides every tensor, and another seed changes every one."""
    first, again, other = (random_weights(tiny_config(), seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_weights_keep_activations_near_one() -> None:
    """Matrices have variance 1 / fan-in, the embedding 1; norms stay near their identity."""
    weights = {name: tensor.float() for name, tensor in random_weights(tiny_config()).items()}
    assert weights["model.embed_tokens.weight"].std() == pytest.approx(1, rel=0.05)
    assert weights["model.layers.3.moe.down_proj.weight"].std() == pytest.approx(32**-0.5, rel=0.05)
    assert weights["model.layers.3.moe.gate_proj.weight"].std() == pytest.approx(64**-0.5, rel=0.05)
    assert weights["model.layers.3.input_layernorm.weight"].abs().max() < 0.6
    assert weights["model.layers.3.moe.router_bias"].unique().numel() == 16


def test_files_hold_the_weights(tmp_path: Path) -> None:
    """All shards together hold what `random_weights` gives; no shard exceeds its limit by more than its header."""
    fields = tiny_config(num_hidden_layers=3, quantization_config=FP8_QUANTIZATION)
    write_checkpoint(tmp_path, fields, seed=3, max_shard_bytes=150_000)
    shards = sorted(tmp_path.glob("*.safetensors"))
    stored = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    expected = random_weights(fields, seed=3)
    assert len(shards) > 1
    assert all(shard.stat().st_size < 150_000 + 10_000 for shard in shards)
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name].float(), expected[name].float()) for name in expected)


def test_writing_twice_changes_nothing_and_another_recipe_replaces(tmp_path: Path) -> None:
    """The same arguments keep the files as they are; other arguments leave nothing of the old checkpoint behind."""
    write_checkpoint(tmp_path, tiny_config(), max_shard_bytes=500_000)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write_checkpoint(tmp_path, tiny_config(), max_shard_bytes=500_000)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    old_recipe = recipe_of(tmp_path)
    write_checkpoint(tmp_path, tiny_config(), seed=1)
    assert recipe_of(tmp_path) != old_recipe
    assert check_checkpoint(tmp_path, ep_size=8).num_tensors == len(random_weights(tiny_config()))


def test_an_interrupted_checkpoint_is_written_again(tmp_path: Path) -> None:
    """Without its index a checkpoint counts as unfinished."""
    write_checkpoint(tmp_path, tiny_config())
    (tmp_path / "model.safetensors.index.json").unlink()
    assert recipe_of(tmp_path) is None
    write_checkpoint(tmp_path, tiny_config())
    assert check_checkpoint(tmp_path, ep_size=8).num_tensors == len(random_weights(tiny_config()))


def test_foreign_files_are_never_overwritten(tmp_path: Path) -> None:
    """A folder with somebody's weights is refused and left as it is."""
    weights = tmp_path / "model-00001-of-00001.safetensors"
    weights.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="not a random checkpoint"):
        write_checkpoint(tmp_path, tiny_config())
    assert [path.name for path in tmp_path.iterdir()] == [weights.name]
    assert weights.read_bytes() == b"precious"


def test_stop_ids_are_written_everywhere(tmp_path: Path) -> None:
    """config.json and generation_config.json name the ids of end of sentence, padding and end of turn."""
    write_checkpoint(tmp_path, tiny_config())
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    expected = [1, 2, tokenizer.token_to_id("<|im_end|>")]
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / name).read_text())["eos_token_id"] == expected


def test_a_vocabulary_too_small_for_bytes_has_no_tokenizer(tmp_path: Path) -> None:
    """The weights of such a model can be tested all the same."""
    write_checkpoint(tmp_path, tiny_config(vocab_size=MIN_VOCAB_SIZE - 1))
    assert not (tmp_path / "tokenizer.json").exists()
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == [1, 2]
    with pytest.raises(ValueError, match=f"{MIN_VOCAB_SIZE - 1} is below"):
        tokenizer_json(MIN_VOCAB_SIZE - 1)
