"""The registry: every metric is named as Prometheus wants it, bounded at the full model's shape, and owned once."""

from __future__ import annotations

import re
from typing import get_args, get_type_hints

import pytest

from actors.messages import FinishReason
from actors.speculative.draft_length import Choice
from cluster.experts_status import Outcome, Phase
from ops.telemetry.exposition import ALIAS_LABELS, PROCESS_LABELS
from ops.telemetry.metrics import GROUPS, METRICS
from ops.telemetry.spec import MAX_LABEL_SETS, PREFIX, Kind, Label, MetricSpec, Owner

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
FULL_MODEL = {"layer": 42, "expert": 288, "position": 3}
FULL_EP_SIZE = 16
SPECS = [pytest.param(spec, id=spec.name) for spec in METRICS.values()]
ALIASES = [alias for spec in METRICS.values() for alias in spec.aliases]


@pytest.mark.parametrize("spec", SPECS)
def test_name_says_prefix_unit_and_kind(spec: MetricSpec) -> None:
    """step35_<what>_<unit>_total: the unit is in the name, and exactly counters end in _total."""
    assert spec.name.startswith(PREFIX)
    assert NAME.fullmatch(spec.name)
    assert spec.name.endswith("_total") == (spec.kind is Kind.COUNTER)
    stem = spec.name.removesuffix("_total")
    if spec.unit:
        assert stem.endswith(f"_{spec.unit}")
    assert not stem.endswith(("_count", "_sum", "_bucket", "_ms", "_percent", "_info", "_created"))
    assert spec.unit or not stem.endswith(("_seconds", "_bytes", "_ratio", "_tokens"))


@pytest.mark.parametrize("spec", SPECS)
def test_help_is_a_sentence(spec: MetricSpec) -> None:
    """Shown by every dashboard: one line that begins like a sentence and ends like one."""
    assert spec.help.endswith(".")
    assert not spec.help[0].islower()
    assert "\n" not in spec.help
    assert "\\" not in spec.help


@pytest.mark.parametrize("spec", SPECS)
def test_labels_are_bounded_and_do_not_collide(spec: MetricSpec) -> None:
    """No label is open, none hides a process label, and the bound fits the full model and Ray's limit for one node."""
    assert len(set(spec.label_names)) == len(spec.labels)
    assert not set(spec.label_names) & {*PROCESS_LABELS, *ALIAS_LABELS, "le"}
    for label in spec.labels:
        assert NAME.fullmatch(label.name)
        assert bool(label.values) != bool(label.at_most), "either values or a number of them"
        assert len(set(label.values)) == len(label.values)
        assert label.bound >= FULL_MODEL.get(label.name, 1)
    if spec.kind is not Kind.MATRIX:
        assert spec.max_label_sets <= MAX_LABEL_SETS


def test_series_of_the_full_model_are_few() -> None:
    """42 layers, 16 ranks, 3 drafts: what one Prometheus gets of the whole cluster without the matrix, worked out."""
    of = {owner: sum(_num_series(spec) for spec in METRICS.values() if spec.owner is owner) for owner in Owner}
    per_rank_and_layer = 4 * FULL_MODEL["layer"]
    assert of[Owner.EXPERT] * FULL_EP_SIZE == FULL_EP_SIZE * (per_rank_and_layer + 1 + 3)
    assert of[Owner.COORDINATOR] < 450
    assert of[Owner.ATTENTION] < 250
    assert of[Owner.GATEWAY] < 350
    matrix = [spec for spec in METRICS.values() if spec.kind is Kind.MATRIX]
    assert [_num_label_sets(spec) for spec in matrix] == [42 * 288] * 3


@pytest.mark.parametrize("spec", [param for param in SPECS if METRICS[str(param.id)].kind is Kind.HISTOGRAM])
def test_buckets_ascend(spec: MetricSpec) -> None:
    """Fixed, ascending, finite, at most 20; no other kind has any."""
    assert list(spec.buckets) == sorted(set(spec.buckets))
    assert 5 <= len(spec.buckets) <= 20
    assert 0 < spec.buckets[0] < spec.buckets[-1] < float("inf")
    assert spec.unit


def test_only_histograms_have_buckets() -> None:
    """Buckets elsewhere would be a mistake that nobody sees."""
    assert {spec.kind for spec in METRICS.values() if spec.buckets} == {Kind.HISTOGRAM}


def test_no_name_is_declared_twice() -> None:
    """Not in two groups, not by two aliases, and no family's series look like another family."""
    names = [spec.name for group in GROUPS.values() for spec in group] + [alias.name for alias in ALIASES]
    assert len(names) == len(set(names))
    parts = {f"{spec.name}{part}" for spec in METRICS.values() for part in ("_bucket", "_sum", "_count")}
    assert not parts & set(names)


def test_aliases_are_the_names_that_dashboards_expect() -> None:
    """Names that vLLM exports and its published dashboards draw; each follows the kind of what it stands for."""
    expected = {
        "vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc",
        "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "vllm:num_preemptions_total",
        "vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:request_success_total",
        "vllm:admission_rejections_total", "vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds",
        "vllm:request_time_per_output_token_seconds", "vllm:e2e_request_latency_seconds",
        "vllm:request_queue_time_seconds", "vllm:request_prompt_tokens", "vllm:request_generation_tokens",
        "vllm:spec_decode_num_drafts_total", "vllm:spec_decode_num_draft_tokens_total",
        "vllm:spec_decode_num_accepted_tokens_total", "vllm:spec_decode_num_accepted_tokens_per_pos_total",
    }  # fmt: skip
    assert {alias.name for alias in ALIASES} == expected
    for spec in METRICS.values():
        for alias in spec.aliases:
            assert alias.name.endswith("_total") == (spec.kind is Kind.COUNTER)
            named = {*dict(alias.rename), *dict(alias.where), *alias.drop}
            assert named <= set(spec.label_names)
            assert spec.kind is not Kind.HISTOGRAM or not alias.drop


def test_values_are_those_of_the_code_that_records_them() -> None:
    """Telemetry imports nothing of ours, so what it repeats is compared here."""
    assert _values("step35_requests_finished_total", "reason") == {str(reason) for reason in FinishReason}
    assert _values("step35_balancer_phase", "phase") == {str(phase) for phase in Phase}
    assert _values("step35_rebalances_total", "outcome") == {str(outcome) for outcome in Outcome}
    reasons = get_args(get_type_hints(Choice)["reason"])
    assert _values("step35_draft_length_reasons_total", "reason") == set(reasons)


def test_every_group_of_the_product_is_there() -> None:
    """An empty group is one that was forgotten; every role owns something."""
    assert all(GROUPS.values())
    assert {spec.owner for spec in METRICS.values()} == set(Owner)


def _values(name: str, label_name: str) -> set[str]:
    return set(next(label for label in METRICS[name].labels if label.name == label_name).values)


def _num_series(spec: MetricSpec) -> int:
    if spec.kind is Kind.MATRIX:
        return 0
    return _num_label_sets(spec) * (len(spec.buckets) + 3 if spec.kind is Kind.HISTOGRAM else 1)


def _num_label_sets(spec: MetricSpec) -> int:
    product = 1
    for label in spec.labels:
        product *= _full_size(label)
    return product


def _full_size(label: Label) -> int:
    return FULL_MODEL.get(label.name, label.bound)
