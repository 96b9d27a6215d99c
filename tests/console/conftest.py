"""A Chromium for the whole run, and the operator's page in it with a made-up cluster whose clock the test turns.

A page that writes an error to the browser's console fails its test: broken scripts and violated policies show there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from selenium.webdriver import Chrome

from ops.console.browser import sign_in
from ops.console.demo import Demo, SetClock
from ops.console.synthetic.shape import FULL, NANO, Shape
from tests.console.driven_page import DrivenPage, chromium_or_skip


@dataclass
class Page(DrivenPage):
    """With the made-up cluster behind it."""

    demo: Demo
    clock: SetClock
    shape: Shape

    def state(self) -> dict[str, Any]:
        """What the coordinator would answer now."""
        return self.demo.answer("GET", "/admin/state", {})[1]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chrome]:
    """One browser for all tests: its start takes a second."""
    with chromium_or_skip() as driver:
        yield driver


@pytest.fixture(params=[FULL], ids=["full"])
def page(request: pytest.FixtureRequest, chromium: Chrome) -> Iterator[Page]:
    """The page before anybody has signed in."""
    clock = SetClock()
    with Demo(request.param, clock) as demo:
        page = Page(chromium, demo, clock, request.param)
        page.errors()
        chromium.get(demo.url)
        page.wait(page.find("token").is_displayed)
        yield page
        page.check_errors()
        chromium.execute_script("sessionStorage.clear()")  # the next demonstration may get the same port
        chromium.get("about:blank")


@pytest.fixture
def signed_in(page: Page) -> Page:
    """The page with its first state."""
    sign_in(page.driver, page.demo.url)
    return page


both_shapes = pytest.mark.parametrize("page", [FULL, NANO], ids=["full", "nano"], indirect=True)
