"""The expert tier on a terminal: everything an operator asks for is there, and it fits."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC
from typing import Any

import pytest
from rich.color import Color
from rich.console import Console

from cluster.experts_layers import MAX_LAYERS, NUM_WORST, load_style, relative_loads, worst_layers
from cluster.experts_status import ExpertStatus, ExpertTierStatus, Outcome, Phase, Proposal
from cluster.experts_table import MAX_EXPERTS, MAX_RECORDS, expert_line, experts_view, proposal_text
from tests.fakes.experts import balancer_status, record, tier_status


def shown(status: ExpertTierStatus, width: int = 80, *, encoding: str = "utf-8", **options: Any) -> str:
    """What a terminal of this width shows, without colour."""
    console = Console(width=width, color_system=None, highlight=False)
    console_options = replace(console.options, encoding=encoding)
    view = experts_view(status, zone=UTC, **options)
    lines = console.render_lines(view, console_options, pad=False)
    return "\n".join("".join(segment.text for segment in line) for line in lines)


def rows(text: str) -> dict[str, list[str]]:
    """The layer table: first cell -> the other cells."""
    lines = iter(text.splitlines())
    next(line for line in lines if line.startswith("layer "))
    table: dict[str, list[str]] = {}
    for line in lines:
        name, *cells = line.split()
        table[name] = cells
        if name == "all":
            break
    return table


@pytest.mark.parametrize(("num_layers", "ep_size"), [(6, 8), (42, 16), (42, 8), (6, 2), (42, 64), (1, 1)])
@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_it_fits(num_layers: int, ep_size: int, width: int, encoding: str) -> None:
    """No line is wider than the terminal, no cell of the layer table is cut, and it stays short."""
    text = shown(tier_status(num_layers, ep_size), width, encoding=encoding)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    table = rows(text)
    assert len(table) == min(num_layers, NUM_WORST) + 1
    assert {len(cells) for cells in table.values()} == {len(table["all"])}
    assert len(text.splitlines()) <= 60
    assert encoding == "utf-8" or text.isascii()


def test_a_line_of_the_nano_model_at_80_columns() -> None:
    """Worked by hand: loads 2, 1, 1, ... over a mean of 1.125 are 178 % and seven times 89 %."""
    layer = replace(
        tier_status().layers[0],
        layer_id=5,
        rank_pairs=(2.0, *[1.0] * 7),
        rank_experts=(9.0, *[5.0] * 7),
        balancedness=0.5625,
        num_copies=3,
        mass=0.256,
        entropy=0.789,
        margin=0.0123,
        norm_low=None,
        norm_high=None,
    )
    table = rows(shown(tier_status(layers=(layer,), balancedness=0.5625)))
    # layer, balancedness, eight ranks, experts touched (5.5 on average), copies, mass, entropy, margin, norms
    assert table["5"] == ["0.56", "178", *["89"] * 7, "6/9", "3", "26%", "0.79", "0.012", "-"]
    assert table["all"] == table["5"]


def test_a_wide_terminal_has_the_experts_of_each_rank() -> None:
    """Load and experts touched, for each rank."""
    status = tier_status(6, 8)
    layer = status.layers[2]
    cells = rows(shown(status, 120))[str(layer.layer_id)]
    expected = [
        f"{100 * load:.0f}/{touched:.0f}"
        for load, touched in zip(relative_loads(layer), layer.rank_experts, strict=True)
    ]
    assert cells[1:9] == expected


def test_sixteen_ranks_at_80_columns() -> None:
    """Least and most with their ranks, and a bar for each rank, which a terminal without them leaves out."""
    status = tier_status(42, 16)
    layer = min(status.layers, key=lambda each: each.balancedness)
    loads = relative_loads(layer)
    text, plain = shown(status), shown(status, encoding="ascii")
    cells = rows(text)[str(layer.layer_id)]
    assert f"{100 * max(loads):.0f} @{loads.index(max(loads))}" in " ".join(cells)
    bars = cells[5]
    assert len(bars) == 16
    assert bars.index(max(bars)) == loads.index(max(loads))
    assert bars not in plain
    assert f"{100 * min(loads):.0f} @{loads.index(min(loads))}" in " ".join(rows(plain)[str(layer.layer_id)])


def test_of_many_layers_those_that_need_a_look() -> None:
    """The drifting one, though best balanced, and the least balanced; all of them on demand."""
    status = tier_status(42, 8)
    best = max(range(42), key=lambda idx: status.layers[idx].balancedness)
    layers = tuple(replace(layer, is_drifting=idx == best) for idx, layer in enumerate(status.layers))
    status = replace(status, layers=layers)
    chosen = worst_layers(layers)
    others = [layer for layer in layers if layer not in chosen]
    assert layers[best] in chosen
    worst_of_others = min(layer.balancedness for layer in others)
    assert all(layer.is_drifting or layer.balancedness <= worst_of_others for layer in chosen)
    assert [layer.layer_id for layer in chosen] == sorted(layer.layer_id for layer in chosen)
    assert f"{layers[best].layer_id}!" in rows(shown(status))
    assert "the 12 worst of 42 layers, --all shows each" in shown(status, 120)
    assert len(rows(shown(status, show_all=True))) == 43
    assert len(worst_layers(layers[:MAX_LAYERS])) == MAX_LAYERS


def test_the_line_of_all_layers() -> None:
    """A rank that is hot in every layer stands out of it; copies are added up, norms span all."""
    status = tier_status(3, 4)
    layers = tuple(
        replace(layer, rank_pairs=(10.0 * (idx + 1), *[2.0 * (idx + 1)] * 3), num_copies=idx, norm_low=0.1 * (idx + 1))
        for idx, layer in enumerate(status.layers)
    )
    cells = rows(shown(replace(status, layers=layers)))["all"]
    assert [cell.split("/")[0] for cell in cells[1:5]] == ["250", "50", "50", "50"]
    assert "3" in cells
    assert cells[-1] == "0.1-2.3"


def test_nothing_is_wrong() -> None:
    """Then nothing stands before the summary."""
    text = shown(tier_status())
    assert text.startswith("balancedness")
    assert not [word for word in ("STALLED", "ABANDONED", "DRIFT", "PAUSED") if word in text]


def test_what_is_wrong_comes_first() -> None:
    """Each in a line of its own, before anything else."""
    lost = record(
        trigger="drift", outcome=Outcome.ABANDONED, reason="rank 3 was lost", gain=None, balancedness_after=None
    )
    balancer = balancer_status(
        is_paused=True,
        is_stalled=True,
        phase=Phase.PREPARING,
        phase_seconds=133.0,
        stage=1,
        num_stages=3,
        progress=(4, 17),
        history=(record(), lost),
    )
    text = shown(tier_status(drift="layer 5 has moved by 0.31", balancer=balancer))
    before = text.split("balancedness ")[0]
    assert "STALLED: preparing for 133 s" in before
    assert "ABANDONED: the last rebalance. rank 3 was lost" in before
    assert "layer 5 has moved by 0.31" in before
    assert "PAUSED" in before
    assert "auto, paused, preparing stage 1 of 3 for 133 s, 4 of 17 slots loaded" in " ".join(text.split())
    assert text.count("11-28 03:04:05") == 2


def test_the_figures_of_the_summary() -> None:
    """Fitted costs, predicted against best time, the window, the last decision."""
    text = " ".join(shown(tier_status(), 200).split())
    assert "2,346 us of a step in the expert tier, as predicted; 18 % above the best (1,988 us)" in text
    assert "16.30 us to touch an expert, 0.981 us a pair, as fitted" in text
    assert "5,312 steps, 48,212 tokens" in text
    assert "p50 12.3 ms, p99 31.4 ms" in text
    assert "gain too small: 1.2 % of the tier's time" in text


def test_a_quiet_moment_and_a_rebalance_found_under_way() -> None:
    """No step of late is no step of 0 ms; stages that a restarted coordinator cannot know are not told."""
    found = balancer_status(phase=Phase.ADOPTING, phase_seconds=2.0, progress=(9, 9))
    text = shown(tier_status(step_p50_ms=0.0, step_p99_ms=0.0, balancer=found))
    assert "none in the last seconds" in text
    assert "auto, adopting for 2 s, 9 of 9 slots loaded" in text


def test_experts_and_their_copies() -> None:
    """As `pin` takes them: layer, expert; then load and ranks, and whether pinned. Many pins are cut, not forgotten."""
    expert = ExpertStatus(layer_id=12, logical_id=205, load=5.14, ep_ranks=(3, 7), is_pinned=True)
    text = shown(tier_status(hottest=(expert,), pinned=tuple(replace(expert, logical_id=i) for i in range(30))))
    assert "12 205  5.1x @ 3,7 pinned" in text
    assert f"pinned: and {30 - MAX_EXPERTS} more, --all shows each" in text
    assert "pinned: and" not in shown(tier_status(pinned=(expert,)))


def test_the_history() -> None:
    """Cost and gain of each; what was promised beside what came; what is not known is a question mark."""
    history = tuple(record(num_moves=7000 + idx, balancedness_after=None) for idx in range(MAX_RECORDS + 4))
    text = shown(tier_status(balancer=balancer_status(history=history)))
    assert f"rebalances: the last {MAX_RECORDS} of {len(history)}" in text
    assert "0.71>0.95>?" in text
    assert "12.3%" in text
    assert "4.2 s" in text
    assert [str(7000 + idx) in text for idx in range(9)] == [False] * 4 + [True] * 5
    assert "7000" in shown(tier_status(balancer=balancer_status(history=history)), show_all=True)


def test_before_the_first_request() -> None:
    """Zeros are not shown as if they were measured."""
    layers = tuple(
        replace(layer, rank_pairs=(0.0,) * 8, norm_low=None, norm_high=None) for layer in tier_status().layers
    )
    idle = {"window_tokens": 0.0, "window_steps": 0.0, "step_p50_ms": 0.0, "step_p99_ms": 0.0, "best_us": 0.0}
    text = shown(tier_status(layers=layers, **idle, balancer=balancer_status(history=())))
    assert "no load has been measured yet" in text
    assert "no rebalance yet" in text
    assert "balancedness" not in text
    assert "layer bal." not in text


def test_a_layer_without_load_beside_others() -> None:
    """No division by its mean."""
    status = tier_status()
    layers = (replace(status.layers[0], rank_pairs=(0.0,) * 8), *status.layers[1:])
    assert rows(shown(replace(status, layers=layers)))["3"][1:9] == ["0"] * 8


def test_colours_go_from_green_to_red() -> None:
    """The mean or less is green, half as much again is red; numbers say the same without them."""
    red, green, _ = Color.parse(load_style(1.0)).get_truecolor()
    assert (red, green) == (0, 200)
    assert load_style(0.2) == load_style(1.0)
    red, green, _ = Color.parse(load_style(1.5)).get_truecolor()
    assert (red, green) == (255, 0)
    assert load_style(9.0) == load_style(1.5)
    halfway = Color.parse(load_style(1.25)).get_truecolor()
    assert halfway.red == 255
    assert halfway.green == 200


def test_names_in_brackets_are_text() -> None:
    """Nothing that the cluster says is read as markup."""
    text = shown(tier_status(drift="layers [3, 4]", balancer=balancer_status(last_decision="[bold]no[/bold] [x")))
    assert "[bold]no[/bold] [x" in text
    assert "layers [3, 4]" in text


def test_proposals() -> None:
    """What it would bring and cost, in both tenses, or why not."""
    proposal = Proposal(True, True, "ordered", 12, 3, 0.00032, 0.123, 0.06, 0.71, 0.95)
    text = proposal_text(proposal)
    assert "would begin: 12 moves in 3 stages" in text
    assert "12.3 % of the expert tier's time, 0.32 ms a step; cost: 0.06 s" in text
    assert "0.71, then 0.95" in text
    assert "a rebalance begins: 12 moves" in proposal_text(replace(proposal, is_dry_run=False))
    assert proposal_text(replace(proposal, is_accepted=False, reason="no moves")) == "nothing to do: no moves"


def test_one_expert() -> None:
    """With one copy, with two, pinned or not."""
    expert = ExpertStatus(3, 17, 2.04, (5,), is_pinned=False)
    assert expert_line(expert) == "expert 17 of layer 3: not pinned; now on EP rank 5, 2.0 x its layer's mean load"
    two = replace(expert, ep_ranks=(0, 5), is_pinned=True)
    assert expert_line(two) == "expert 17 of layer 3: pinned; now on EP ranks 0,5, 2.0 x its layer's mean load"
