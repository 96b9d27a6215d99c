"""The decoder that is trained against the decoder that serves, and its gradients against slopes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from actors.model.config import ModelConfig, parse_model_config
from ops.nano.data.packing import stack
from ops.nano.data.rendering import Document
from ops.nano.dense import Batch, DenseModel
from ops.nano.gradients import trained_names
from ops.nano.losses import draft_loss, token_loss
from ops.nano.model import router_biases, start_drafts
from ops.nano.recipe import DRAFTS, TRUNK
from tests.fakes.checkpoint import random_weights, write_checkpoint
from tests.fakes.configs import tiny_config
from tests.fakes.one_sequence import OneSequence

FIELDS = tiny_config()  # a window of 8, and clamps that bite
CONFIG = parse_model_config(FIELDS)
SEED = 7
ROW = 48
# Documents shorter and longer than the window, of one token, that begin and end inside its chunks; padding behind two.
LENGTHS = ((17, 5, 20), (48,), (1, 8, 31))
MAX_DIFFERENCE = 1e-4  # as against transformers: fp32 rounding is 1e-6, a wrong detail 1e-3 or more
Rows = list[list[Document]]


def random_rows(lengths: tuple[tuple[int, ...], ...] = LENGTHS) -> Rows:
    """Documents of random tokens, every token counting in the loss but the first."""
    vocab_size = CONFIG.vocab_size
    return [
        [Document(torch.randint(vocab_size, (n,)).tolist(), [0.0] + [1.0] * (n - 1)) for n in row] for row in lengths
    ]


def places(rows: Rows) -> Iterator[tuple[int, slice, Document]]:
    """Every document with its row and its place there."""
    for row_idx, row in enumerate(rows):
        ends = accumulate(len(document.token_ids) for document in row)
        for document, end in zip(row, ends, strict=True):
            yield row_idx, slice(end - len(document.token_ids), end), document


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights(FIELDS, seed=SEED, dtype=torch.float32)


@pytest.fixture(scope="module")
def model(weights: dict[str, Tensor]) -> DenseModel:
    return DenseModel(CONFIG, weights, torch.float32)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> OneSequence:
    """The decoder with a paged cache and four expert ranks, with the same weights."""
    folder = write_checkpoint(tmp_path_factory.mktemp("weights"), FIELDS, seed=SEED, dtype=torch.float32)
    return OneSequence(folder, ep_size=4, deterministic=False)


@torch.no_grad()
def trunk_logits(model: DenseModel, batch: Batch) -> Tensor:
    """[B, L, V]."""
    result: Tensor = model.logits(model.hidden(batch)).unflatten(0, batch.token_ids.shape)
    return result


@torch.no_grad()
def draft_logits(model: DenseModel, batch: Batch) -> list[Tensor]:
    """[B, L, V] of each module."""
    return [part.unflatten(0, batch.token_ids.shape) for part in model.draft(batch, model.hidden(batch))]


def test_packed_documents_get_the_logits_of_serving(model: DenseModel, serving: OneSequence) -> None:
    """Each document of a packed batch has the logits that serving computes for it alone, chunk by chunk."""
    rows = random_rows()
    actual = trunk_logits(model, stack(rows, ROW))
    assert 0.2 < actual.std() < 20, "logits have lost their magnitude"
    for row_idx, place, document in places(rows):
        length = len(document.token_ids)
        chunks = (length - length // 3, length // 3) if length > 2 else (length,)
        expected = serving.logits(document.token_ids, chunks)
        assert (actual[row_idx, place] - expected).abs().max() <= MAX_DIFFERENCE


def test_a_document_does_not_see_its_neighbours(model: DenseModel) -> None:
    """Other documents before and behind it leave a document's logits as they are, the drafts' too where they count."""
    rows = random_rows()
    others = random_rows()
    kept = rows[0][1]
    mixed = [[others[0][0], kept, others[0][2]], *others[1:]]
    place = slice(17, 17 + len(kept.token_ids))
    before, after = (trunk_logits(model, stack(case, ROW)) for case in (rows, mixed))
    assert (before[0, place] - after[0, place]).abs().max() <= MAX_DIFFERENCE
    assert (before[0, :17] - after[0, :17]).abs().max() > 0.1
    for shift, (old, new) in enumerate(
        zip(draft_logits(model, stack(rows, ROW)), draft_logits(model, stack(mixed, ROW)), strict=True), start=1
    ):
        counting = slice(place.start, place.stop - 1 - shift)  # rows whose draft is still in the document
        assert (old[0, counting] - new[0, counting]).abs().max() <= MAX_DIFFERENCE


def test_packing_changes_no_loss(model: DenseModel) -> None:
    """Losses over a packed batch are the means over its documents alone: neighbours and padding count nothing."""
    rows = random_rows()
    packed = losses(model, stack(rows, ROW))
    totals = torch.zeros(1 + len(CONFIG.mtp_layers))
    counts = torch.zeros_like(totals)
    for _, _, document in places(rows):
        targets = torch.tensor([max(0, len(document.token_ids) - ahead) for ahead in range(1, 1 + len(totals))])
        totals += losses(model, stack([[document]], ROW)) * targets
        counts += targets
    assert torch.allclose(packed, totals / counts, atol=MAX_DIFFERENCE)


@torch.no_grad()
def losses(model: DenseModel, batch: Batch) -> Tensor:
    """Of the trunk and of each draft module."""
    hidden = model.hidden(batch)
    _, drafts = draft_loss(model, batch, hidden, [1.0] * len(CONFIG.mtp_layers))
    return torch.stack([token_loss(model.logits(hidden), batch), *drafts])


def test_padding_is_harmless(model: DenseModel) -> None:
    """Longer padding, and a row of nothing else, change no document and bring no infinity or NaN."""
    rows = random_rows()
    short, long = trunk_logits(model, stack(rows, ROW)), trunk_logits(model, stack([*rows, []], 2 * ROW))
    assert long.isfinite().all()
    for row_idx, place, _ in places(rows):
        assert (short[row_idx, place] - long[row_idx, place]).abs().max() <= MAX_DIFFERENCE


def test_a_draft_sees_one_token_more_than_the_module_before(model: DenseModel) -> None:
    """Row p of module k knows the tokens up to p + k, where the trunk is module 0, and none behind them."""
    rows = random_rows(((ROW,),))
    changed_idx = 30
    token_ids = list(rows[0][0].token_ids)
    token_ids[changed_idx] = (token_ids[changed_idx] + 1) % CONFIG.vocab_size
    changed = [[Document(token_ids, rows[0][0].weights)]]
    before, after = (
        [trunk_logits(model, stack(case, ROW)), *draft_logits(model, stack(case, ROW))] for case in (rows, changed)
    )
    assert len(before) == 4
    for module, (old, new) in enumerate(zip(before, after, strict=True)):
        change = (old - new)[0].abs().amax(dim=-1)
        first = changed_idx - module
        assert change[:first].max() <= MAX_DIFFERENCE
        assert change[first] > 0.1


def test_drafts_start_from_the_trunk(weights: dict[str, Tensor]) -> None:
    """Nothing of the trunk changes, and every module gets the same new tensors, its last head among them."""
    started = start_drafts(CONFIG, weights)
    drafts = trained_names(DRAFTS, CONFIG)
    assert started.keys() == weights.keys()
    assert all(torch.equal(started[name], weights[name]) for name in weights.keys() - drafts)
    first, *others = (spec.layer_id for spec in CONFIG.mtp_layers)
    for layer_id in others:
        same = [name for name in drafts if f".{layer_id}." in name and "eh_proj" not in name and "norm" not in name]
        assert same
        for name in same:
            assert torch.equal(started[name], started[name.replace(f".{layer_id}.", f".{first}.")])


def model_with_gradients(
    weights: dict[str, Tensor], names: set[str], config: ModelConfig = CONFIG
) -> tuple[DenseModel, dict[str, Tensor]]:
    """The model on copies of the weights, those of `names` with gradients."""
    copies = {name: tensor.clone().requires_grad_(name in names) for name, tensor in weights.items()}
    return DenseModel(config, copies, torch.float32), copies


def test_the_trunk_trains_everything_but_drafts_and_biases(weights: dict[str, Tensor]) -> None:
    """Every tensor of the trunk gets a gradient from the loss; router biases and draft modules get none."""
    model, copies = model_with_gradients(weights, set(weights))
    batch = stack(random_rows(), ROW)
    token_loss(model.logits(model.hidden(batch)), batch).backward()
    with_gradient = {name for name, tensor in copies.items() if tensor.grad is not None and tensor.grad.any()}
    assert with_gradient == trained_names(TRUNK, CONFIG)
    assert not with_gradient.intersection(router_biases(CONFIG))
    assert all(copies[name].grad is None for name in router_biases(CONFIG))


def test_the_drafts_train_their_own_tensors(weights: dict[str, Tensor]) -> None:
    """On a frozen trunk every tensor of every module gets a gradient."""
    names = trained_names(DRAFTS, CONFIG)
    model, copies = model_with_gradients(weights, names)
    batch = stack(random_rows(), ROW)
    with torch.no_grad():
        hidden = model.hidden(batch)
    draft_loss(model, batch, hidden, (1.0, 0.8, 0.6))[0].backward()
    assert all(gradient(copies[name]).any() for name in names)


def trunk_outputs(model: DenseModel, batch: Batch) -> list[Tensor]:
    return [model.logits(model.hidden(batch))]


def draft_outputs(model: DenseModel, batch: Batch) -> list[Tensor]:
    with torch.no_grad():
        hidden = model.hidden(batch)
    return model.draft(batch, hidden)


@pytest.mark.parametrize(
    ("outputs_of", "top_k", "parts"),
    [
        # With all experts chosen nothing jumps: an embedding, a sliding dense layer, a full one with experts and gate.
        (trunk_outputs, 16, ("embed_tokens.", "layers.1.", "layers.4.", "model.norm.")),
        # With four chosen only what lies behind the last choice is smooth: the experts of the last layer.
        (trunk_outputs, 4, ("layers.5.moe.gate_proj", "layers.5.moe.up_proj", "layers.5.moe.down_proj")),
        (draft_outputs, 16, ("layers.6.", "layers.8.")),
    ],
    ids=["trunk", "chosen experts", "drafts"],
)
def test_gradients_are_slopes(
    outputs_of: Callable[[DenseModel, Batch], list[Tensor]], top_k: int, parts: tuple[str, ...]
) -> None:
    """Moved along its gradient, every tensor changes the outputs by as much as the gradient says, within a percent."""
    config = parse_model_config(tiny_config(moe_top_k=top_k))
    weights = random_weights(tiny_config(moe_top_k=top_k), seed=SEED, dtype=torch.float32)
    phase = TRUNK if outputs_of is trunk_outputs else DRAFTS
    names = {name for name in trained_names(phase, config) if any(part in name for part in parts)}
    assert len(names) >= 3
    model, copies = model_with_gradients(weights, names, config)
    batch = stack(random_rows(), ROW)
    coefficients = torch.randn(batch.token_ids.numel(), config.vocab_size) * (batch.document >= 0).view(-1, 1)

    def total() -> Tensor:
        return torch.stack([(part.double() * coefficients).sum() for part in outputs_of(model, batch)]).sum()

    total().backward()
    for name in sorted(names):
        assert slope(total, copies[name]) == pytest.approx(gradient(copies[name]).norm().item(), rel=0.01), name


@torch.no_grad()
def slope(total: Callable[[], Tensor], tensor: Tensor) -> float:
    """Change of `total` for each step along the gradient, by small steps to both sides."""
    values, start, direction = [], tensor.clone(), gradient(tensor) / gradient(tensor).norm()
    for step in (1e-2, -1e-2):
        tensor.copy_(start + step * direction)
        values.append(total().item())
    tensor.copy_(start)
    return (values[0] - values[1]) / 2e-2


def gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad
