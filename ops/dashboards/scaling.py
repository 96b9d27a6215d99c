"""The panel of wanted and ready replicas, which more than one dashboard has."""

from __future__ import annotations

from ops.dashboards.panels import Panel, Query, Unit, lines
from ops.dashboards.promql import over, select


def wanted_and_ready(title: str) -> Panel:
    """Lines for each tier."""
    return lines(
        title,
        "Replicas of each tier that Serve wants, by its own status, and those that are ready.",
        Unit.PLAIN,
        Query(over("max", select("step35_autoscaler_desired_replicas"), "tier"), "{{tier}} asked for"),
        Query(over("max", select("step35_autoscaler_replicas"), "tier"), "{{tier}} there"),
    )
