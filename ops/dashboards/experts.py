"""The expert tier: how loaded ranks, layers and experts are, how sure the gates are, what rebalancing did and cost.

Balancedness is mean over ranks / maximum over ranks of pairs in a layer; means are taken over layers last.
"""

from __future__ import annotations

from dataclasses import replace

from ops.dashboards.panels import (
    RED_FROM_1,
    Board,
    Look,
    Panel,
    Query,
    Row,
    Unit,
    Variable,
    as_share,
    green_from,
    lines,
    percentiles,
    red_from,
    sized,
    stacked,
    stat,
)
from ops.dashboards.promql import increase, over, over_mean, padded, quantile, rate, ratio, select

PAIRS = rate("step35_expert_pairs_total", by=("layer", "ep_rank"))
PAIRS_OF_RANK = rate("step35_expert_pairs_total", by=("ep_rank",))
BUSY_OF_RANK = rate("step35_expert_busy_seconds_total", by=("ep_rank",))
MAX_OVER_MEAN = ratio(over("max", PAIRS, "layer"), over("avg", PAIRS, "layer"))
MEAN_OVER_MAX = ratio(over("avg", PAIRS, "layer"), over("max", PAIRS, "layer"))
PAIRS_OVER_LAYER_MEAN = over_mean(PAIRS, "layer")
PAIRS_OVER_MEAN = f"({PAIRS_OF_RANK}) / on () group_left () (avg({PAIRS_OF_RANK}) > 0)"
PREDICTED_OVER_BEST = ratio(
    over("max", select("step35_expert_time_per_step_seconds", 'estimate="predicted"')),
    over("max", select("step35_expert_time_per_step_seconds", 'estimate="best"')),
)
BALANCEDNESS = over("max", select("step35_balancedness_ratio"), "layer")
MEASURES = over("avg", over("max", select("step35_gate_confidence_ratio"), "layer", "measure"), "measure")
MARGIN = over("max", select("step35_gate_confidence_ratio", 'measure="margin"'), "layer")

# Of the matrix, which is scraped only where somebody has asked for it.
LOAD = over("max", select("step35_expert_load_tokens"), "layer", "expert")
LOAD_OF_LAYER = over("max", select("step35_expert_load_tokens", 'layer="$layer"'), "layer", "expert")
MATRIX_NOTE = "Needs the path /metrics/experts of the coordinator to be scraped, which nobody does unasked."

LAYER = Variable("layer", "Layer", 'label_values(step35_balancedness_ratio{job="$job"}, layer)')


def _now(panel: Panel, look: Look) -> Panel:
    return replace(panel, look=look)


NOW = Row(
    "Now",
    (
        stat(
            "Balancedness",
            "Mean over layers; in each: mean over ranks / maximum over ranks of pairs. 1 is perfect.",
            Unit.NUMBER,
            over("avg", BALANCEDNESS),
            *green_from(0.67, 0.85),
        ),
        stat(
            "Worst layer",
            "Balancedness of the layer whose ranks are loaded most unevenly.",
            Unit.NUMBER,
            over("min", BALANCEDNESS),
            *green_from(0.5, 0.7),
        ),
        stat(
            "Predicted over best time",
            "Expert time of a step with the present map over its lower bound over all maps: what a better map could "
            "save at the very most.",
            Unit.TIMES,
            PREDICTED_OVER_BEST,
            *red_from(1.2, 1.5),
        ),
        stat(
            "Layers that drift",
            "Layers in which the gate's confidence left its usual range.",
            Unit.PLAIN,
            over("sum", select("step35_layer_drifting")),
            *RED_FROM_1,
        ),
        stat("Map epoch", "Grows by 1 with each map.", Unit.PLAIN, over("max", select("step35_map_epoch"))),
        stat(
            "Free slots",
            "Expert slots that hold nothing, over all layers and ranks. Experts move through them.",
            Unit.PLAIN,
            over("max", select("step35_expert_slots_free")),
        ),
    ),
)

