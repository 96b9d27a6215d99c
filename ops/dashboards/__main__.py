"""Says which dashboard files are not what the Python beside them makes, and with --write makes them so.

python -m ops.dashboards [--write]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ops.dashboards.boards import files
from ops.made_files import bring_up_to_date


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a file is stale and was not to be written."""
    parser = argparse.ArgumentParser(
        prog="python -m ops.dashboards",
        description="Grafana dashboards as JSON, in ops/dashboards/json and in the Helm chart. To see one without the "
        "chart: Grafana, Dashboards, New, Import, and choose your Prometheus at its top.",
        epilog="Exit status: 0 every file is as it should be, 1 one is not.",
    )
    return bring_up_to_date(parser, files(), arguments)


if __name__ == "__main__":
    sys.exit(main())
