"""Files in the repository that Python beside them makes: says which are stale, and writes them. Knows none of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def bring_up_to_date(
    parser: argparse.ArgumentParser, files: Mapping[Path, str], arguments: Sequence[str] | None
) -> int:
    """The command `[--write]`. files: path and content of each, as it should be. Exit status 1 when a file is stale and
    was not to be written."""
    parser.add_argument("--write", action="store_true", help="write the files that are stale")
    is_writing = parser.parse_args(arguments).write
    stale = {path: text for path, text in files.items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        if is_writing:
            path.write_text(text)
        sys.stdout.write(f"{path.relative_to(ROOT)}: {'written' if is_writing else 'stale'}\n")
    return 1 if stale and not is_writing else 0
