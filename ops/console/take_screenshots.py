"""Draws the pictures of the page in `screenshots`: made-up data, before, while and after it is rebalanced.

python -m ops.console.take_screenshots
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ops.console.browser import SETTLE, headless, show_past
from ops.console.demo import Demo, SetClock
from ops.console.synthetic.shape import FULL, NANO, Shape

FOLDER = Path(__file__).parent / "screenshots"
WIDTH, HEIGHT = 1440, 1800
NUM_COLOURS = 256


@dataclass(frozen=True)
class Picture:
    """One picture. second: of the made-up cluster."""

    name: str
    shape: Shape
    second: int
    is_dark: bool = False
    is_whole: bool = False


PICTURES = (
    Picture("before-light", FULL, 138),
    Picture("during-dark", FULL, 159, is_dark=True),
    Picture("after-light", FULL, 225, is_whole=True),
    Picture("after-dark", FULL, 225, is_dark=True),
    Picture("nano-light", NANO, 225),
)


def main() -> int:
    """Draw every picture."""
    for picture in PICTURES:
        content = draw(picture)
        (FOLDER / f"{picture.name}.png").write_bytes(content)
        print(f"{picture.name}: {len(content) / 1024:.0f} KiB")
    return 0


def draw(picture: Picture) -> bytes:
    """A PNG of the page that has seen the whole past of the made-up cluster."""
    clock = SetClock()
    with Demo(picture.shape, clock) as demo, headless(WIDTH, HEIGHT) as driver:
        theme = {"name": "prefers-color-scheme", "value": "dark" if picture.is_dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})
        show_past(driver, demo, picture.shape, clock, picture.second)
        height = driver.execute_script("return document.documentElement.scrollHeight") if picture.is_whole else HEIGHT
        size = {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.execute_async_script(SETTLE)
        for entry in driver.get_log("browser"):
            print(entry["message"])
        return _small(driver.get_screenshot_as_png())


def _small(png: bytes) -> bytes:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    content = io.BytesIO()
    image.quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
    return content.getvalue()


if __name__ == "__main__":
    sys.exit(main())
