"""The load benchmark against servers that do as they are told: whom it charges for what, and what it counts as lost.

Times are real here; what is asserted holds however slow the machine is, because a busy machine only makes things later.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ops.bench.load import Load, Settings, main, questions_of
from ops.bench.load_figure import draw
from ops.bench.load_loops import Asked, closed_loop, open_loop, poisson_arrivals
from ops.bench.load_options import is_loopback, parse
from ops.bench.load_report import Row, count_table, latency_table, percentiles, row_of
from ops.bench.traffic import Answer, Questions, Schedule, ask, greedy_body
from tests.fakes.completions import (
    STREAM_HEAD,
    Script,
    ScriptedCompletions,
    breaking_off,
    event,
    refusing,
    serving,
    silent,
    telling,
    usage,
)

QUESTION = ("plain", 0)
FAILURE = event({"error": {"message": "a rank was lost"}})


def questions() -> Questions:
    return Questions({"plain": [[1, 2, 3], [4, 5, 6]]}, Schedule(("plain",), 60.0))


def settings(**fields: float) -> Settings:
    values = {"seconds": 0.5, "warm_up_s": 0.0, "max_tokens": 4, "timeout_s": 20.0, "max_open": 64, "seed": 1}
    return Settings(**{**values, **fields})  # type: ignore[arg-type]  # counts are whole


async def asked_once(script: Script, timeout_s: float = 20.0) -> Answer:
    async with serving(ScriptedCompletions(script)) as url, httpx.AsyncClient(base_url=url) as client:
        return await ask(client, QUESTION, greedy_body("scripted", [1], 4), timeout_s)


async def level(load: float, script: Script, *, is_open: bool = True, **fields: float) -> Row:
    """One level against one server."""
    with Progress(console=Console(quiet=True)) as progress:
        async with serving(ScriptedCompletions(script)) as url:
            async with Load(url, questions(), settings(**fields)) as loading:
                if is_open:
                    return await loading.at_rate(load, progress)
                return await loading.with_streams(int(load), progress)


def answer(*times: float, num_tokens: int = 1, **fields: object) -> Answer:
    return Answer(QUESTION, 0.0, times, num_tokens, "x", **fields)  # type: ignore[arg-type]


def asked(due_at: float, *times: float, **fields: object) -> Asked:
    return Asked(due_at, answer(*times, **fields))  # type: ignore[arg-type]


def as_text(table: Table) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


# --- when requests are sent


def test_arrivals_are_a_poisson_process() -> None:
    """Gaps have the exponential distribution (Kolmogorov-Smirnov, one in a thousand); their number is as asked."""
    rate, seconds = 50.0, 200.0
    arrivals = poisson_arrivals(rate, seconds, random.Random(3))
    assert abs(len(arrivals) - rate * seconds) < 4 * (rate * seconds) ** 0.5
    assert arrivals == sorted(arrivals)
    assert arrivals[0] > 0.0
    assert arrivals[-1] < seconds
    gaps = np.sort(np.diff(np.array([0.0, *arrivals])))
    expected = 1.0 - np.exp(-rate * gaps)
    distance = np.abs(expected - np.arange(1, len(gaps) + 1) / len(gaps)).max()
    assert distance < 1.95 / len(gaps) ** 0.5


def test_arrivals_are_the_same_for_the_same_seed() -> None:
    """And others for another one; a low rate may have none."""
    assert poisson_arrivals(5.0, 9.0, random.Random(1)) == poisson_arrivals(5.0, 9.0, random.Random(1))
    assert poisson_arrivals(5.0, 9.0, random.Random(1)) != poisson_arrivals(5.0, 9.0, random.Random(2))
    assert poisson_arrivals(0.001, 0.1, random.Random(1)) == []


async def test_the_open_loop_asks_when_it_is_due() -> None:
    """Never before its time, whatever happens to those before: all are open at once though none is answered."""
    release, began_at, sent = asyncio.Event(), time.monotonic(), list[float]()

    async def wait(_elapsed: float) -> Answer:
        sent.append(time.monotonic() - began_at)
        if len(sent) == 4:
            release.set()
        await asyncio.wait_for(release.wait(), 15.0)
        return answer()

    ended: list[Asked] = []
    arrivals = [0.0, 0.01, 0.02, 0.05]
    await open_loop(wait, arrivals, began_at, ended.append)
    assert [at >= due for at, due in zip(sent, arrivals, strict=True)] == [True] * 4
    assert sorted(each.due_at - began_at for each in ended) == pytest.approx(arrivals)


async def test_the_closed_loop_has_so_many_streams() -> None:
    """Never more than that at once, and each asks again."""
    num_open, most = 0, 0

    async def count(_elapsed: float) -> Answer:
        nonlocal num_open, most
        num_open += 1
        most = max(most, num_open)
        await asyncio.sleep(0.005)
        num_open -= 1
        return answer(1.0)

    ended: list[Asked] = []
    await closed_loop(count, 3, 0.2, time.monotonic(), ended.append)
    assert most == 3
    assert len(ended) >= 6


async def test_a_stream_that_was_sent_away_comes_back_later() -> None:
    """After what Retry-After says: two streams for 0.1 s ask once each, and wait."""
    ended: list[Asked] = []

    async def shed(_elapsed: float) -> Answer:
        return answer(error="HTTP 429", status=429, retry_after_s=0.3)

    began_at = time.monotonic()
    await closed_loop(shed, 2, 0.1, began_at, ended.append)
    assert len(ended) == 2
    assert time.monotonic() - began_at >= 0.3


# --- what is charged to the server


async def test_a_stall_is_charged_from_the_moment_when_a_request_was_due() -> None:
    """A server that is silent for the whole run and then answers: whoever was due at t waited from t to its end."""
    released, began_at = asyncio.Event(), time.monotonic()
    ended: list[Asked] = []
    arrivals = [0.05 * number for number in range(10)]
    async with serving(ScriptedCompletions(silent(released))) as url, httpx.AsyncClient(base_url=url) as client:

        async def one(_elapsed: float) -> Answer:
            return await ask(client, QUESTION, greedy_body("scripted", [1], 4))

        async def end_the_stall() -> float:
            await asyncio.sleep(0.7)
            at = time.monotonic()
            released.set()
            return at

        _, stalled_until = await asyncio.gather(open_loop(one, arrivals, began_at, ended.append), end_the_stall())
    row = row_of(20.0, ended, began_at, began_at + 0.5)
    assert (row.num_asked, row.num_answered) == (10, 10)
    waits = sorted(stalled_until - each.due_at for each in ended)
    shown = row.latencies["first token"].values
    # the smallest value that half of them, and nine tenths of them, do not exceed
    assert shown["p50"] is not None
    assert shown["p90"] is not None
    assert shown["p50"] >= waits[5]
    assert shown["p90"] >= waits[9] >= 0.65


async def test_waiting_for_a_connection_is_part_of_the_latency() -> None:
    """One connection and 40 ms an answer: the last of the requests that were due at once waited for all of them."""
    completions = ScriptedCompletions(telling(0.04))
    ended: list[Asked] = []
    async with serving(completions) as url:
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=20.0) as client:

            async def one(_elapsed: float) -> Answer:
                return await ask(client, QUESTION, greedy_body("scripted", [1], 4))

            began_at = time.monotonic()
            await open_loop(one, [0.0] * 8, began_at, ended.append)
    assert completions.most_open == 1
    waits = sorted(each.answer.times[0] - each.due_at for each in ended)
    assert all(wait >= 0.04 * (place + 1) * 0.99 for place, wait in enumerate(waits))


async def test_the_latencies_of_one_answer() -> None:
    """Pauses of 60, 30 and 90 ms before its three events; six tokens in them."""
    row = await level(40.0, telling(0.06, 0.03, 0.09, tokens_per_event=2), seconds=0.3)
    assert row.num_answered == row.num_asked > 0
    first, between, whole = (row.latencies[name].values["p50"] for name in ("first token", "inter-token", "end to end"))
    assert first is not None
    assert between is not None
    assert whole is not None
    assert first >= 0.06
    assert between >= 0.03
    assert whole >= 0.18
    assert row.latencies["inter-token"].count == 2 * row.num_answered


async def test_a_closed_loop_against_a_server() -> None:
    """Two streams; tokens are counted while they come."""
    row = await level(2, telling(0.01, 0.01), is_open=False, seconds=0.3)
    assert row.load == 2
    assert row.num_answered == row.num_asked >= 2
    assert row.tokens_per_s > 0.0


# --- what is lost


async def test_a_whole_answer() -> None:
    """Its events, and the tokens that the server says it has."""
    got = await asked_once(telling(0.0, 0.0, tokens_per_event=3))
    assert (got.error, got.num_tokens, len(got.times), got.text) == (None, 6, 2, "xx")


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (breaking_off(0.0, 0.0), "StreamFailed: the stream ended before its closing mark"),
        (breaking_off(0.0, last=usage(1)), "StreamFailed: the stream ended before its closing mark"),
        (breaking_off(0.0, last=FAILURE), "StreamFailed: {'message': 'a rank was lost'}"),
        (breaking_off(0.0, last=b"data: {\n\n"), "StreamFailed: an event that is no JSON"),
        (breaking_off(0.0, last=b"data: [DONE]\n\n"), "StreamFailed: the server does not say how many tokens"),
        (refusing(500), "HTTP 500"),
        (refusing(429), "HTTP 429"),
    ],
)
async def test_streams_that_break_off_are_failures(script: Script, told: str) -> None:
    """However they do it. What came of them is no answer."""
    got = await asked_once(script)
    assert got.error is not None
    assert got.error.startswith(told)


async def test_a_connection_that_is_cut() -> None:
    """In the middle of a promised length."""

    async def cut(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD.replace("connection: close", "content-length: 9999").encode())

    got = await asked_once(cut)
    assert got.error is not None
    assert got.error.startswith("RemoteProtocolError")


async def test_an_answer_that_does_not_end_in_time() -> None:
    """The deadline is the whole request's, though an event comes all the time."""
    got = await asked_once(telling(*[0.02] * 500), timeout_s=0.2)
    assert got.error is not None
    assert got.error.startswith("TimeoutError")
    assert got.times


