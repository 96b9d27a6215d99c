"""Says which dashboard files are not what the Python beside them makes, and with --write makes them so.

python -m ops.dashboards [--write]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ops.dashboards.boards import ROOT, files


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a file is stale and was not to be written."""
    parser = argparse.ArgumentParser(
        prog="python -m ops.dashboards",
        description="Grafana dashboards as JSON, in ops/dashboards/json and in the Helm chart. To see one without the "
        "chart: Grafana, Dashboards, New, Import, and choose your Prometheus at its top.",
        epilog="Exit status: 0 every file is as it should be, 1 one is not.",
    )
    parser.add_argument("--write", action="store_true", help="write the files that are stale")
    is_writing = parser.parse_args(arguments).write
    stale = {path: text for path, text in files().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        if is_writing:
            path.write_text(text)
        sys.stdout.write(f"{path.relative_to(ROOT)}: {'written' if is_writing else 'stale'}\n")
    return 1 if stale and not is_writing else 0


if __name__ == "__main__":
    sys.exit(main())
