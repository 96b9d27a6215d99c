"""Says which files of alerts are not what the Python beside them makes, and with --write makes them so.

python -m ops.alerts [--write]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ops.alerts.rule_files import files
from ops.made_files import bring_up_to_date


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a file is stale and was not to be written."""
    parser = argparse.ArgumentParser(
        prog="python -m ops.alerts",
        description="Alerts as rules for Prometheus (ops/alerts/step35.rules.yml), their promtool tests "
        "(step35.tests.yml beside it), and a copy in the Helm chart.",
        epilog="Exit status: 0 every file is as it should be, 1 one is not. To run the tests: "
        "promtool test rules ops/alerts/step35.tests.yml",
    )
    return bring_up_to_date(parser, files(), arguments)


if __name__ == "__main__":
    sys.exit(main())