BALANCE = Row(
    "Balance of layers and ranks",
    (
        as_share(
            sized(
                lines(
                    "Balancedness over time",
                    "Of the load window, as the balancer sees it, and of the last minutes alone, from the ranks' "
                    "counters. With few tokens in a step it is low and no map can mend it.",
                    Unit.NUMBER,
                    Query(over("avg", BALANCEDNESS), "mean over layers"),
                    Query(over("min", BALANCEDNESS), "worst layer"),
                    Query(over("avg", MEAN_OVER_MAX), "mean over layers, from rates"),
                ),
                12,
            )
        ),
        sized(
            lines(
                "Load of ranks",
                "Pairs of a rank over the mean of all ranks. The one on top is what every step waits for.",
                Unit.TIMES,
                Query(PAIRS_OVER_MEAN, "rank {{ep_rank}}"),
            ),
            12,
        ),
        Panel(
            title="Layers by ranks, now",
            description="Pairs of each rank over the mean of its layer. Red does more than its share, blue less.",
            unit=Unit.NUMBER,
            queries=(Query(padded(padded(PAIRS_OVER_LAYER_MEAN, "layer", 2), "ep_rank", 2), ""),),
            look=Look.MATRIX,
            width=12,
            height=14,
            rows="layer",
            columns="ep_rank",
        ),
        Panel(
            title="Imbalance of layers",
            description="Maximum over mean of the ranks' pairs, for each layer. Red layers have a rank that others "
            "wait for.",
            unit=Unit.TIMES,
            queries=(Query(padded(MAX_OVER_MEAN, "layer", 2), "{{layer}}"),),
            look=Look.HEATMAP,
            width=12,
            height=14,
            low=0.0,
            high=2.0,
        ),
        _now(
            lines(
                "Five worst layers",
                "Maximum over mean of the ranks' pairs, now.",
                Unit.TIMES,
                Query(f"topk(5, {MAX_OVER_MEAN})", "layer {{layer}}"),
            ),
            Look.BARS,
        ),
        as_share(
            lines(
                "Busy ranks",
                "Share of time that a rank computes; the rest it waits. A rank at 1 bounds the whole cluster.",
                Unit.SHARE,
                Query(BUSY_OF_RANK, "rank {{ep_rank}}"),
            )
        ),
        lines(
            "Seconds for a pair",
            "Busy seconds of a rank over its pairs. One rank above the others has slower hardware or a noisy "
            "neighbour: no map mends that.",
            Unit.SECONDS,
            Query(ratio(BUSY_OF_RANK, PAIRS_OF_RANK), "rank {{ep_rank}}"),
        ),
        sized(
            lines(
                "Pairs in a batch",
                "Pairs over products: how many tokens share the reading of weights. More is cheaper.",
                Unit.NUMBER,
                Query(ratio(PAIRS_OF_RANK, rate("step35_expert_batches_total", by=("ep_rank",))), "rank {{ep_rank}}"),
            ),
            12,
        ),
        sized(
            lines(
                "Experts touched in a batch",
                "Distinct experts over products: how many experts' weights a rank reads for one batch.",
                Unit.NUMBER,
                Query(
                    ratio(
                        rate("step35_expert_touched_total", by=("ep_rank",)),
                        rate("step35_expert_batches_total", by=("ep_rank",)),
                    ),
                    "rank {{ep_rank}}",
                ),
            ),
            12,
        ),
    ),
)

HOT = Row(
    "Hot experts (opt-in)",
    (
        Panel(
            title="Hottest experts, now",
            description=f"Pairs of an expert over the mean of its layer. Their copies: step35 experts. {MATRIX_NOTE}",
            unit=Unit.NUMBER,
            queries=(Query(f"topk(20, {over_mean(LOAD, 'layer')})", ""),),
            look=Look.TABLE,
            height=12,
        ),
        Panel(
            title="Experts of layer $layer",
            description=f"Pairs of each expert over the mean of the layer, over time. {MATRIX_NOTE}",
            unit=Unit.NUMBER,
            queries=(Query(padded(over_mean(LOAD_OF_LAYER, "layer"), "expert", 3), "{{expert}}"),),
            look=Look.HEATMAP,
            width=16,
            height=12,
            low=0.0,
            high=2.0,
        ),
    ),
    is_collapsed=True,
)

