"""What the page shows of a state: every panel, the heatmaps by mouse and keyboard, themes, and what is missing."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from ops.console.browser import show_past, sign_in
from tests.console.conftest import Page, both_shapes

BROKEN = re.compile(r"NaN|undefined|Infinity|\[object|null")
LEFT, TOP = 26, 4  # of the first cell in the heatmap's canvas
PIXEL = """
const canvas = document.querySelector("#experts-map canvas");
const context = canvas.getContext("2d");
return [...context.getImageData(values[0], values[1], 1, 1).data];
"""
NAMELESS = """
const labels = ["aria-label", "aria-labelledby"];
const named = (node) => labels.some((label) => node.getAttribute(label)) || node.textContent.trim();
return [...document.querySelectorAll("button, section, [role=img], [role=application], progress, dialog")]
  .filter((node) => !named(node) && !node.hidden).map((node) => node.outerHTML);
"""
WATCH = """
window.spoken = 0;
const changes = { childList: true, characterData: true, subtree: true };
new MutationObserver(() => window.spoken++).observe(document.getElementById("announcement"), changes);
"""


@both_shapes
def test_every_panel_shows_its_numbers(page: Page) -> None:
    """With a past of 100 s each panel has figures, and nowhere is a figure that no code meant to show."""
    show_past(page.driver, page.demo, page.shape, page.clock, 100)
    state = page.state()
    size = len(state["experts"]["layers"])
    page.click("layers-details")
    page.wait(lambda: page.driver.execute_script("return document.getElementById('layers').rows.length") == size)
    text = page.driver.execute_script("return document.body.innerText")
    assert BROKEN.findall(text) == []
    # Only what the made-up cluster does not record: an autoscaled expert tier, continuations, and rebalances before.
    assert len(re.findall("no data", text)) == 4
    assert f"{state['model']['ep_size']} of {state['model']['ep_size']} expert ranks" in page.text("health-sentence")
    assert "tokens of a verification" in page.text("acceptance-length")
    assert re.search(
        r"(Attention waits for experts|Experts wait for attention): .*\d+ % of a step", page.text("who-waits")
    )
    for body, number in (("members", len(state["members"])), ("hottest", 12), ("acceptance", 3), ("parts", 5)):
        rows = page.driver.execute_script("return document.getElementById(arguments[0]).rows.length", body)
        assert rows == number, body


def test_answers_agree_with_the_state(signed_in: Page) -> None:
    """The hottest rank and expert that the top names are those of the numbers."""
    experts = signed_in.state()["experts"]
    pairs = np.array([layer["rank_pairs"] for layer in experts["layers"]])
    relative = pairs / pairs.mean(axis=1, keepdims=True)
    layer, rank = np.unravel_index(relative.argmax(), relative.shape)
    hottest = experts["hottest"][0]
    answer = signed_in.text("answer-hot")
    assert f"layer {experts['layers'][layer]['layer_id']}, EP rank {rank}: {relative.max():.2f}×" in answer
    assert f"layer {hottest['layer_id']}, expert {hottest['logical_id']}: {hottest['load']:.1f}×" in answer


@both_shapes
def test_keyboard_walks_through_the_heatmap(page: Page) -> None:
    """Arrow keys, Home, End, Page Up and Down move the cursor within bounds; Enter selects what it says."""
    _sign_in_held(page)
    page.driver.execute_script("document.getElementById('experts-map').focus()")
    layers, last = page.shape.layer_ids, page.shape.num_logical_experts - 1
    for keys, layer, expert in (
        ([], layers[0], 0),
        ([Keys.ARROW_LEFT, Keys.ARROW_UP], layers[0], 0),
        ([Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT], layers[1], 2),
        ([Keys.END], layers[1], last),
        ([Keys.ARROW_RIGHT, Keys.PAGE_DOWN], layers[-1], last),
        ([Keys.HOME, Keys.PAGE_UP, Keys.ARROW_RIGHT], layers[0], 1),
    ):
        page.press(*keys) if keys else None
        assert page.text("experts-readout").startswith(f"Layer {layer}, expert {expert}: ")
    page.press(Keys.ENTER)
    assert page.text("selected-text").startswith(f"Layer {layers[0]}, expert 1: ")
    page.press(Keys.TAB)
    assert page.driver.switch_to.active_element.get_attribute("id") == "ranks-map"
    page.press(Keys.ARROW_RIGHT)
    assert page.text("experts-readout").startswith(f"Layer {layers[0]}, EP rank 1: ")


@both_shapes
def test_mouse_reads_and_selects_the_cell_under_it(page: Page) -> None:
    """What is under the mouse is what the numbers say of that layer and expert, and where its copies are."""
    _sign_in_held(page)
    state, slots = page.state(), page.demo.answer("GET", "/admin/map", {})[1]
    load = np.array(state["load"])
    layer, expert = (int(each) for each in np.unravel_index((load / load.mean(1, keepdims=True)).argmax(), load.shape))
    _over(page, layer, expert).click().perform()
    held = np.array(slots["physical_to_logical"][layer]).reshape(page.shape.ep_size, -1)
    ranks = np.flatnonzero((held == expert).any(axis=1))
    says = page.text("selected-text")
    assert says.startswith(
        f"Layer {page.shape.layer_ids[layer]}, expert {expert}: {load[layer, expert] / load[layer].mean():.1f}×"
    )
    assert f"EP rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))};" in says
    assert says == page.text("experts-readout")


def test_colours_tell_more_from_less(signed_in: Page) -> None:
    """The hottest cell is orange and the coolest is blue in both themes; copies have colours of their own."""
    _hold_at_first(signed_in)
    load = np.array(signed_in.state()["load"])
    relative = load / load.mean(axis=1, keepdims=True)
    hot, cool = (np.unravel_index(at, load.shape) for at in (relative.argmax(), relative.argmin()))
    for _ in range(2):
        red, _, blue, _ = _pixel(signed_in, *hot)
        assert red > blue + 40
        red, _, blue, _ = _pixel(signed_in, *cool)
        assert blue > red + 40
        signed_in.click("theme")
    signed_in.driver.find_element("css selector", "input[value=copies]").click()
    assert signed_in.text("experts-title") == "Experts: copies"
    red, green, blue, _ = _pixel(signed_in, *hot)
    assert green > red + 20, "more copies than one"


def test_theme_follows_the_system_until_it_is_chosen(signed_in: Page) -> None:
    """Dark where the system is dark; what the operator chooses wins and survives a reload."""
    back = "return getComputedStyle(document.body).backgroundColor"
    colour = {}
    for theme in ("light", "dark"):
        _prefer(signed_in, theme)
        colour[theme] = signed_in.wait(lambda: signed_in.driver.execute_script(back))
    assert colour["light"] != colour["dark"]
    assert signed_in.text("theme") == "Light mode"
    signed_in.click("theme")
    assert signed_in.driver.execute_script(back) == colour["light"]
    signed_in.driver.refresh()
    signed_in.wait_text("model", signed_in.shape.name)
    assert signed_in.driver.execute_script(back) == colour["light"]
    _prefer(signed_in, "")


def test_what_nobody_records_is_no_data_and_never_zero(signed_in: Page) -> None:
    """Members without metrics: panels say that there are no data."""
    signed_in.hold()
    for second in (10, 11):
        state = _later(signed_in, second)
        for member in state["members"]:
            member["metrics"] = {}
        signed_in.receive(state)
    for body in (
        "acceptance",
        "draft-lengths",
        "draft-reasons",
        "parts",
        "busy",
        "latencies",
        "streams",
        "flows",
        "autoscaler",
    ):
        cells = signed_in.driver.execute_script(
            "return [...document.querySelectorAll(`#${arguments[0]} td`)].map((cell) => cell.textContent)", body
        )
        assert "no data" in cells, body
        assert [cell for cell in cells if re.match(r"0\b", cell)] == [], body
    for node in ("acceptance-length", "who-waits", "traffic", "answer-users"):
        assert "no data" in signed_in.text(node)
    assert "no data running, no data waiting" in signed_in.text("health-sentence")


def test_empty_load_is_not_drawn_as_balance(signed_in: Page) -> None:
    """Before the first request nothing is hot, sure or balanced: nothing was measured."""
    signed_in.hold()
    state = _later(signed_in, 10)
    state["experts"]["window_tokens"] = 0.0
    state["load"] = [[0.0] * len(layer) for layer in state["load"]]
    for layer in state["experts"]["layers"]:
        layer["rank_pairs"] = [0.0] * len(layer["rank_pairs"])
    signed_in.receive(state)
    assert signed_in.text("answer-hot") == signed_in.text("answer-gate") == "no load measured yet"
    assert "no data" in signed_in.driver.execute_script("return document.querySelector('#charts .now').textContent")


def test_alarms_are_loud_and_in_order(signed_in: Page) -> None:
    """A lost rank and a stalled rebalance are broken, a pause and drift are warnings, and the worst comes first."""
    signed_in.hold()
    state = _later(signed_in, 10)
    state["experts"]["drift"] = "half of the layers"
    state["experts"]["balancer"].update(is_stalled=True, is_paused=True, phase="preparing", phase_seconds=700.0)
    state["members"] = [member for member in state["members"] if member["ep_rank"] != 3]
    state["members"][-1]["age_s"] = 31.0
    signed_in.receive(state)
    assert signed_in.text("health-word") == "■ Broken"
    assert "7 of 8 expert ranks" in signed_in.text("health-sentence")
    problems = [item.text for item in signed_in.driver.find_elements("css selector", "#problems li")]
    assert problems[0] == "No ready member holds EP rank 3: steps wait until one does."
    assert problems[1].startswith("The rebalance is stalled: preparing for 12 min.")
    assert any(text.endswith("(EP rank 7) last reported 31 s ago.") for text in problems)
    assert {"Drift: half of the layers.", "The balancer is paused: no rebalance begins by itself."} <= set(problems)
    assert signed_in.text("stalled") == "STALLED: preparing for 12 min"
    assert signed_in.text("paused") == "PAUSED: no rebalance begins by itself"
    assert signed_in.driver.title.startswith("■ Broken")


def test_what_is_planned_or_forgotten_is_not_told_as_what_was(signed_in: Page) -> None:
    """A plan is no measurement, and a coordinator that has just started knows of no rebalance before it."""
    signed_in.hold()
    state = _later(signed_in, 10)
    record = state["experts"]["balancer"]["history"][-1]
    record.update(outcome="done", balancedness_before=0.7, balancedness_planned=0.99, balancedness_after=None)
    signed_in.receive(state)
    assert signed_in.text("answer-last").startswith("balancedness 0.70 → 0.99 planned (not measured yet), for ")
    state = _later(signed_in, 11)
    state["experts"]["balancer"]["history"] = []
    signed_in.receive(state)
    assert signed_in.text("answer-last") == "none since the coordinator started"
    assert signed_in.text("rebalances") == "None since the coordinator started."


def test_sequences_without_tokens_are_broken(signed_in: Page) -> None:
    """Health checks that answer prove nothing: sequences that run for half a minute without a token are told."""
    signed_in.hold()
    for second in range(40, 72, 2):
        state = _later(signed_in, second)
        for member in state["members"]:
            if member["role"] == "gateway":
                member["metrics"]["step35_completion_tokens_total"] = [[[], 500.0]]
        signed_in.receive(state)
    assert re.search(r"sequences run, but no token came in 30 s", signed_in.text("problems"))


def test_data_never_become_markup(signed_in: Page) -> None:
    """What a name or an event says is shown as it is."""
    signed_in.hold()
    state = _later(signed_in, 10)
    trap = "<img src=x onerror=alert(1)><b>bold</b>"
    state["model"]["name"] = state["experts"]["balancer"]["last_decision"] = state["members"][0]["host"] = trap
    state["events"].append({"time": state["time"], "kind": "balancer", "text": trap, "member": None})
    signed_in.receive(state)
    assert signed_in.text("model") == signed_in.text("decision") == trap
    assert trap in signed_in.text("events")
    assert trap in signed_in.text("members")
    assert signed_in.driver.find_elements("css selector", "img, b") == []


def test_page_can_be_read_aloud(signed_in: Page) -> None:
    """Landmarks, one first heading, names for whatever has a role, header cells with a scope."""
    driver = signed_in.driver
    assert [len(driver.find_elements("css selector", tag)) for tag in ("body > header", "main", "h1")] == [1, 1, 1]
    assert signed_in.call(NAMELESS) == []
    assert driver.find_elements("css selector", "th:not([scope])") == []
    assert driver.find_elements("css selector", "canvas:not([aria-hidden]):not([aria-label])") == []


def test_only_changes_of_health_are_announced(signed_in: Page) -> None:
    """Figures that move each second are not read aloud; a change of health is."""
    signed_in.hold()
    signed_in.call(WATCH)
    for second in (20, 21, 22):
        signed_in.receive(_later(signed_in, second))
    assert signed_in.call("return window.spoken;") == 0
    state = _later(signed_in, 23)
    state["experts"]["balancer"]["is_paused"] = True
    signed_in.receive(state)
    assert signed_in.call("return window.spoken;") > 0
    assert "paused" in signed_in.text("announcement")


def test_restarted_coordinator_begins_a_new_past(signed_in: Page) -> None:
    """A clock that goes back is another coordinator's: what was counted before is forgotten."""
    signed_in.hold()
    state = _later(signed_in, 30)
    signed_in.receive(state)
    earlier = copy.deepcopy(state)
    earlier["time"] -= 300.0
    earlier["model"]["name"] = "another"
    signed_in.receive(earlier)
    assert signed_in.text("model") == "another"
    assert signed_in.text("acceptance-length") == "no data"


