"""Draws the pictures of the page in `screenshots`: made-up data, before, while and after it is rebalanced.

python -m ops.console.take_screenshots
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from selenium.webdriver import Chrome

from ops.console.browser import SETTLE, headless, show_past
from ops.console.demo import Demo, SetClock
from ops.console.synthetic.shape import FULL, NANO, Shape

FOLDER = Path(__file__).parent / "screenshots"
WIDTH, HEIGHT = 1440, 1800
NUM_COLOURS = 256
KMEANS_ROUNDS = 3


@dataclass(frozen=True)
class Moment:
    """What is drawn in both themes. second: of the made-up cluster. is_whole: the whole page, not only its top."""

    name: str
    shape: Shape
    second: int
    is_whole: bool = False


MOMENTS = (
    Moment("before", FULL, 138),
    Moment("during", FULL, 159),
    Moment("after", FULL, 225, is_whole=True),
    Moment("nano", NANO, 225),
)


def main() -> int:
    """Draw every picture."""
    for moment in MOMENTS:
        for theme, content in draw(moment).items():
            (FOLDER / f"{moment.name}-{theme}.png").write_bytes(content)
            print(f"{moment.name}-{theme}: {len(content) / 1024:.0f} KiB")
    return 0


def draw(moment: Moment) -> dict[str, bytes]:
    """PNGs by theme, of the page that has seen the whole past of the made-up cluster."""
    clock = SetClock()
    with Demo(moment.shape, clock) as demo, headless(WIDTH, HEIGHT) as driver:
        show_past(driver, demo, moment.shape, clock, moment.second)
        return {theme: _drawn(driver, theme, is_whole=moment.is_whole) for theme in ("light", "dark")}


def _drawn(driver: Chrome, theme: str, *, is_whole: bool) -> bytes:
    features = [{"name": "prefers-color-scheme", "value": theme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    height = driver.execute_script("return document.documentElement.scrollHeight") if is_whole else HEIGHT
    size = {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.execute_async_script(SETTLE)
    return _small(driver.get_screenshot_as_png())


def _small(png: bytes) -> bytes:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    content = io.BytesIO()
    # Rounds of k-means: without them the large even areas, such as the background, take on a tint.
    few = image.quantize(NUM_COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=KMEANS_ROUNDS, dither=Image.Dither.NONE)
    few.save(content, "PNG", optimize=True)
    return content.getvalue()


if __name__ == "__main__":
    sys.exit(main())
