"""The scaling benchmark: its arithmetic by hand, and its scenario on a pretended cluster."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from ops.bench import scaling
from ops.bench.load_loops import Asked, closed_loop
from ops.bench.processes import command_lines
from ops.bench.scaling import Scenario, Streams
from ops.bench.scaling_changes import Decision, Look, Run, decisions_in, felt, lives, look_of
from ops.bench.scaling_figure import draw
from ops.bench.scaling_report import report
from ops.bench.traffic import Answer
from tests.fakes.completions import ScriptedCompletions, breaking_off, refusing, serving, telling

LOG = """\
INFO 2026-01-02 03:04:05,678 controller 7 -- Adding 1 replica to Deployment(name='AttentionActor', app='x').
INFO 2026-01-02 03:04:05,678 controller 7 -- attention autoscaling: up from 1 to 2: 2.38 replicas are needed
INFO 2026-01-02 03:05:05,678 controller 7 -- attention autoscaling: down from 2 to 1: 0.50 are needed; really
"""


def look(at: float, *ready: str) -> Look:
    return Look(at, frozenset(ready))


def decision(at: float, before: int, after: int) -> Decision:
    return Decision(at, before, after, "so many are needed")


def answer(*times: float, sent_at: float = 0.0, text: str = "x", **fields: object) -> Answer:
    return Answer(("text", 0), sent_at, times, len(times), text, **fields)  # type: ignore[arg-type]


# --- what is made of a run


def test_only_ready_attention_replicas_are_seen() -> None:
    """Others are in the state as well: experts, gateways, and replicas that load or have left."""
    members = [("a", "attention", True), ("b", "attention", False), ("c", "expert", True), ("d", "gateway", True)]
    state = {"members": [{"member": name, "role": role, "is_ready": ready} for name, role, ready in members]}
    assert look_of(3.0, state) == look(3.0, "a")


def test_decisions_are_read_from_the_log() -> None:
    """Their numbers, their reasons, and their moments on the other clock, 1000 s behind."""
    first = datetime(2026, 1, 2, 3, 4, 5, 678000).timestamp() - 1000.0
    up, down = decisions_in(LOG, lambda wall: wall - 1000.0)
    assert [up.at, down.at] == pytest.approx([first, first + 60.0])
    assert (up.before, up.after, up.why) == (1, 2, "2.38 replicas are needed")
    assert (down.before, down.after, down.why) == (2, 1, "0.50 are needed; really")


def test_changes_last_until_the_replicas_are_there() -> None:
    """Up and down."""
    looks = [look(0, "a"), look(10, "a"), look(20, "a", "b"), look(30, "a", "b"), look(40, "b")]
    changes = Run(looks=looks, decisions=[decision(5, 1, 2), decision(35, 2, 1)]).changes
    assert [(change.start, change.end) for change in changes] == [(5, 20), (35, 40)]


def test_a_decision_that_was_not_carried_out_is_no_change() -> None:
    """One was overtaken by the next, though there are two replicas later; one had no time left."""
    looks = [look(0, "a"), look(10, "a"), look(20, "a", "b", "c"), look(30, "a", "b")]
    overtaken = Run(looks=looks, decisions=[decision(1, 1, 2), decision(9, 2, 3), decision(25, 3, 2)])
    assert [(change.start, change.end) for change in overtaken.changes] == [(9, 20), (25, 30)]
    assert Run(looks=looks, decisions=[decision(28, 2, 1)]).changes == []


def test_an_effect_compares_with_time_of_equal_load() -> None:
    """Chunks came every ten seconds until the load changed at 60, every second then, and every two from the change of
    the replicas at 100 on."""
    stream = answer(10, 20, 30, 40, 50, 60, *range(61, 101), 102, 104, 106, 108, 110, sent_at=9.0)
    looks = [look(0, "a"), look(110.5, "a", "b")]
    run = Run([(0.0, 1), (60.0, 9)], [stream], looks=looks, decisions=[decision(100, 1, 2)])
    (effect,) = run.effects
    assert effect.quiet_s == 35.0
    assert (effect.before.gap_p50, effect.before.gap_p99, effect.before.longest_gap) == (1.0, 1.0, 1.0)
    # The chunk at 100 ended a gap of one second within the change.
    assert (effect.during.gap_p50, effect.during.gap_p99) == (2.0, 2.0)
    assert effect.ratio == 2.0


def test_an_effect_is_not_compared_with_another_change() -> None:
    """The first of three ended at 20 and the second began at 50: thirty seconds. A minute where there is as much, and
    five seconds less than there are since the streams began."""
    looks = [look(0, "a"), look(20, "a", "b"), look(60, "a", "b", "c"), look(501, "a", "b")]
    decisions = [decision(10, 1, 2), decision(50, 2, 3), decision(500, 3, 2)]
    run = Run([(-60.0, 1), (0.0, 9)], looks=looks, decisions=decisions)
    assert [effect.quiet_s for effect in run.effects] == [5.0, 30.0, 60.0]


def test_a_short_change_is_looked_at_for_five_seconds() -> None:
    """Carried out at 100.5; gaps of two seconds came at 102 and 104, one of three at 107."""
    stream = answer(*range(61, 101), 102, 104, 107, sent_at=60.0)
    run = Run([(0.0, 1)], [stream], looks=[look(0, "a", "b"), look(100.5, "a")], decisions=[decision(100, 2, 1)])
    (effect,) = run.effects
    assert effect.change.end == 100.5
    assert effect.during.longest_gap == 2.0


def test_waits_for_a_first_token_belong_to_when_it_was_asked_for() -> None:
    """And nothing is not a number."""
    answers = [answer(5.0, 7.0, sent_at=1.0), answer(30.0, sent_at=8.0), answer(sent_at=2.0, error="HTTP 500")]
    assert felt(answers, 0.0, 6.0).first_token == 4.0
    assert felt(answers, 6.0, 9.0).first_token == 22.0
    assert math.isnan(felt(answers, 40.0, 50.0).first_token)
    assert math.isnan(felt(answers, 40.0, 50.0).gap_p99)


def test_lives_of_replicas() -> None:
    """One that stays has no end."""
    looks = [look(0, "a"), look(10, "a", "b"), look(20, "a")]
    assert list(lives(looks)) == [("a", 0, None), ("b", 10, 20)]


# --- what is counted as lost


def whole_run() -> Run:
    """One to three and back, with nothing lost."""
    run = Run([(0.0, 3), (20.0, 19), (60.0, 3)])
    run.looks = [look(0, "a"), look(30, "a", "b"), look(40, "a", "b", "c"), look(70, "a", "b"), look(80, "a")]
    run.decisions = [decision(25, 1, 2), decision(35, 2, 3), decision(65, 3, 2), decision(75, 2, 1)]
    run.staying = [answer(*range(1, 80)), answer(*range(1, 80), error="HTTP 429", status=429)]
    return run


def test_a_whole_run(capsys: pytest.CaptureFixture[str]) -> None:
    """A request that was shed is counted and is no failure."""
    assert report(whole_run())
    printed = capsys.readouterr().out
    assert '"benchmark": "scaling", "failed": 0, "shed": 1, "differing": 0' in printed


def _fail(run: Run) -> None:
    run.coming.append(answer(error="HTTP 503", status=503))


def _differ(run: Run) -> None:
    run.coming.append(answer(text="y"))


def _never_shrink(run: Run) -> None:
    run.decisions.pop()


def _break_off(run: Run) -> None:
    run.problem = "2 instead of 3 replicas"


@pytest.mark.parametrize("spoil", [_fail, _differ, _never_shrink, _break_off])
def test_runs_that_lost_something(spoil: Callable[[Run], None]) -> None:
    """A failed request, another answer to the same question, a change that never came, a run that was broken off."""
    run = whole_run()
    spoil(run)
    assert not report(run)


def test_the_figure(tmp_path: Path) -> None:
    """The four changes are marked in both of its parts."""
    run = whole_run()
    draw(run, tmp_path / "deep" / "scaling.svg")
    text = (tmp_path / "deep" / "scaling.svg").read_text()
    assert text.rstrip().endswith("</svg>")
    assert text.count("fill: #ff7f0e; opacity: 0.3") == 2 * 4


# --- the scenario


def scripted_admin(run: Run, most: int) -> httpx.Client:
    """An admin route of a cluster that has `most` replicas while more than one stream is offered, and one otherwise."""

    def answer_state(_request: httpx.Request) -> httpx.Response:
        names = "abc"[: most if run.offered[-1][1] > 1 else 1]
        members = [{"member": name, "role": "attention", "is_ready": True} for name in names]
        return httpx.Response(200, json={"members": members})

    return httpx.Client(base_url="http://admin", transport=httpx.MockTransport(answer_state))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One stream that stays, three that come, and phases of a moment."""
    for name, value in (("CALM_S", 0.1), ("HOLD_S", 0.3), ("END_S", 0.3), ("LOOK_S", 0.01), ("SCALE_TIMEOUT_S", 8.0)):
        monkeypatch.setattr(scaling, name, value)
    monkeypatch.setattr(scaling, "STAYING", Streams("text", 1, 2, 8))
    monkeypatch.setattr(scaling, "COMING", Streams("arithmetic", 3, 2, 4))
    monkeypatch.setattr(scaling, "prompts", lambda _checkpoint, _domain, count: [[number] for number in range(count)])


async def played(completions: ScriptedCompletions, most: int) -> Run:
    run = Run()
    async with serving(completions) as url:
        with scripted_admin(run, most) as admin:
            async with Scenario(url, admin, run, lambda _text: None) as scenario:
                await scenario.play()
    return run


@pytest.mark.usefixtures("quick")
async def test_streams_come_and_go() -> None:
    """Until three replicas are there, and until one is left. Each stream asks for the prompts and length of its kind,
    and all end with their answers."""
    completions = ScriptedCompletions(telling(0.1, 0.1))
    run = await played(completions, most=3)
    assert run.problem is None
    assert run.failures == []
    assert completions.most_open == 4
    assert {(tuple(body["prompt"]), body["max_tokens"]) for body in completions.bodies} == {
        ((0,), 8),
        ((1,), 8),
        ((0,), 4),
        ((1,), 4),
    }
    assert all(body["ignore_eos"] for body in completions.bodies)
    assert {len(each.ready) for each in run.looks} == {1, 3}
    assert len(run.looks[-1].ready) == 1
    _, (came, _), (went, _) = run.offered
    assert [streams for _, streams in run.offered] == [1, 4, 1]
    assert went - came < scaling.SCALE_TIMEOUT_S
    assert all(came <= each.sent_at <= went for each in run.coming)
    assert any(each.sent_at > went for each in run.staying)


