"""Who may look, and what the page says when the coordinator is not there."""

from __future__ import annotations

from selenium.webdriver.common.keys import Keys

from ops.console.demo import TOKEN
from tests.console.conftest import Page

COUNT_POLLS = (
    "return performance.getEntriesByType('resource').filter(({ name }) => name.endsWith('/admin/state')).length;"
)
LET_PASS = "await new Promise((resolve) => setTimeout(resolve, values[0]));"
SET_HIDDEN = """
Object.defineProperty(document, "hidden", { value: values[0], configurable: true });
document.dispatchEvent(new Event("visibilitychange"));
"""


def test_wrong_token_is_refused_and_the_right_one_connects(page: Page) -> None:
    """The dialog says that the token is not known and asks again; with the right one data come."""
    page.allowed.append("401")
    assert page.find("token").is_displayed()
    page.find("token-input").send_keys("of-another-cluster", Keys.ENTER)
    page.wait_text("token-message", "does not know this token")
    assert page.find("token").is_displayed()
    assert page.text("model") == ""
    page.find("token-input").send_keys(TOKEN, Keys.ENTER)
    page.wait_text("model", page.shape.name)
    assert not page.find("token").is_displayed()
    assert page.text("connection") == "connected"


def test_what_cannot_be_a_token_is_not_sent(page: Page) -> None:
    """Words with characters that no header can carry are refused by the page itself."""
    page.find("token-input").send_keys("zwei Wörter", Keys.ENTER)
    page.wait_text("token-message", "cannot be a token")


def test_token_is_kept_for_the_tab_alone(signed_in: Page) -> None:
    """It is in sessionStorage, and neither in localStorage, in a cookie, in the address nor in the document."""
    kept = signed_in.call(
        "return [{ ...sessionStorage }, localStorage.length, document.cookie, location.href, document.body.innerHTML];"
    )
    assert TOKEN in kept[0].values()
    assert kept[1:3] == [0, ""]
    assert TOKEN not in kept[3] + kept[4]


def test_standing_clock_makes_the_page_stale(signed_in: Page) -> None:
    """A coordinator that answers the same moment for ever is no news: the page greys what it shows and says so."""
    signed_in.wait_text("stale", "its clock stands still")
    assert signed_in.driver.execute_script("return document.body.dataset.stale") == "yes"
    signed_in.clock.second = 3
    signed_in.wait(lambda: signed_in.driver.execute_script("return document.body.dataset.stale") == "no")
    assert signed_in.text("stale") == ""


def test_lost_coordinator_is_named(signed_in: Page) -> None:
    """When nobody answers, the page says it at once and how old its data are once they are old."""
    signed_in.allowed.append("net::ERR_")
    signed_in.demo.close()
    signed_in.wait_text("connection", "not connected")
    signed_in.wait_text("stale", "The coordinator cannot be reached.")
    assert "What you see is" in signed_in.text("stale")


def test_paused_page_asks_nothing(signed_in: Page) -> None:
    """No poll leaves a paused page; a resumed one goes on at once."""
    signed_in.hold()
    signed_in.call(LET_PASS, 300)
    before = signed_in.call(COUNT_POLLS)
    signed_in.call(LET_PASS, 2200)
    assert signed_in.call(COUNT_POLLS) == before
    signed_in.click("pause-page")
    signed_in.wait(lambda: signed_in.call(COUNT_POLLS) > before)
    assert signed_in.text("connection") == "connected"


def test_hidden_tab_asks_nothing(signed_in: Page) -> None:
    """A tab that nobody sees costs the coordinator nothing, and asks at once when it is seen again."""
    signed_in.call(SET_HIDDEN, True)
    signed_in.call(LET_PASS, 300)
    before = signed_in.call(COUNT_POLLS)
    signed_in.call(LET_PASS, 2200)
    assert signed_in.call(COUNT_POLLS) == before
    signed_in.call(SET_HIDDEN, False)
    signed_in.wait(lambda: signed_in.call(COUNT_POLLS) > before)
