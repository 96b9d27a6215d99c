"""The operator's page in a real browser on a real cluster's admin port: what it shows is so, what is ordered is done.

Runs after `test_admin.py` and before `test_cluster.py`, whose last test ends the cluster that all three share.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.keys import Keys

from ops.console.browser import SETTLE
from tests.console.driven_page import DrivenPage, chromium_or_skip
from tests.live.cluster_process import ClusterProcess
from tests.live.conftest import ENDLESS

NUM_STREAMS = 3
MEASURED_S = 60.0  # until a new cluster knows where its load is
REBALANCE_S = 60.0
WINDOW_S = 30.5  # of the page's rates, and what it allows for a clock that runs late
MOST_TABS = 60
# What the coordinator has answered, kept beside what the page makes of it.
TAP = """
const ask = window.fetch;
window.seen = [];
window.fetch = async (...given) => {
    const answer = await ask(...given);
    if (given[0] === "admin/state" && answer.ok) window.seen.push(await answer.clone().json());
    return answer;
};
"""
ROWS = """
return [...document.getElementById(arguments[0]).rows].map((row) => [...row.cells].map((cell) => cell.textContent));
"""
BACKGROUND = "return getComputedStyle(document.body).backgroundColor"
# A script that somebody smuggled into the page, and what it would send elsewhere.
SMUGGLE = """
const violated = [];
const both = new Promise((resolve) => {
    document.addEventListener("securitypolicyviolation", ({ effectiveDirective }) => {
        violated.push(effectiveDirective);
        if (violated.length === 2) resolve();
    });
});
const script = document.createElement("script");
script.textContent = "window.smuggled = true";
document.body.append(script);
const elsewhere = await fetch(values[0], { mode: "no-cors" }).then(() => "answered", () => "refused");
await both;
return [violated, window.smuggled === true, elsewhere];
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chrome]:
    """One browser for this file."""
    with chromium_or_skip() as driver:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": TAP})
        yield driver


@pytest.fixture
def page(chromium: Chrome, cluster: ClusterProcess) -> Iterator[DrivenPage]:
    """The page before anybody has signed in: the token of the test before is forgotten."""
    chromium.get(cluster.admin_url)
    chromium.execute_script("sessionStorage.clear()")
    page = DrivenPage(chromium)
    page.errors()
    chromium.refresh()
    yield page
    page.check_errors()
    chromium.get("about:blank")


@pytest.fixture
def signed_in(page: DrivenPage, cluster: ClusterProcess) -> DrivenPage:
    _enter(page, _token(cluster))
    page.wait_text("model", "tiny")
    return page


