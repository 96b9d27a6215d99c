"""JSON objects from files that nobody vouches for: bounded in size, no repeated keys, only ValueError when wrong."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any


def read_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """The object a file holds. Raises ValueError when it is not one, OSError when it cannot be read."""
    if path.stat().st_size > max_bytes:
        raise ValueError(f"it is larger than {max_bytes} bytes")
    return parse_object(path.read_bytes())


def parse_object(text: bytes) -> dict[str, Any]:
    """A JSON object. Raises ValueError for anything else, a repeated key included."""
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    if type(value) is not dict:
        raise ValueError("its JSON is not an object")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [name for name, num in Counter(name for name, _ in pairs).items() if num > 1]
    if repeated:
        raise ValueError(f"its JSON repeats the key {repeated[0]!r}")
    return dict(pairs)
