"""Every dashboard, and the files that hold them: here, and again in the chart, because Helm reads only its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ops.dashboards.experts import EXPERTS
from ops.dashboards.grafana import board_json
from ops.dashboards.lifecycle import LIFECYCLE
from ops.dashboards.overview import OVERVIEW
from ops.dashboards.speculation import SPECULATION
from ops.dashboards.transport import TRANSPORT
from ops.made_files import ROOT

BOARDS = (OVERVIEW, EXPERTS, SPECULATION, TRANSPORT, LIFECYCLE)

FOLDERS = (ROOT / "ops" / "dashboards" / "json", ROOT / "helm" / "step35-cluster" / "files" / "dashboards")


def files() -> Mapping[Path, str]:
    """Path and content of each file, as it should be."""
    return {folder / f"{board.name}.json": board_json(board) for board in BOARDS for folder in FOLDERS}