@pytest.mark.usefixtures("quick")
async def test_replicas_that_never_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run says so, and lets its streams end."""
    monkeypatch.setattr(scaling, "SCALE_TIMEOUT_S", 0.3)
    run = await played(ScriptedCompletions(telling(0.02, 0.02)), most=2)
    assert run.problem == "NotScaled: 2 instead of 3 replicas after 0 s"
    assert run.failures == []
    assert run.answers


@pytest.mark.usefixtures("quick")
async def test_failures_are_told_from_what_is_shed() -> None:
    """A stream that breaks off is lost, one that is sent away comes again."""
    completions = ScriptedCompletions(breaking_off(0.0), refusing(429, retry_after="0"), telling(0.02, 0.02))
    run = await played(completions, most=3)
    assert len(run.failures) == 1
    assert run.num_shed == 1


# --- what it stands on


async def test_a_closed_loop_that_is_told_to_end() -> None:
    """Answers that run come to their end, and no more are asked for."""
    done, ended = asyncio.Event(), list[Asked]()

    async def ask(_elapsed: float) -> Answer:
        done.set()
        await asyncio.sleep(0.01)
        return answer(1.0)

    async with asyncio.timeout(10.0):
        await closed_loop(ask, 2, float("inf"), time.monotonic(), ended.append, done)
    assert 1 <= len(ended) <= 2


def test_command_lines_of_a_family() -> None:
    """A child's is among them, one of another family is not."""
    code = "input()  # a mark"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        lines = list(command_lines(os.getpid()))
        own = list(command_lines(child.pid))
        child.communicate(b"\n", timeout=20)
    assert any(code in line for line in lines)
    assert len(own) == 1