CONFIDENCE = Row(
    "How sure the gates are",
    (
        lines(
            "Confidence, mean over layers",
            "Mass on the chosen experts, entropy of the scores (1: no preference), margin by which the last chosen "
            "expert leads the first that was not.",
            Unit.NUMBER,
            Query(MEASURES, "{{measure}}"),
        ),
        lines(
            "Confidence of layer $layer",
            "The same measures in one layer.",
            Unit.NUMBER,
            Query(over("max", select("step35_gate_confidence_ratio", 'layer="$layer"'), "measure"), "{{measure}}"),
        ),
        lines(
            "Drift",
            "Layers whose confidence left its usual range, and whether the load left what the present map was made "
            "for (1).",
            Unit.PLAIN,
            Query(over("sum", select("step35_layer_drifting")), "layers"),
            Query(over("max", select("step35_load_drifting")), "load"),
        ),
        _now(
            sized(
                lines(
                    "Layers least sure",
                    "The ten layers of smallest margin, now.",
                    Unit.NUMBER,
                    Query(f"bottomk(10, {MARGIN})", "layer {{layer}}"),
                ),
                12,
            ),
            Look.BARS,
        ),
        sized(
            lines(
                "Activation norms",
                "Largest and smallest activation norm of an expert over the median of its layer, extremes over layers. "
                "A jump means damaged weights or unknown input.",
                Unit.TIMES,
                Query(over("max", select("step35_activation_norm_ratio", 'extreme="max"')), "largest"),
                Query(over("min", select("step35_activation_norm_ratio", 'extreme="min"')), "smallest"),
            ),
            12,
        ),
    ),
)

REBALANCING = Row(
    "Rebalancing and what it costs",
    (
        sized(
            _now(
                lines(
                    "Phase",
                    "What the balancer does: idle, preparing (ranks load weights), adopting (two maps are served).",
                    Unit.PLAIN,
                    Query(over("max", select("step35_balancer_phase"), "phase"), "{{phase}}"),
                ),
                Look.PHASES,
            ),
            12,
        ),
        sized(
            stacked(
                "Rebalances in an hour",
                "Those that ended, by what started them and how they ended.",
                Unit.NUMBER,
                Query(increase("step35_rebalances_total", "1h", by=("trigger", "outcome")), "{{trigger}}, {{outcome}}"),
            ),
            12,
        ),
        lines(
            "Expert time of a step",
            "As predicted for the present map, and the lower bound over all maps. A rebalance pays where the first "
            "comes down to the second.",
            Unit.SECONDS,
            Query(over("max", select("step35_expert_time_per_step_seconds"), "estimate"), "{{estimate}}"),
        ),
        lines(
            "Steps while rebalancing",
            "Duration of engine steps. What a rebalance costs users is how far these rise at the purple marks.",
            Unit.SECONDS,
            Query(quantile(0.5, "step35_step_seconds"), "p50"),
            Query(quantile(0.99, "step35_step_seconds"), "p99"),
        ),
        lines(
            "Gain that was expected",
            "Share of the expert tier's time that the last decision expected to save.",
            Unit.SHARE,
            Query(over("max", select("step35_rebalance_predicted_gain_ratio")), "gain"),
        ),
        percentiles("Duration", "From the decision to the last retired map.", "step35_rebalance_seconds"),
        lines(
            "Experts copied",
            "Experts copied to a slot, in a second.",
            Unit.PER_SECOND,
            Query(rate("step35_balancer_moves_total"), "moves"),
        ),
        lines(
            "Stalled, paused, pins",
            "1 while a phase takes longer than its watchdog allows; 1 while an operator has paused; experts that an "
            "operator has pinned.",
            Unit.PLAIN,
            Query(over("max", select("step35_balancer_stalled")), "stalled"),
            Query(over("max", select("step35_balancer_paused")), "paused"),
            Query(over("max", select("step35_expert_pins")), "pins"),
        ),
    ),
)

EXPERTS = Board(
    name="experts",
    title="Experts",
    description="Load of ranks, layers and experts, confidence of the gates, and what rebalancing did and cost.",
    rows=(NOW, BALANCE, HOT, CONFIDENCE, REBALANCING),
    variables=(LAYER,),
)
