"""A headless Chromium that this process drives, for the page's tests, its pictures and what it costs.

Needs Chromium and its driver, which are no Python packages: of Debian, `chromium` and `chromium-driver`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

from ops.console.demo import TOKEN, Demo, SetClock
from ops.console.synthetic.cluster import SyntheticCluster
from ops.console.synthetic.shape import Shape

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DRIVER = "chromedriver"
DEADLINE_S = 20.0
STATES_AT_ONCE = 40

RECEIVE = """
const [states, done] = arguments;
import("/console/main.js").then(({ receive }) => { states.forEach(receive); done(); });
"""
ENTER_TOKEN = """
document.getElementById("token-input").value = arguments[0];
document.getElementById("token-form").requestSubmit();
"""
PRESS_PAUSE = "document.getElementById('pause-page').click()"
# A poll that was under way when the page was paused has been answered by then.
SETTLE = "setTimeout(arguments[0], 500)"


class BrowserMissing(Exception):
    """There is no Chromium, or no driver of it, on this machine."""


def browser_paths() -> tuple[str, str]:
    """Chromium and its driver. Raises BrowserMissing."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which(DRIVER)
    if browser is None or driver is None:
        raise BrowserMissing(f"Chromium and {DRIVER} are needed; on Debian: apt-get install chromium chromium-driver")
    return browser, driver


@contextmanager
def headless(width: int = 1440, height: int = 1000) -> Iterator[Chrome]:
    """A browser without a window, with a profile of its own that is deleted. Raises BrowserMissing."""
    browser, driver_path = browser_paths()
    with tempfile.TemporaryDirectory(prefix="step35-console-", ignore_cleanup_errors=True) as profile:
        driver = Chrome(_options(browser, profile, width, height), Service(driver_path))
        try:
            driver.set_script_timeout(DEADLINE_S)
            driver.set_page_load_timeout(DEADLINE_S)
            yield driver
        finally:
            driver.quit()


def sign_in(driver: Chrome, url: str) -> None:
    """Open the page with the demonstration's token and wait for the first state."""
    if driver.current_url != url:
        driver.get(url)
    wait = WebDriverWait(driver, DEADLINE_S)
    # `get` may return before the page's scripts have run: a form that is submitted then stops them from loading.
    wait.until(lambda page: page.find_element("id", "token").is_displayed())
    driver.execute_script(ENTER_TOKEN, TOKEN)
    wait.until(lambda page: page.find_element("id", "model").text != "")


def show_past(driver: Chrome, demo: Demo, shape: Shape, clock: SetClock, second: int) -> None:
    """Let the page see each second from 0 to this one, quicker than they pass. `clock` is the one of `demo`, at 0."""
    sign_in(driver, demo.url)
    driver.execute_script(PRESS_PAUSE)
    driver.execute_async_script(SETTLE)
    cluster, states = SyntheticCluster(shape), []
    while cluster.second < second - 1:
        cluster.tick()
        states.append(cluster.state())
    for begin in range(0, len(states), STATES_AT_ONCE):
        driver.execute_async_script(RECEIVE, states[begin : begin + STATES_AT_ONCE])
    clock.second = second
    driver.execute_script(PRESS_PAUSE)
    driver.execute_async_script(SETTLE)


def _options(browser: str, profile: str, width: int, height: int) -> ChromeOptions:
    options = ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "--headless=new",
        "--no-sandbox",  # containers run as root, where Chromium's own sandbox does not work
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # it must ask nobody about anything
        "--hide-scrollbars",
        f"--user-data-dir={Path(profile)}",
        f"--window-size={width},{height}",
    ):
        options.add_argument(argument)
    return options