def _sign_in_held(page: Page) -> None:
    sign_in(page.driver, page.demo.url)
    _hold_at_first(page)


def _hold_at_first(page: Page) -> None:
    page.wait(lambda: page.text("experts-title") != "Experts")
    page.hold()


def _later(page: Page, second: int) -> dict[str, Any]:
    page.clock.second = second
    return page.state()


def _over(page: Page, layer: int, expert: int) -> ActionChains:
    """The mouse over the middle of a cell."""
    canvas = page.driver.find_element("css selector", "#experts-map canvas")
    page.driver.execute_script("arguments[0].scrollIntoView({ block: 'center' })", canvas)
    x, y = _middle(page, layer, expert)
    size = canvas.size
    return ActionChains(page.driver).move_to_element_with_offset(
        canvas, x - size["width"] // 2, y - size["height"] // 2
    )


def _middle(page: Page, layer: int, expert: int) -> tuple[int, int]:
    cursor = "const style = document.querySelector('#experts-map .cursor').style; return [style.width, style.height];"
    width, height = (float(each.removesuffix("px")) for each in page.call(cursor))
    return LEFT + int((expert + 0.5) * width), TOP + int((layer + 0.5) * height)


def _pixel(page: Page, layer: Any, expert: Any) -> list[int]:
    return list(page.call(PIXEL, *_middle(page, int(layer), int(expert))))


def _prefer(page: Page, theme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": theme}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
