"""The metrics of an expert replica, from the samples it takes for the coordinator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from actors.expert.refusal import Refusal
from ops.telemetry.meter import Meter
from routing.load.expert_sample import ExpertSample


class ExpertMetrics:
    """Call `record` period by period. layer_ids: the model's number of each MoE layer."""

    def __init__(self, meter: Meter, layer_ids: Sequence[int]) -> None:
        self._meter = meter
        self._layer_ids = layer_ids

    def record(self, sample: ExpertSample | None, refusals: Mapping[Refusal, int]) -> None:
        """sample: since the last call, None if nothing was computed. refusals: frames by kind, since birth."""
        for kind in get_args(Refusal):
            self._meter.counter("step35_frames_refused_total", kind=kind).raise_to(refusals.get(kind, 0))
        if sample is None:
            return
        self._meter.counter("step35_expert_busy_seconds_total").add(float(sample.seconds.sum()))
        for name, values in (
            ("step35_expert_rows_total", sample.rows),
            ("step35_expert_pairs_total", sample.pairs.sum(axis=1)),
            ("step35_expert_touched_total", sample.distinct),
            ("step35_expert_batches_total", sample.num_calls),
        ):
            for layer_id, value in zip(self._layer_ids, values.tolist(), strict=True):
                self._meter.counter(name, layer=layer_id).add(value)