@pytest.mark.parametrize("status", [429, 503])
async def test_shed_requests_are_no_failures(status: int) -> None:
    """They are counted by status, with the longest Retry-After, and have no latency."""
    row = await level(60.0, refusing(status, retry_after="7"), seconds=0.3)
    assert row.num_shed == row.num_asked > 0
    assert (row.num_failed, row.num_answered) == (0, 0)
    assert row.shed == {str(status): row.num_shed}
    assert row.retry_after_s == 7.0
    assert row.latencies["first token"].values == {"p50": None, "p90": None, "p99": None, "p99.9": None}
    assert f"{row.num_shed} x HTTP {status} (retry after 7 s)" in " ".join(as_text(count_table([row], "s")).split())


async def test_failures_are_counted_by_class() -> None:
    """One broken stream is no shed request, and no answer."""
    row = await level(60.0, breaking_off(0.0), seconds=0.3)
    assert row.num_failed == row.num_asked > 0
    assert row.errors == {"StreamFailed": row.num_failed}
    assert row.share_lost == 1.0
    assert row.tokens_per_s == 0.0


# --- figures by hand


def test_a_row_by_hand() -> None:
    """Two seconds after a warm-up of one: the request due in the warm-up is not counted, its late tokens are."""
    row = row_of(
        3.0,
        [
            asked(0.5, 0.9, 1.5, num_tokens=10),
            asked(1.0, 1.2, 1.7, num_tokens=4),
            asked(2.0, 2.5, 3.5, num_tokens=6),
            asked(2.5, error="HTTP 503", status=503),
            asked(2.6, 2.7, error="ReadError: gone", num_tokens=1),
            asked(3.0, 3.1, num_tokens=100),
        ],
        1.0,
        3.0,
    )
    assert (row.num_asked, row.num_answered, row.num_shed, row.num_failed) == (4, 2, 1, 1)
    assert row.errors == {"ReadError": 1}
    assert row.answered_per_s == 1.0  # one from the warm-up and one in time; that which ended at 3.5 s is too late
    assert row.tokens_per_s == pytest.approx((5 + 4 + 3) / 2)
    assert row.latencies["first token"].values["p50"] == pytest.approx(0.5)
    assert row.latencies["end to end"].values["p50"] == pytest.approx(1.5)
    assert row.share_lost == 0.5


