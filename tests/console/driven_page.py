"""DrivenPage: what a test does with the operator's page in a browser, whoever answers behind it; and that browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from ops.console.browser import BrowserMissing, browser_paths, headless

DEADLINE_S = 20.0
CALL = """
const [source, values, done] = arguments;
const call = new Function("values", `return (async () => { ${source} })()`);
call(values).then((value) => done({ value }), (error) => done({ error: String(error) }));
"""


@dataclass
class DrivenPage:
    """allowed: parts of console errors that the test brings about on purpose."""

    driver: Chrome
    allowed: list[str] = field(default_factory=list, kw_only=True)

    def find(self, id_: str) -> WebElement:
        return self.driver.find_element("id", id_)

    def text(self, id_: str) -> str:
        """Also of what is folded away or out of sight."""
        return str(self.find(id_).get_property("textContent"))

    def click(self, id_: str) -> None:
        element = self.find(id_)
        self.driver.execute_script("arguments[0].scrollIntoView({ block: 'center' })", element)
        element.click()

    def press(self, *keys: str) -> None:
        """Keys for whatever has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def wait(self, condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
        """Until it is true."""
        return WebDriverWait(self.driver, deadline_s, poll_frequency=0.1).until(lambda _: condition())

    def wait_text(self, id_: str, part: str, deadline_s: float = DEADLINE_S) -> None:
        """Until the text holds this."""
        try:
            self.wait(lambda: part in self.text(id_), deadline_s)
        except Exception as error:
            raise AssertionError(f"{id_} does not say {part!r} but {self.text(id_)!r}") from error

    def call(self, source: str, *values: Any) -> Any:
        """The value of an asynchronous function's body in the page; `values` is what it is given."""
        answer = self.driver.execute_async_script(CALL, source, list(values))
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def hold(self) -> None:
        """Ask nothing more, so that the page goes on to show what it shows, or what `receive` gives it."""
        self.click("pause-page")
        self.wait_text("connection", "page paused")

    def receive(self, state: dict[str, Any]) -> None:
        """As if the coordinator had answered this. Its time must be later than the last."""
        self.call("const page = await import('/console/main.js'); page.receive(values[0]);", state)

    def escape(self) -> None:
        self.press(Keys.ESCAPE)

    def confirmed(self, button: str, line: str) -> None:
        """Press a button that asks first, once it may be pressed; read the question, and say yes."""
        self.wait(self.find(button).is_enabled)
        self.wait_ordered()
        self.click(button)
        self.wait(self.find("confirm").is_displayed)
        assert line in self.text("confirm-lines")
        self.click("confirm-yes")

    def wait_ordered(self) -> None:
        """Until no order is under way."""
        self.wait(lambda: self.driver.execute_script("return !document.body.dataset.ordering"))

    def errors(self) -> list[str]:
        """What the browser's console has held since it was last asked, warnings left out."""
        entries: list[dict[str, Any]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def check_errors(self) -> None:
        """There was none but what is allowed."""
        assert [error for error in self.errors() if not any(part in error for part in self.allowed)] == []


@contextmanager
def chromium_or_skip() -> Iterator[Chrome]:
    """A browser without a window. Skips the test, with the reason, where there is none."""
    try:
        browser_paths()
    except BrowserMissing as missing:
        pytest.skip(str(missing))
    with headless() as driver:
        yield driver
