"""A Chromium for the whole run, and the operator's page in it with a made-up cluster whose clock the test turns.

A page that writes an error to the browser's console fails its test: broken scripts and violated policies show there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from ops.console.browser import BrowserMissing, browser_paths, headless, sign_in
from ops.console.demo import Demo, SetClock
from ops.console.synthetic.shape import FULL, NANO, Shape

DEADLINE_S = 20.0
CALL = """
const [source, values, done] = arguments;
const call = new Function("values", `return (async () => { ${source} })()`);
call(values).then((value) => done({ value }), (error) => done({ error: String(error) }));
"""


@dataclass
class Page:
    """What a test does with the page. allowed: parts of console errors that it brings about on purpose."""

    driver: Chrome
    demo: Demo
    clock: SetClock
    shape: Shape
    allowed: list[str] = field(default_factory=list)

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

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Until it is true."""
        return WebDriverWait(self.driver, DEADLINE_S, poll_frequency=0.1).until(lambda _: condition())

    def wait_text(self, id_: str, part: str) -> None:
        """Until the text holds this."""
        try:
            self.wait(lambda: part in self.text(id_))
        except Exception as error:
            raise AssertionError(f"{id_} does not say {part!r} but {self.text(id_)!r}") from error

    def call(self, source: str, *values: Any) -> Any:
        """The value of an asynchronous function's body in the page; `values` is what it is given."""
        answer = self.driver.execute_async_script(CALL, source, list(values))
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def state(self) -> dict[str, Any]:
        """What the coordinator would answer now."""
        return self.demo.answer("GET", "/admin/state", {})[1]

    def hold(self) -> None:
        """Ask nothing more, so that the page shows what `receive` gives it."""
        self.click("pause-page")
        self.wait_text("connection", "page paused")

    def receive(self, state: dict[str, Any]) -> None:
        """As if the coordinator had answered this. Its time must be later than the last."""
        self.call("const page = await import('/console/main.js'); page.receive(values[0]);", state)

    def escape(self) -> None:
        self.press(Keys.ESCAPE)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chrome]:
    """One browser for all tests: its start takes a second."""
    try:
        browser_paths()
    except BrowserMissing as missing:
        pytest.skip(str(missing))
    with headless() as driver:
        yield driver


@pytest.fixture(params=[FULL], ids=["full"])
def page(request: pytest.FixtureRequest, chromium: Chrome) -> Iterator[Page]:
    """The page before anybody has signed in."""
    clock = SetClock()
    with Demo(request.param, clock) as demo:
        chromium.get_log("browser")
        page = Page(chromium, demo, clock, request.param)
        chromium.get(demo.url)
        yield page
        errors = [entry["message"] for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
        chromium.get("about:blank")
        assert [error for error in errors if not any(part in error for part in page.allowed)] == []


@pytest.fixture
def signed_in(page: Page) -> Page:
    """The page with its first state."""
    sign_in(page.driver, page.demo.url)
    return page


both_shapes = pytest.mark.parametrize("page", [FULL, NANO], ids=["full", "nano"], indirect=True)