@pytest.mark.parametrize(
    ("count", "known"), [(1, []), (2, ["p50"]), (10, ["p50", "p90"]), (999, ["p50", "p90", "p99"])]
)
def test_percentiles_that_so_many_values_can_tell(count: int, known: Sequence[str]) -> None:
    """p99.9 needs a thousand."""
    found = percentiles([float(number) for number in range(count)])
    assert [name for name, value in found.values.items() if value is not None] == list(known)
    assert found.count == count


def test_percentiles_by_hand() -> None:
    """Of 0 to 999."""
    values = percentiles([float(number) for number in range(1000)]).values
    assert values == {"p50": 500.0, "p90": 900.0, "p99": 990.0, "p99.9": 999.0}


def test_an_empty_answer_has_no_latency() -> None:
    """A prompt that the model has nothing to say to is answered all the same."""
    row = row_of(1.0, [asked(0.0, num_tokens=0), asked(0.1, num_tokens=0)], 0.0, 1.0)
    assert row.num_answered == 2
    assert row.latencies["first token"].count == 0


def rows() -> list[Row]:
    """Two levels, the second with losses."""
    calm = [asked(0.1 * n, 0.1 * n + 0.2, 0.1 * n + 0.3, num_tokens=8) for n in range(9)]
    busy = [*calm, *[asked(0.5, error="HTTP 429", status=429, retry_after_s=2.0)] * 3, asked(0.6, error="ReadError: x")]
    return [row_of(load, each, 0.0, 1.0) for load, each in ((1.0, calm), (8.0, busy))]


