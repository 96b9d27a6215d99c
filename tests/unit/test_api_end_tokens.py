"""Which tokens end a sequence: the client's and the model's own, from whatever file of the checkpoint names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.errors import CheckpointError
from actors.messages import MAX_STOP_TOKEN_IDS
from cluster.api.scripted import ScriptedEngine
from cluster.api.served_model import load_served_model
from tests.fakes.api import COMPLETIONS, VOCAB_SIZE, api_client, completion, tell, write_model_folder
from tests.fakes.tokenizer import EOS


@pytest.mark.parametrize(("num_new", "status"), [(MAX_STOP_TOKEN_IDS - 3, 200), (MAX_STOP_TOKEN_IDS - 2, 400)])
async def test_stop_ids_are_the_clients_and_the_models(num_new: int, status: int, tmp_path: Path) -> None:
    """The engine is told every end token, none twice; more than it takes is an error that names the client's field."""
    own = sorted(load_served_model(write_model_folder(tmp_path)).eos_ids)
    new = [i for i in range(MAX_STOP_TOKEN_IDS + 3) if i not in own][:num_new]
    engine = ScriptedEngine(lambda request: tell([5]))
    async with api_client(tmp_path, engine) as client:
        answer = await client.post(COMPLETIONS, json=completion(stop_token_ids=[own[0], *new][:MAX_STOP_TOKEN_IDS]))
    assert answer.status_code == status
    if status == 200:
        assert engine.requests[0].sampling.stop_token_ids == (own[0], *new, *own[1:])
    else:
        assert answer.json()["error"]["param"] == "stop_token_ids"


@pytest.mark.parametrize("wrong", [-1, VOCAB_SIZE, "2", True, [[5]], list(range(64))])
def test_end_tokens_that_no_request_could_carry(wrong: Any, tmp_path: Path) -> None:
    """They would make the engine refuse every request, so the checkpoint is refused, with the file's name."""
    write_model_folder(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id"):
        load_served_model(tmp_path)


@pytest.mark.parametrize(
    ("in_config", "in_generation_config", "expected"),
    [([5], [6, 7], {5, 6, 7}), ([5, 6], 6, {5, 6}), (None, 6, {6}), ([5], None, {5}), (None, None, None)],
)
def test_end_tokens_of_both_files(
    in_config: Any, in_generation_config: Any, expected: set[int] | None, tmp_path: Path
) -> None:
    """The engine ends at those of config.json in any case; where no file names one, the tokenizer's eos_token is it."""
    write_model_folder(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "eos_token_id": in_config}))
    (tmp_path / "generation_config.json").unlink()
    if in_generation_config is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": in_generation_config}))
    model = load_served_model(tmp_path)
    assert model.eos_ids == (expected or {model.tokenizer.control_id(EOS)})