@pytest.fixture
def admin(cluster: ClusterProcess) -> Iterator[httpx.Client]:
    """The same port without the page."""
    headers = {"authorization": f"Bearer {_token(cluster)}"}
    with httpx.Client(base_url=cluster.admin_url, headers=headers, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def streams(live_cluster: ClusterProcess) -> Iterator[None]:
    """Clients, each with a stream that outlives the tests. The cluster runs one sequence, so the others wait."""
    stop = threading.Event()
    with openai.OpenAI(base_url=f"{live_cluster.url}/v1", api_key="none", max_retries=0, timeout=100) as client:
        with ThreadPoolExecutor(NUM_STREAMS) as threads:
            counts = [threads.submit(_stream_until, client, seed, stop) for seed in range(NUM_STREAMS)]
            try:
                yield
            finally:
                stop.set()
            assert min(count.result() for count in counts) > 0


def test_wrong_token_is_refused_and_the_real_one_connects(page: DrivenPage, cluster: ClusterProcess) -> None:
    """The page asks again, shows nothing before it has the right one, and then data come."""
    page.allowed.append("401")
    _enter(page, "of-another-cluster")
    page.wait_text("token-message", "does not know this token")
    assert page.find("token").is_displayed()
    assert page.text("model") == ""
    _enter(page, _token(cluster))
    page.wait_text("model", "tiny")
    assert not page.find("token").is_displayed()
    assert page.text("connection") == "connected"


def test_policy_is_in_force(signed_in: DrivenPage, cluster: ClusterProcess) -> None:
    """A smuggled script does not run, and nothing leaves for another port, not even the cluster's own."""
    signed_in.allowed.append("Content Security Policy")
    violated, has_run, elsewhere = signed_in.call(SMUGGLE, f"{cluster.url}/health")
    assert violated == ["script-src-elem", "connect-src"]
    assert not has_run
    assert elsewhere == "refused"


def test_dark_where_the_system_is_dark(signed_in: DrivenPage) -> None:
    """The stylesheet of the admin port follows the system."""
    backgrounds = set()
    for scheme in ("light", "dark", ""):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        signed_in.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        backgrounds.add(signed_in.driver.execute_script(BACKGROUND))
    assert len(backgrounds) == 2


@pytest.mark.usefixtures("streams")
def test_page_shows_what_the_cluster_measures(signed_in: DrivenPage, admin: httpx.Client) -> None:
    """Heatmaps, balancedness, streams, tiers and topology are what the coordinator answered, and what is true."""
    page = signed_in
    page.wait(lambda: _is_measured(page), MEASURED_S)
    page.hold()
    page.driver.execute_async_script(SETTLE)
    seen = page.call("return window.seen;")
    state, now = seen[-1], admin.get("/admin/state").json()
    assert _members(state) == _members(now)
    assert (state["model"], state["experts"]["map_epoch"]) == (now["model"], now["experts"]["map_epoch"])
    _check_heatmaps(page, state)
    _check_balance(page, state["experts"])
    _check_streams(page, state)
    _check_tiers(page, [each for each in seen if each["time"] >= state["time"] - WINDOW_S])
    _check_topology(page, state)


@pytest.mark.usefixtures("streams")
def test_what_is_ordered_is_done(signed_in: DrivenPage, admin: httpx.Client) -> None:
    """Pause and pin by keys alone, dry run, rebalance, unpin, resume: on the page, in the admin API and in the map."""
    page = signed_in
    page.wait_text("answer-hot", "EP rank", MEASURED_S)
    _pause_by_keyboard(page)
    page.wait_text("paused", "PAUSED")
    page.wait_text("events", "an operator paused it")
    assert _experts(admin)["balancer"]["is_paused"]
    page.wait_text("phase", "Idle", REBALANCE_S)  # one that had begun by itself goes on
    layer_id, logical_id, ep_rank = _pin_elsewhere_by_keyboard(page)
    page.wait_text("pinned", f"Layer {layer_id}, expert {logical_id}")
    assert [(pin["layer_id"], pin["logical_id"]) for pin in _experts(admin)["pinned"]] == [(layer_id, logical_id)]
    _dry_run(page, admin)
    _rebalance(page, admin)
    assert _ranks_of(admin, layer_id, logical_id) == [ep_rank]
    page.wait(lambda: page.text("selected-text").endswith(f"; on EP rank {ep_rank}; pinned."))
    page.confirmed("unpin", f"may move expert {logical_id} of layer {layer_id}")
    page.wait_text("pinned", "No expert is pinned.")
    assert _experts(admin)["pinned"] == []
    page.confirmed("pause-balancer", "may begin by themselves again")
    page.wait_text("outcome-text", "The balancer is resumed.")
    page.wait(lambda: not page.find("paused").is_displayed())
    assert not _experts(admin)["balancer"]["is_paused"]


def _stream_until(client: openai.OpenAI, seed: int, stop: threading.Event) -> int:
    """How many events came. It leaves with the first one after `stop`; then the cluster begins with the next one's."""
    events = client.completions.create(
        model="tiny",
        prompt=[5, 6, 7],
        max_tokens=ENDLESS,
        temperature=1.0,
        seed=seed,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    count = 0
    with events:
        for _ in events:
            count += 1
            if stop.is_set():
                break
    return count


def _token(cluster: ClusterProcess) -> str:
    return (cluster.file.parent / "admin.token").read_text().strip()


def _enter(page: DrivenPage, token: str) -> None:
    page.wait(page.find("token").is_displayed)
    page.find("token-input").send_keys(token, Keys.ENTER)


def _rows(page: DrivenPage, body: str) -> list[list[str]]:
    """A table's cells."""
    rows: list[list[str]] = page.driver.execute_script(ROWS, body)
    return rows


def _number(text: str) -> float:
    """The first one of a text."""
    found = re.search(r"\d[\d,]*(\.\d+)?", text)
    assert found is not None, text
    return float(found[0].replace(",", ""))


def _experts(admin: httpx.Client) -> dict[str, Any]:
    answer: dict[str, Any] = admin.get("/admin/experts").raise_for_status().json()
    return answer


def _is_measured(page: DrivenPage) -> bool:
    """Every figure that needs some seconds of traffic is there."""
    streams, busy, parts = (_rows(page, body) for body in ("streams", "busy", "parts"))
    is_counted = [row[1:3] for row in streams] == [["1", "2"]] and not streams[0][3].startswith("0 ")
    return is_counted and len(parts) > 2 and all("no data" not in row and "0.0 %" not in row for row in busy)


def _members(state: dict[str, Any]) -> list[tuple[str, str]]:
    return [(member["role"], member["member"]) for member in state["members"]]


def _check_heatmaps(page: DrivenPage, state: dict[str, Any]) -> None:
    """The first layer's cells, read with the keys; and every layer saw every token."""
    load, layers = np.array(state["load"]), state["experts"]["layers"]
    assert load.sum(axis=1) == pytest.approx(load.sum(axis=1).mean(), rel=0.01)
    page.driver.execute_script("document.getElementById('experts-map').focus()")
    for map_, column, pairs in (("experts-map", "expert", load[0]), ("ranks-map", "EP rank", layers[0]["rank_pairs"])):
        assert page.driver.switch_to.active_element.get_attribute("id") == map_
        for number, each in enumerate(pairs):
            read = page.text("experts-readout")
            assert read.startswith(f"Layer {layers[0]['layer_id']}, {column} {number}: ")
            relative, absolute = (_number(part) for part in (read.partition(": ")[2], read.partition("(")[2]))
            assert relative == pytest.approx(each / np.mean(pairs), abs=0.051)
            assert absolute == pytest.approx(each, abs=0.051)
            page.press(Keys.ARROW_RIGHT)
        page.press(Keys.TAB)


def _check_balance(page: DrivenPage, experts: dict[str, Any]) -> None:
    now = page.driver.find_element("css selector", "#charts .now").get_property("textContent")
    mean, least = (float(part) for part in str(now).split(" / "))
    assert mean == pytest.approx(experts["balancedness"], abs=0.0051)
    assert least == pytest.approx(min(layer["balancedness"] for layer in experts["layers"]), abs=0.0051)
    shown = [(row[0], row[2]) for row in _rows(page, "hottest")]
    assert shown == [
        (f"Layer {each['layer_id']}, expert {each['logical_id']}", ", ".join(map(str, each["ep_ranks"])))
        for each in experts["hottest"]
    ]


def _check_streams(page: DrivenPage, state: dict[str, Any]) -> None:
    """One runs, two wait: that is what the test has sent."""
    (actor,) = (member for member in state["members"] if member["role"] == "attention")
    ((name, running, waiting, usage, *_),) = _rows(page, "streams")
    assert actor["member"].endswith(name)
    assert (running, waiting) == ("1", "2")
    assert _number(usage) == pytest.approx(100 * actor["metrics"]["step35_kv_cache_usage_ratio"][0][1], abs=0.51)
    assert "1 running, 2 waiting" in page.text("health-sentence")
    assert page.text("traffic").startswith("Open requests: 3.")
    assert _number(page.text("traffic").partition("Completion tokens: ")[2]) > 0.0


def _check_tiers(page: DrivenPage, states: list[dict[str, Any]]) -> None:
    """Shares of a step over the same states; the ranks compute, but less than all the time."""
    first, last = (
        next(member["metrics"] for member in state["members"] if member["role"] == "attention")
        for state in (states[0], states[-1])
    )
    steps = last["step35_step_seconds"][0][1]["total"] - first["step35_step_seconds"][0][1]["total"]
    before = {part: seconds for (part,), seconds in first["step35_step_part_seconds_total"]}
    shares = {part: (at - before[part]) / steps for (part,), at in last["step35_step_part_seconds_total"]}
    *shown, other = [_number(row[1]) / 100 for row in _rows(page, "parts")]
    assert shown == pytest.approx(list(shares.values()), abs=0.0051)
    assert other == pytest.approx(max(0.0, 1.0 - sum(shares.values())), abs=0.0051)
    waiting = round(100 * shares["combine_wait"])
    assert abs(_number(page.text("who-waits").partition(":")[2]) - waiting) <= 1
    assert [rank for rank, _ in _rows(page, "busy")] == ["0", "1"]
    assert all(0 < _number(share) <= 100 for _, share in _rows(page, "busy"))


def _check_topology(page: DrivenPage, state: dict[str, Any]) -> None:
    """One process of each role, and a rank for each half of the experts; all on this host, all ready, none silent."""
    rows = _rows(page, "members")
    assert [row[1] for row in rows] == ["coordinator", "gateway", "attention", "expert, EP rank 0", "expert, EP rank 1"]
    assert {row[2] for row in rows} == {member["member"].rpartition("::")[2] for member in state["members"]}
    assert [row[0] for row in rows] == [state["members"][0]["host"], "", "", "", ""]
    assert {row[3] for row in rows} == {"ready"}
    assert "2 of 2 expert ranks, 1 of 1 attention actor ready" in page.text("health-sentence")


def _pause_by_keyboard(page: DrivenPage) -> None:
    _tab_to(page, "pause-balancer")
    page.press(Keys.ENTER)
    _say_yes_by_keyboard(page, "No rebalance will begin by itself")
    page.wait_text("outcome-text", "The balancer is paused.")


def _pin_elsewhere_by_keyboard(page: DrivenPage) -> tuple[int, int, int]:
    """Pins an expert to one rank, so that the map has to change: layer, expert, rank."""
    _tab_to(page, "experts-map", Keys.SHIFT)
    page.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ENTER)
    selected = page.text("selected-text")
    place = re.match(r"Layer (\d+), expert (\d+): .* on EP ranks? ([\d, ]+); not pinned", selected)
    assert place is not None, selected
    wanted = "1" if place[3] == "0" else "0"
    page.press(Keys.TAB)
    for ep_rank in "01":
        page.press(Keys.TAB)
        box = page.driver.switch_to.active_element
        assert box.get_attribute("value") == ep_rank
        if box.is_selected() != (ep_rank == wanted):
            page.press(Keys.SPACE)
    page.press(Keys.TAB)
    assert page.driver.switch_to.active_element.get_attribute("id") == "pin"
    page.press(Keys.ENTER)
    _say_yes_by_keyboard(page, f"shall stay on EP rank {wanted}.")
    page.wait_text("outcome-text", f"Pinned to EP rank {wanted}.")
    return int(place[1]), int(place[2]), int(wanted)


def _tab_to(page: DrivenPage, id_: str, held: str = "") -> None:
    """Tab by tab; held: Keys.SHIFT goes back."""
    for _ in range(MOST_TABS):
        if page.driver.switch_to.active_element.get_attribute("id") == id_:
            return
        page.press(held + Keys.TAB)
    raise AssertionError(f"no number of tabs leads to {id_}")


def _say_yes_by_keyboard(page: DrivenPage, line: str) -> None:
    """Enter by habit would say no."""
    page.wait(page.find("confirm").is_displayed)
    assert line in page.text("confirm-lines")
    for id_, key in (("confirm-no", Keys.TAB), ("confirm-yes", Keys.ENTER)):
        assert page.driver.switch_to.active_element.get_attribute("id") == id_
        page.press(key)


def _dry_run(page: DrivenPage, admin: httpx.Client) -> None:
    """Says what would be done, and does nothing."""
    before = _experts(admin)
    page.click("dry-run")
    page.wait_text("outcome-text", "Dry run. A rebalance would make")
    after = _experts(admin)
    assert after["map_epoch"] == before["map_epoch"]
    assert after["balancer"]["phase"] == "idle"
    assert len(after["balancer"]["history"]) == len(before["balancer"]["history"])


def _rebalance(page: DrivenPage, admin: httpx.Client) -> None:
    """Confirmed, seen to its end on the page, and recorded by the coordinator."""
    epoch = _experts(admin)["map_epoch"]
    page.confirmed("rebalance", "A rebalance would make")
    page.wait_text("outcome-text", "A rebalance begins:")
    page.wait(lambda: _number(page.text("map-facts")) > epoch and page.text("phase") == "Idle", REBALANCE_S)
    after = _experts(admin)
    record = after["balancer"]["history"][-1]
    assert after["map_epoch"] == _number(page.text("map-facts"))
    assert (record["trigger"], record["outcome"]) == ("manual", "done")
    shown = _rows(page, "rebalances")[0]
    assert (shown[1], shown[2], shown[-1]) == ("manual", str(record["num_moves"]), "done")


def _ranks_of(admin: httpx.Client, layer_id: int, logical_id: int) -> list[int]:
    """Where the map has copies of an expert."""
    slots, model = admin.get("/admin/map").json(), admin.get("/admin/state").json()["model"]
    held = np.array(slots["physical_to_logical"][model["layer_ids"].index(layer_id)]).reshape(model["ep_size"], -1)
    ranks: list[int] = np.flatnonzero((held == logical_id).any(axis=1)).tolist()
    return ranks