def test_a_program_that_is_late_itself() -> None:
    """Told where its own delay is not small beside the wait for a first token."""
    due = [Asked(at, Answer(QUESTION, at + 0.02, (at + 0.1,), 1, "x")) for at in (0.1, 0.2)]
    assert row_of(1.0, due, 0.0, 1.0).is_late
    prompt = [Asked(at, Answer(QUESTION, at + 0.002, (at + 0.1,), 1, "x")) for at in (0.1, 0.2)]
    assert not row_of(1.0, prompt, 0.0, 1.0).is_late


def test_the_tables() -> None:
    """Loads, counts, percentiles in milliseconds; what cannot be told is a dash."""
    counts, latencies = as_text(count_table(rows(), "requests/s")), as_text(latency_table(rows(), "requests/s"))
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in counts.splitlines() if line.startswith("│")]
    assert cells[1][:5] == ["8", "13", "9", "3", "1"]
    assert cells[1][-1] == "3 x HTTP 429 (retry after 2 s), 1 x ReadError"
    first = next(line for line in latencies.splitlines() if "first token" in line)
    assert [cell.strip() for cell in first.split("│")[1:-1]] == ["1", "first token", "200.0", "-", "-", "-", "9"]


def test_the_picture(tmp_path: Path) -> None:
    """A PNG on white with something on it; missing percentiles are gaps and no error."""
    draw(rows(), "requests/s", "a title", tmp_path / "new" / "load.png")
    image = imread(tmp_path / "new" / "load.png")
    assert image.shape[0] > 400
    assert image[0, 0, :3].tolist() == [1.0, 1.0, 1.0]
    assert (image[..., :3] < 0.9).any()


# --- the program


@contextmanager
def server_thread(completions: ScriptedCompletions) -> Iterator[str]:
    """A server on a loop of its own, for a program that has its own loop too."""
    loop, url = asyncio.new_event_loop(), list[str]()
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with serving(completions) as address:
            url.append(address)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10.0)
        yield url[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10.0)
        loop.close()


Capture = Callable[[], str]


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Capture:
    return lambda: capsys.readouterr().out


