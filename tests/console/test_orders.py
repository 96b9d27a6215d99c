"""Orders from the page: each asks before it changes anything, and says how it ended."""

from __future__ import annotations

import re
from typing import Any

from tests.console.conftest import Page

DONE_S = 60  # a rebalance of the made-up cluster takes less


def test_dry_run_says_what_would_happen_and_does_nothing(signed_in: Page) -> None:
    """Moves, stages, gain, cost and balancedness in words; the balancer stays idle."""
    _drifted(signed_in)
    signed_in.click("dry-run")
    signed_in.wait_text("outcome-text", "Dry run.")
    said = signed_in.text("outcome-text")
    assert re.search(r"A rebalance would make \d+ moves in 6 stages\. Gain: \d+\.\d % .* Cost: .* of serving", said)
    assert re.search(r"Balancedness: 0\.\d\d now, (0\.\d\d|1\.00) as predicted", said)
    assert _balancer(signed_in)["phase"] == "idle"


def test_rebalance_begins_only_when_it_is_confirmed(signed_in: Page) -> None:
    """Cancel and Escape change nothing; the confirmed one is seen preparing and then in the table."""
    _drifted(signed_in)
    for refuse in (lambda: signed_in.click("confirm-no"), signed_in.escape):
        signed_in.click("rebalance")
        signed_in.wait(signed_in.find("confirm").is_displayed)
        assert "moves in 6 stages" in signed_in.text("confirm-lines")
        refuse()
        signed_in.wait(lambda: not signed_in.find("confirm").is_displayed())
        signed_in.wait_ordered()
        assert "nothing was ordered" in signed_in.text("outcome-text")
        assert _balancer(signed_in)["phase"] == "idle"
    signed_in.click("rebalance")
    signed_in.wait(signed_in.find("confirm").is_displayed)
    signed_in.click("confirm-yes")
    signed_in.wait_text("outcome-text", "A rebalance begins:")
    signed_in.clock.second += 3
    signed_in.wait_text("phase", "Preparing: ranks read experts, stage 1 of 6")
    assert signed_in.find("progress").is_displayed()
    assert re.fullmatch(r"\d+ of \d+ slots of this stage loaded", signed_in.text("progress-text"))
    assert "under way" in signed_in.text("answer-last")
    signed_in.clock.second += DONE_S
    signed_in.wait_text("phase", "Idle")
    first = signed_in.driver.find_element("css selector", "#rebalances tr").text
    assert "manual" in first
    assert first.endswith("done")
    assert "balancedness 0." in signed_in.text("answer-last")


def test_nothing_to_gain_is_said_instead_of_asked(signed_in: Page) -> None:
    """A rebalance that the balancer would not make is not offered."""
    signed_in.click("rebalance")
    signed_in.wait_text("outcome-text", "Nothing to do:")
    assert not signed_in.find("confirm").is_displayed()


def test_pin_and_unpin_a_selected_expert(signed_in: Page) -> None:
    """From the list to the selection, ranks ticked, pinned, listed as pinned, and free again."""
    expert = signed_in.state()["experts"]["hottest"][0]
    place = f"Layer {expert['layer_id']}, expert {expert['logical_id']}"
    signed_in.driver.find_element("css selector", "#hottest button").click()
    assert signed_in.text("selected-text").startswith(f"{place}: ")
    assert not signed_in.find("unpin").is_enabled()
    assert _ticked(signed_in) == expert["ep_ranks"]
    for box in signed_in.driver.find_elements("css selector", "#selected-ranks input"):
        if box.is_selected() != (box.get_attribute("value") in ("2", "5")):
            box.click()
    signed_in.confirmed("pin", "shall stay on EP ranks 2, 5")
    signed_in.wait_text("outcome-text", "Pinned to EP ranks 2, 5.")
    signed_in.clock.second += 1
    signed_in.wait_text("pinned", place)
    assert "; pinned." in signed_in.text("selected-text")
    signed_in.confirmed("unpin", "may move expert")
    signed_in.wait_text("outcome-text", "Unpinned.")
    signed_in.clock.second += 1
    signed_in.wait_text("pinned", "No expert is pinned.")
    assert _ticked(signed_in) == [2, 5], "what is ticked is the operator's until something else is selected"


def test_pin_without_a_rank_is_not_sent(signed_in: Page) -> None:
    """The page says what is missing."""
    signed_in.driver.find_element("css selector", "#hottest button").click()
    for box in signed_in.driver.find_elements("css selector", "#selected-ranks input:checked"):
        box.click()
    signed_in.click("pin")
    signed_in.wait_text("outcome-text", "Tick at least one rank")


def test_pause_and_resume_the_balancer(signed_in: Page) -> None:
    """A pause is shown in capitals until it is resumed."""
    signed_in.confirmed("pause-balancer", "No rebalance will begin by itself")
    signed_in.wait_text("outcome-text", "The balancer is paused.")
    signed_in.clock.second += 1
    signed_in.wait_text("paused", "PAUSED")
    assert signed_in.text("pause-balancer") == "Resume balancer…"
    signed_in.confirmed("pause-balancer", "may begin by themselves again")
    signed_in.wait_text("outcome-text", "The balancer is resumed.")
    signed_in.clock.second += 1
    signed_in.wait(lambda: not signed_in.find("paused").is_displayed())


def test_refused_order_says_why(signed_in: Page) -> None:
    """The coordinator's sentence reaches the operator."""
    signed_in.allowed.append("409")
    expert = signed_in.state()["experts"]["hottest"][0]
    signed_in.demo.answer("PUT", _pin(expert), {})
    signed_in.clock.second += 1
    signed_in.wait_text("pinned", "Layer")
    signed_in.driver.find_element("css selector", "#pinned button").click()
    signed_in.demo.answer("DELETE", _pin(expert), {})
    signed_in.confirmed("unpin", "may move expert")
    signed_in.wait_text("outcome-text", "Refused or failed: Expert")
    assert "is not pinned" in signed_in.text("outcome-text")
    signed_in.click("outcome-close")
    assert not signed_in.find("outcome").is_displayed()


def _drifted(page: Page) -> None:
    """Traffic has changed, and the balancer has not yet answered by itself."""
    page.clock.second = 130
    page.wait_text("drift", "Drift:")


def _ticked(page: Page) -> list[int]:
    boxes = page.driver.find_elements("css selector", "#selected-ranks input:checked")
    return [int(box.get_attribute("value") or -1) for box in boxes]


def _balancer(page: Page) -> dict[str, Any]:
    balancer: dict[str, Any] = page.state()["experts"]["balancer"]
    return balancer


def _pin(expert: dict[str, Any]) -> str:
    return f"/admin/experts/{expert['layer_id']}/{expert['logical_id']}/pin"
