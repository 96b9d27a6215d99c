"""RemoteDispatcher over every transport means what LocalDispatcher means."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from routing.dispatcher import DispatchHandle, ExpertRequest
from routing.errors import BundleIncomplete, ExchangeTimeout, ExpertRefused, TransportError
from routing.experts import ExpertMap, expert_map_from_rows, linear_expert_map
from routing.local import LocalDispatcher
from routing.remote import RemoteDispatcher
from routing.transport.contract import ExpertPort, FrameLimits, Work
from tests.contract.bundles import DEADLINE_S, KINDS, SOON_S, Answer, Bundles, require

NUM_EXPERTS, TOP_K, HIDDEN, INNER, NUM_LAYERS = 6, 3, 16, 8, 2
LIMITS = FrameLimits(hidden_size=HIDDEN, top_k=TOP_K, dtype=torch.float32, max_rows=24)

# Two ranks of five slots; -1 is an empty slot. Each map places and copies the six experts differently.
MAPS = {
    "linear": linear_expert_map(NUM_LAYERS, NUM_EXPERTS, 2, map_epoch=1),
    "redundant": expert_map_from_rows([[0, 1, 2, 3, 4, 5, 0, 1, 2, -1]] * NUM_LAYERS, NUM_EXPERTS, 2, map_epoch=2),
    "everything twice": expert_map_from_rows(
        [[0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0]] * NUM_LAYERS, NUM_EXPERTS, 2, map_epoch=3
    ),
    "differs by layer": expert_map_from_rows(
        [[5, 3, 1, -1, 0, 4, 2, 1], [0, 1, 2, 3, 3, 4, 5, -1]], NUM_EXPERTS, 2, map_epoch=4
    ),
}


class MlpRank:
    """Random expert MLPs; one row at a time, so that a pair's bits do not depend on the other rows."""

    def __init__(self, ep_rank: int) -> None:
        self._ep_rank = ep_rank
        weights = torch.Generator().manual_seed(11)
        self._up = torch.randn(NUM_LAYERS, NUM_EXPERTS, INNER, HIDDEN, generator=weights) / math.sqrt(HIDDEN)
        self._down = torch.randn(NUM_LAYERS, NUM_EXPERTS, HIDDEN, INNER, generator=weights) / math.sqrt(INNER)

    def compute(
        self,
        *,
        map_epoch: int,
        moe_layer_idx: int,
        hidden: Tensor,
        pair_row: Tensor,
        pair_slot: Tensor,
        pair_weight: Tensor,
        per_expert: bool,
    ) -> Tensor:
        expert_map = next(known for known in MAPS.values() if known.map_epoch == map_epoch)
        logical = expert_map.local_experts(self._ep_rank)[moe_layer_idx]
        vectors = hidden.new_empty(len(pair_row), hidden.shape[1])
        for pair, (row, slot) in enumerate(zip(pair_row.tolist(), pair_slot.tolist(), strict=True)):
            expert = int(logical[slot])
            inner = torch.mv(self._up[moe_layer_idx, expert], hidden[row]).relu()
            vectors[pair] = torch.mv(self._down[moe_layer_idx, expert], inner)
        if per_expert:
            return vectors
        weighted = vectors * pair_weight.unsqueeze(1)
        return torch.zeros_like(hidden).index_add_(0, pair_row.long(), weighted)


RANKS = [MlpRank(ep_rank) for ep_rank in range(2)]


@pytest.fixture(params=KINDS)
def bundles(request: pytest.FixtureRequest) -> Iterator[Bundles]:
    """One connected bundle of two expert ranks."""
    require(request.param)
    opened = Bundles(request.param, limits=LIMITS)
    opened.connect()
    yield opened
    opened.close()


def answer_with_mlp(bundles: Bundles) -> Answer:
    """Each rank computes its own experts for whatever epoch and layer the header names."""

    def answer(port: ExpertPort, work: Work) -> None:
        outputs = RANKS[bundles.experts.index(port)].compute(
            map_epoch=work.header.map_epoch,
            moe_layer_idx=work.header.moe_layer_idx,
            hidden=work.hidden,
            pair_row=work.pair_row,
            pair_slot=work.pair_slot,
            pair_weight=work.pair_weight,
            per_expert=work.header.per_expert,
        )
        port.reply(work, outputs)

    return answer


def make_request(num_tokens: int, layer: int = 0, microbatch_idx: int = 0) -> ExpertRequest:
    scores = torch.rand(num_tokens, NUM_EXPERTS)
    weights, ids = scores.topk(TOP_K, dim=1)
    return ExpertRequest(
        layer, microbatch_idx, torch.randn(num_tokens, HIDDEN), ids, weights / weights.sum(1, keepdim=True)
    )


def make_remote(bundles: Bundles, expert_map: ExpertMap, *, deterministic: bool) -> RemoteDispatcher:
    port = bundles.attention[0]
    remote = RemoteDispatcher(port, deterministic=deterministic, timeout_s=DEADLINE_S, device="cpu")
    remote.adopt(remote.tables_of(expert_map))
    return remote


def local_result(expert_map: ExpertMap, request: ExpertRequest, *, deterministic: bool) -> Tensor:
    local = LocalDispatcher(expert_map, RANKS, deterministic=deterministic, device="cpu")
    return local.combine(local.dispatch(request))


