"""One frame of `step35 top`: everything is there, it fits, and what is not known is never told as 0."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC
from typing import Any

import pytest
from rich.console import Console

from cluster.cluster_state import ClusterEvent, ClusterState
from cluster.experts_status import ExpertTierStatus
from cluster.state_health import Health, Level, Problem, judge
from cluster.state_numbers import numbers_of
from cluster.top_facts import percent, rate, seconds
from cluster.top_heat import heat_lines
from cluster.top_view import TopView
from tests.fakes.experts import balancer_status, tier_status
from tests.fakes.states import cluster_state, event, member

SIZES = [(80, 24), (80, 50), (132, 24), (200, 60)]


def view(num_layers: int = 10, ep_size: int = 8, **fields: Any) -> TopView:
    """Of two states four seconds apart."""
    shape = {"num_layers": num_layers, "ep_size": ep_size}
    states = [ClusterState.from_dict(cluster_state(at, **shape, **fields)) for at in (2.0, 6.0)]
    numbers = numbers_of(states)
    return TopView(states[-1], numbers, judge(states[-1], numbers), zone=UTC)


def shown(frame: TopView, width: int = 80, height: int = 24, *, encoding: str = "utf-8", **options: Any) -> list[str]:
    """The lines of a terminal of this size."""
    console = Console(width=width, height=height, highlight=False, **{"color_system": None, **options})
    lines = console.render_lines(frame, replace(console.options, encoding=encoding).update(height=height), pad=False)
    return ["".join(segment.text for segment in line).rstrip() for line in lines]


def line(name: str, frame: TopView, width: int = 200) -> str:
    """What stands behind this name."""
    (found,) = (text for text in shown(frame, width, 60) if text.startswith(f"{name} "))
    return found.removeprefix(name).strip()


def heat(num_layers: int, ep_size: int, width: int = 80, height: int = 12, **options: Any) -> list[str]:
    status = tier_status(num_layers, ep_size, **options)
    return [text.plain for text in heat_lines(status, width=width, height=height, is_ascii=False)]


@pytest.mark.parametrize(("num_layers", "ep_size"), [(10, 8), (42, 8), (42, 288), (1, 1), (6, 2)])
@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_it_fits(num_layers: int, ep_size: int, width: int, height: int, encoding: str) -> None:
    """Never wider or higher than the terminal; every section is there from 24 lines on."""
    lines = shown(view(num_layers, ep_size), width, height, encoding=encoding)
    text = "\n".join(lines)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert encoding == "utf-8" or text.isascii()
    for wanted in ("HEALTHY", "steps ", "latency ", "drafts ", "hottest ", "load: ", "a rebalance began", "03:04:11"):
        assert wanted in text


@pytest.mark.parametrize("height", range(1, 30))
def test_every_height(height: int) -> None:
    """A low terminal loses the end, not the beginning, and every line of it is used."""
    events = [event(float(number), "drift", f"event {number}") for number in range(40)]
    lines = [text for text in shown(view(42, 8, events=events), 80, height) if text]
    assert len(lines) == height
    assert "HEALTHY" in lines[0]


@pytest.mark.parametrize("height", [24, 50])
def test_no_figure_is_cut_at_80_columns(height: int) -> None:
    """But the balancer's sentence and the model's name, which may be as long as they like."""
    for text in shown(view(42, 288), 80, height)[1:]:
        assert "…" not in text or text.startswith("balancer ")


def test_the_figures() -> None:
    """Those that tests of the numbers have by hand, in words."""
    frame = view()
    assert shown(frame)[0] == ("● HEALTHY 8/8 expert ranks, 1/1 attention actor, 1/1 gateway ready, ste 03:04:11")
    assert line("steps", frame) == "p50 12.3 ms  p99 31.4 ms  80.0/s of 24 rows"
    assert line("requests", frame) == "12 running  0 waiting  3.0/s finished  0/s sent away"
    assert line("tokens", frame) == "612/s completion  1,240/s prompt"
    assert line("latency", frame) == "p50/p99: first token 100 ms/2.47 s  between tokens 12.5 ms/14.9 ms"
    assert line("KV", frame) == f"{9 * '█'}{11 * '░'} 46% of the fullest actor's blocks"
    assert line("drafts", frame) == "2.41 tokens a verification  accepted #1 80%  #2 60%  #3 26%"
    assert line("pipeline", frame) == "attention 41%  drafts 5%  dispatch 6%  waiting for experts 48%"
    assert re.fullmatch(r"0\.\d\d  least 0\.\d\d in layer \d+  expert time 18% above the best", line("balance", frame))
    assert line("balancer", frame) == (
        "auto, idle  gain too small: 1.2 % of the tier's time, at least 3.0 % is asked for"
    )
    assert line("last", frame) == ("rebalance 03:04:05 (load)  17 moves in 4.2 s  0.71 > 0.95 > 0.93  done")


def test_what_is_not_known_is_a_dash() -> None:
    """Members that have told nothing, a tier without load: no figure is a 0."""
    idle: dict[str, Any] = {"window_tokens": 0.0, "step_p50_ms": 0.0, "step_p99_ms": 0.0, "hottest": ()}
    status = tier_status(10, 8, **idle, balancer=balancer_status(history=()))
    frame = view(members=[member("a", "attention"), member("g", "gateway")], experts=status.to_dict())
    assert line("steps", frame) == "p50 -  p99 -  -/s of - rows"
    assert line("requests", frame) == "- running  - waiting  -/s finished  -/s sent away"
    assert line("tokens", frame) == "-/s completion  -/s prompt"
    assert line("latency", frame) == "p50/p99: first token -/-  between tokens -/-"
    assert [line(name, frame) for name in ("KV", "pipeline", "hottest")] == ["-"] * 3
    assert line("drafts", frame) == "- tokens a verification  accepted -"
    assert line("balance", frame) == "-  no load has been measured yet"
    assert line("last", frame) == "no rebalance yet"
    assert "load: " not in "\n".join(shown(frame))


def test_problems_stand_below_the_first_line() -> None:
    """The worst first, in its colour; of many the rest is counted."""
    problems = (Problem(Level.BROKEN, "no gateway is ready"), *[Problem(Level.WARNING, f"p{n}") for n in range(5)])
    frame = replace(view(), health=Health("0/1 gateway ready", problems))
    lines = shown(frame)
    assert lines[0].startswith("● BROKEN 0/1 gateway ready, step-nano")
    assert lines[1:5] == ["  no gateway is ready", "  p0", "  p1", "  and 3 more"]
    coloured = frame.lines(80, 24)
    assert [str(span.style) for span in coloured[0].spans][:1] == ["bold red"]
    assert len(lines) == 24


def test_a_note_tells_that_the_frame_is_old() -> None:
    """It stands where health did, and the time is that of the last state."""
    lines = shown(replace(view(), note=f"nobody listens at http://127.0.0.1:8001; {15 * 'again '}"))
    assert lines[0].startswith("● NO ANSWER ")
    assert lines[0].endswith("03:04:11")
    assert lines[1].startswith("  nobody listens at http://127.0.0.1:8001; again")
    assert lines[2].startswith("  again")
    assert len(lines) == 24


def test_a_wide_terminal_has_events_beside_the_picture() -> None:
    """Newest first, in a column of their own; a narrow one has them below."""
    beside = shown(view(42, 8), 160, 40)
    title = next(idx for idx, text in enumerate(beside) if text.startswith("load: "))
    assert beside[title].endswith("03:04:14 attention: 1 replica stays")
    assert beside[title + 1].endswith("03:04:12 a rebalance began: 17 moves")
    below = [text for text in shown(view(42, 8), 80, 40) if text]
    assert [text[9:20] for text in below[-3:]] == ["attention: ", "a rebalance", "EP rank 0 i"]


def test_names_of_members_are_short() -> None:
    """In events and problems: the application is the same everywhere."""
    name = "SERVE_REPLICA::my-app#ExpertActor#e9l5lz02"
    problem = Problem(Level.WARNING, f"{name} is silent")
    frame = view(events=[event(0.0, "rank_leased", f"EP rank 1 is served by {name}")])
    text = "\n".join(shown(replace(frame, health=Health("", (problem,))), 132))
    assert "SERVE_REPLICA" not in text
    assert "EP rank 1 is served by ExpertActor#e9l5lz02" in text
    assert "  ExpertActor#e9l5lz02 is silent" in text


def test_only_the_newest_events() -> None:
    """A long list is cut to what there is room for."""
    events = tuple(ClusterEvent(float(n), "drift", f"event {n}") for n in range(200))
    frame = view()
    lines = shown(replace(frame, state=replace(frame.state, events=events)), 80, 50)
    assert "event 199" in "\n".join(lines)
    assert "event 150" not in "\n".join(lines)
    assert len(lines) <= 50


def test_the_picture_by_hand() -> None:
    """Two ranks, two layers: twice the mean is a whole block, half of it a quarter, and a layer without load a dash."""
    status = tier_status(2, 2)
    first = replace(status.layers[0], layer_id=3, rank_pairs=(3.0, 1.0))
    second = replace(status.layers[1], layer_id=44, rank_pairs=(0.0, 0.0))
    status = replace(status, layers=(first, second))
    lines = [text.plain for text in heat_lines(status, width=80, height=12, is_ascii=False)]
    assert lines == ["load: 2 ranks x 2 layers", "   3 44", "r0 ▇▇--  150%", "r1 ▃▃--   50%"]
    ascii_lines = heat_lines(status, width=80, height=12, is_ascii=True)
    assert [text.plain for text in ascii_lines][2:] == ["r0 %%--  150%".replace("%%--", "##--"), "r1 ::--   50%"]


def test_the_picture_of_many_ranks() -> None:
    """The fullest ranks that there is room for, in their order, with the number of those left out."""
    status = tier_status(42, 288)
    lines = heat(42, 288)
    assert lines[0] == "load: 10 of 288 ranks x 42 layers"
    ranks = [int(text.split()[0][1:]) for text in lines[2:]]
    assert ranks == sorted(ranks)
    assert len(ranks) == 10
    loads = _mean_loads(status)
    assert min(loads[rank] for rank in ranks) >= sorted(loads)[-10]


def _mean_loads(status: ExpertTierStatus) -> list[float]:
    return [
        sum(layer.rank_pairs[rank] / sum(layer.rank_pairs) for layer in status.layers) for rank in range(status.ep_size)
    ]


def test_the_picture_of_many_layers() -> None:
    """Where 42 layers have no room, the least balanced ones."""
    lines = heat(42, 8, width=30)
    assert lines[0] == "load: 8 ranks x 21 of 42 layer"
    status = tier_status(42, 8)
    worst = sorted(sorted(status.layers, key=lambda each: each.balancedness)[:21], key=lambda each: each.layer_id)
    assert lines[1].split()[0] == str(worst[0].layer_id)
    assert max(map(len, lines)) <= 30


def test_no_room_no_picture() -> None:
    """Rather nothing than a title alone."""
    assert heat(10, 8, height=2) == []
    assert heat(10, 8, width=9) == []
    assert len(heat(10, 8, height=3)) == 3
    assert "   3" not in heat(10, 8, height=5)[1]


def test_names_in_brackets_are_text() -> None:
    """Nothing that the cluster says is read as markup."""
    events = [{"time": 0.0, "kind": "drift", "text": "[bold]no[/bold] [x", "member": None}]
    assert "[bold]no[/bold] [x" in "\n".join(shown(view(events=events), color_system="truecolor"))


def test_colour_is_an_addition() -> None:
    """The same characters with and without it."""
    assert shown(view(), color_system="truecolor", force_terminal=True) == shown(view())


def test_numbers_in_words() -> None:
    """Three digits in the unit that suits; a rate of nothing is 0, an unknown one a dash."""
    assert [seconds(value) for value in (0.00042, 0.0123, 0.456, 1.234, 34.5)] == [
        "420 us",
        "12.3 ms",
        "456 ms",
        "1.23 s",
        "34 s",
    ]
    assert [rate(value) for value in (None, 0.0, 2.34, 1240.4)] == ["-/s", "0/s", "2.3/s", "1,240/s"]
    assert [percent(value) for value in (None, 0.0, 0.456)] == ["-", "0%", "46%"]