def test_a_sweep(tmp_path: Path, output: Capture) -> None:
    """Two levels, tables, a line of JSON, a file of it, a picture; the key goes along; exit status 0."""
    completions = ScriptedCompletions(telling(0.0, 0.0))
    (tmp_path / "key").write_text("secret\n")
    with server_thread(completions) as url:
        status = main(
            ["--url", url, "--traffic", "plain", "--rates", "20", "40", "--seconds", "0.4", "--warm-up-s", "0.1"]
            + ["--figure", str(tmp_path / "load.png"), "--json", str(tmp_path / "load.json")]
            + ["--api-key-file", str(tmp_path / "key"), "--prompt-tokens", "7"]
        )
    assert status == 0
    written = json.loads((tmp_path / "load.json").read_text())
    assert json.loads(output().splitlines()[-1]) == written
    assert [row["load"] for row in written["rows"]] == [20.0, 40.0]
    assert written["unit"] == "requests/s"
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
    assert set(completions.keys) == {"Bearer secret"}
    prompts = [tuple(body["prompt"]) for body in completions.bodies]
    assert len(set(prompts)) == len(prompts)
    assert {len(prompt) for prompt in prompts} == {7}


def test_a_failure_is_told_by_the_exit_status(output: Capture) -> None:
    """A shed request is none."""
    arguments = ["--traffic", "plain", "--streams", "1", "--seconds", "0.2", "--warm-up-s", "0"]
    with server_thread(ScriptedCompletions(breaking_off(0.0))) as url:
        assert main(["--url", url, *arguments]) == 1
    with server_thread(ScriptedCompletions(refusing(429, retry_after="1"))) as url:
        assert main(["--url", url, *arguments]) == 0
    assert json.loads(output().splitlines()[-1])["unit"] == "streams"


def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    """A sentence, no trace."""
    with server_thread(ScriptedCompletions(telling(0.0))) as url:
        pass
    assert main(["--url", url, "--traffic", "plain", "--rates", "1"]) == 1
    assert f"{url} does not serve models" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "is_ours"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://127.9.9.9", True),
        ("http://localhost:8000", True),
        ("http://[::1]:8000", True),
        ("http://0.0.0.0:8000", False),
        ("http://10.0.0.1", False),
        ("http://localhost.example.com", False),
        ("http://127.0.0.1.example.com", False),
        ("http://127.0.0.1@example.com", False),
        ("http://", False),
    ],
)
def test_addresses_of_this_machine(url: str, is_ours: bool) -> None:
    """And such as only look like one."""
    assert is_loopback(url) is is_ours


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--url", "http://10.0.0.1", "--rates", "1"], "--i-own-this-host"),
        (["--url", "127.0.0.1:8000", "--rates", "1"], "an address such as http://127.0.0.1:8000"),
        (["--rates", "1", "--streams", "1"], "not allowed with"),
        ([], "one of the arguments --rates --streams is required"),
        (["--rates", "1", "0"], "greater than 0"),
        (["--streams", "-1"], "greater than 0"),
        (["--rates", "1", "--seconds", "5", "--warm-up-s", "5"], "must be less than --seconds 5"),
        (["--rates", "1", "--api-key-file", "/no/such/file"], "cannot be read"),
    ],
)
def test_options_that_are_refused(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is sent, with exit status 2."""
    with pytest.raises(SystemExit, match="2"):
        parse("", arguments)
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_host_of_ones_own() -> None:
    """Its owner may load it."""
    assert parse("", ["--url", "http://10.0.0.1", "--rates", "1", "--i-own-this-host"]).url == "http://10.0.0.1"


def test_nano_traffic_changes_its_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every so many seconds, through all domains; prompts come in turn."""
    monkeypatch.setattr("ops.bench.load.prompts", lambda _checkpoint, domain, _count: [[len(domain)], [0]])
    taken = questions_of(argparse.Namespace(traffic="nano", domain_s=10.0))
    domains = [taken.take(at)[0] for at in (0.0, 9.0, 11.0, 21.0, 31.0)]
    assert domains == [("text", 0), ("text", 1), ("arithmetic", 0), ("tools", 0), ("text", 0)]