def dense_result(request: ExpertRequest) -> Tensor:
    """The definition, without any routing: every token through its experts, weighted and added in fp64."""
    layer, up, down = request.moe_layer_idx, RANKS[0]._up.double(), RANKS[0]._down.double()
    inner = torch.einsum("eih,th->tei", up[layer], request.hidden.double()).relu()
    every = torch.einsum("ehi,tei->teh", down[layer], inner)
    gate = torch.zeros(every.shape[:2], dtype=torch.float64)
    gate.scatter_(1, request.topk_ids, request.topk_weights.double())
    return (every * gate.unsqueeze(2)).sum(1)


@pytest.mark.parametrize("name", MAPS)
def test_deterministic_equals_local_bitwise(bundles: Bundles, name: str) -> None:
    """Same bits as in one process, and the same bits whatever the placement."""
    remote = make_remote(bundles, MAPS[name], deterministic=True)
    with bundles.serving(answer_with_mlp(bundles)):
        for num_tokens in (1, 0, 24, 7):
            for layer in range(NUM_LAYERS):
                request = make_request(num_tokens, layer)
                result = remote.combine(remote.dispatch(request))
                assert torch.equal(result, local_result(MAPS[name], request, deterministic=True))
                assert torch.equal(result, local_result(MAPS["linear"], request, deterministic=True))
                torch.testing.assert_close(result.double(), dense_result(request), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MAPS)
def test_partial_sums_equal_within_fp32(bundles: Bundles, name: str) -> None:
    """Without deterministic mode only the order of eight additions differs: a few units in the last place of ~1."""
    remote = make_remote(bundles, MAPS[name], deterministic=False)
    with bundles.serving(answer_with_mlp(bundles)):
        for num_tokens in (1, 24):
            request = make_request(num_tokens, 1)
            result = remote.combine(remote.dispatch(request))
            assert result.dtype == torch.float32
            torch.testing.assert_close(result.double(), dense_result(request), rtol=1e-5, atol=1e-5)


def test_adopting_a_map_between_dispatches(bundles: Bundles) -> None:
    """A handle keeps the map it was planned with; the next dispatch uses the new one. Two micro-batches in flight."""
    remote = make_remote(bundles, MAPS["linear"], deterministic=True)
    old, new = make_request(5, 0, 0), make_request(6, 0, 1)
    with bundles.serving(answer_with_mlp(bundles)):
        first = remote.dispatch(old)
        remote.adopt(remote.tables_of(MAPS["differs by layer"]))
        second = remote.dispatch(new)
        assert torch.equal(remote.combine(second), local_result(MAPS["linear"], new, deterministic=True))
        assert torch.equal(remote.combine(first), local_result(MAPS["linear"], old, deterministic=True))


def test_abandoned_handle(bundles: Bundles) -> None:
    """Abandoning spends the handle: more dispatches than max_in_flight can follow, and their answers are right."""
    remote = make_remote(bundles, MAPS["redundant"], deterministic=True)
    with bundles.serving(answer_with_mlp(bundles)):
        for _ in range(5):
            remote.abandon(_dispatch(remote, bundles, make_request(3)))
        request = make_request(4)
        result = remote.combine(_dispatch(remote, bundles, request))
    assert torch.equal(result, local_result(MAPS["redundant"], request, deterministic=True))


def test_failed_combine_spends_the_handle(bundles: Bundles) -> None:
    """After refusals, more than max_in_flight of them, the dispatcher still works; only what was answered was waited
    for."""
    remote = make_remote(bundles, MAPS["linear"], deterministic=True)
    with bundles.serving(lambda port, work: port.refuse(work, "no such epoch")):
        for _ in range(4):
            with pytest.raises(ExpertRefused, match="no such epoch"):
                remote.combine(remote.dispatch(make_request(4)))
    assert remote.waited_s == 0.0
    with bundles.serving(answer_with_mlp(bundles)):
        request = make_request(4)
        result = remote.combine(remote.dispatch(request))
    assert remote.waited_s > 0.0
    assert torch.equal(result, local_result(MAPS["linear"], request, deterministic=True))


def test_timeout_then_recovery(bundles: Bundles) -> None:
    """A combine that runs out of time raises; sending the same request again gives the exact result."""
    port = bundles.attention[0]
    remote = RemoteDispatcher(port, deterministic=True, timeout_s=SOON_S, device="cpu")
    remote.adopt(remote.tables_of(MAPS["everything twice"]))
    request = make_request(4)
    handle = remote.dispatch(request)
    with pytest.raises(ExchangeTimeout):
        remote.combine(handle)
    bundles.wait(port)
    remote._timeout_s = DEADLINE_S  # the short one was for the failure, a busy machine needs longer for the success
    with bundles.serving(answer_with_mlp(bundles)):
        result = remote.combine(remote.dispatch(request))
    assert torch.equal(result, local_result(MAPS["everything twice"], request, deterministic=True))


def test_dispatch_to_a_missing_rank(bundles: Bundles) -> None:
    """A dispatch that cannot be sent raises at once, again and again, and leaves nothing open."""
    remote = make_remote(bundles, MAPS["linear"], deterministic=True)
    bundles.attention[0].reconcile({})
    for _ in range(4):
        with pytest.raises(BundleIncomplete):
            remote.dispatch(make_request(3))
    assert all(expert.receive(0.0) == [] for expert in bundles.experts)


def _dispatch(remote: RemoteDispatcher, bundles: Bundles, request: ExpertRequest) -> DispatchHandle:
    """As a step does: what found no room for another answer is sent again when the bundle is whole."""
    try:
        return remote.dispatch(request)
    except TransportError:
        bundles.wait(bundles.attention[0])
        return remote.dispatch(request)
