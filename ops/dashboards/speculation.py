"""Speculation: how often drafts are taken, how many are made, and whether they pay."""

from __future__ import annotations

from ops.dashboards.panels import (
    Board,
    Query,
    Row,
    Unit,
    as_share,
    green_from,
    lines,
    percentiles,
    sized,
    stacked,
    stat,
)
from ops.dashboards.promql import mean, over, rate, ratio, select, share_of_all, total_rate

DRAFTED = "step35_draft_tokens_total"
ACCEPTED = "step35_accepted_tokens_total"
VERIFIED = "step35_verifications_total"

ACCEPTANCE = ratio(rate(ACCEPTED, by=("position",)), rate(DRAFTED, by=("position",)))
ACCEPTANCE_OF_FIRST = ratio(rate(ACCEPTED, 'position="0"'), rate(DRAFTED, 'position="0"'))
# The target's own token counts: a verification without drafts has length 1.
MEAN_LENGTH = ratio(f"{total_rate(ACCEPTED)} + {total_rate(VERIFIED)}", rate(VERIFIED))
MEAN_DRAFTS = ratio(total_rate(DRAFTED), rate(VERIFIED))
WASTED = ratio(f"{total_rate(DRAFTED)} - {total_rate(ACCEPTED)}", rate(DRAFTED))

NOW = Row(
    "Now",
    (
        sized(
            stat(
                "Mean acceptance length",
                "Tokens of a verification, the target's own included. 1: drafts bring nothing.",
                Unit.TOKENS,
                MEAN_LENGTH,
                *green_from(1.2, 1.6),
            ),
            6,
        ),
        sized(
            stat(
                "First draft accepted",
                "Share of drafts at position 0 that the target takes.",
                Unit.SHARE,
                ACCEPTANCE_OF_FIRST,
                *green_from(0.4, 0.6),
            ),
            6,
        ),
        sized(stat("Drafts for a sequence", "Mean drafts in a verification.", Unit.TOKENS, MEAN_DRAFTS), 6),
        sized(stat("Drafts in vain", "Share of drafts that were verified and not taken.", Unit.SHARE, WASTED), 6),
    ),
)

ACCEPTING = Row(
    "Acceptance",
    (
        as_share(
            sized(
                lines(
                    "By position",
                    "Drafts accepted over drafts verified, for each position behind the token that the target chose "
                    "itself. A later position counts as refused when an earlier one was, so the lines lie in order.",
                    Unit.SHARE,
                    Query(ACCEPTANCE, "position {{position}}"),
                ),
                12,
            )
        ),
        sized(
            lines(
                "Acceptance length over time",
                "Tokens of a verification, the target's own included: all together, and of each attention actor over "
                "its last report.",
                Unit.TOKENS,
                Query(MEAN_LENGTH, "all"),
                Query(over("max", select("step35_mean_acceptance_length_tokens"), "member"), "{{member}}"),
            ),
            12,
        ),
        as_share(
            sized(
                lines(
                    "First draft, by attention actor",
                    "Share of drafts at position 0 that are taken. One actor below the others has other traffic, or a "
                    "fault.",
                    Unit.SHARE,
                    Query(
                        ratio(
                            rate(ACCEPTED, 'position="0"', by=("member",)),
                            rate(DRAFTED, 'position="0"', by=("member",)),
                        ),
                        "{{member}}",
                    ),
                ),
                12,
            )
        ),
        sized(
            lines(
                "Drafted and accepted",
                "Tokens in a second: drafts verified, drafts taken, and sequences verified, each of which brings one "
                "token of the target's own.",
                Unit.TOKENS_PER_SECOND,
                Query(rate(DRAFTED), "drafted"),
                Query(rate(ACCEPTED), "accepted"),
                Query(rate(VERIFIED), "verified sequences"),
            ),
            12,
        ),
    ),
)

LENGTH = Row(
    "How many drafts pay",
    (
        sized(
            stacked(
                "Draft lengths",
                "Share of sequences that were given so many drafts.",
                Unit.SHARE,
                Query(
                    share_of_all(
                        rate("step35_draft_length_choices_total", by=("length",)),
                        rate("step35_draft_length_choices_total"),
                    ),
                    "{{length}}",
                ),
            ),
            12,
        ),
        sized(
            stacked(
                "Why",
                "Share of choices by reason. probe: tried to learn; kept: no other length is surely faster.",
                Unit.SHARE,
                Query(
                    share_of_all(
                        rate("step35_draft_length_reasons_total", by=("reason",)),
                        rate("step35_draft_length_reasons_total"),
                    ),
                    "{{reason}}",
                ),
            ),
            12,
        ),
        lines(
            "Sequences in a step",
            "Verified sequences over steps. In large batches drafts cost more than they bring, so lengths should fall.",
            Unit.NUMBER,
            Query(ratio(rate(VERIFIED), rate("step35_steps_total")), "sequences"),
        ),
        lines(
            "Tokens in a step",
            "Mean of tokens computed in a step, drafts and prefill included.",
            Unit.TOKENS,
            Query(mean("step35_step_rows"), "tokens"),
        ),
        percentiles("Step", "Duration of an engine step.", "step35_step_seconds"),
    ),
)

SPECULATION = Board(
    name="speculation",
    title="Speculation",
    description="How often drafts of the MTP modules are taken, how many are made, and whether they pay.",
    rows=(NOW, ACCEPTING, LENGTH),
)
