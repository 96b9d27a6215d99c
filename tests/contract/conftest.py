"""One fixture: connected bundles of each transport in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.contract.bundles import KINDS, Bundles, require

Opener = Callable[..., Bundles]


@pytest.fixture(params=KINDS)
def open_bundles(request: pytest.FixtureRequest) -> Iterator[Opener]:
    """Makes connected bundles of one transport and closes them when the test is over."""
    require(request.param)
    opened: list[Bundles] = []

    def opener(**settings: object) -> Bundles:
        bundles = Bundles(request.param, **settings)  # type: ignore[arg-type]
        opened.append(bundles)
        bundles.connect()
        return bundles

    yield opener
    for bundles in opened:
        bundles.close()
