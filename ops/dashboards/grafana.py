"""Boards as Grafana's JSON: variables, annotations, and panels in their places. Pure. Knows no metric of a panel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ops.dashboards.panels import GRID_WIDTH, Board, Look, Panel, Query, Row, Step, Variable
from ops.dashboards.promql import select

SCHEMA_VERSION = 39  # Grafana 11; later versions migrate it
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# The longest scrape interval to expect, the chart's. Grafana's rate interval is at least four times it.
SCRAPE_INTERVAL = "30s"
ROW_HEIGHT = 1
TAG = "step35"

# One cluster at a time: what is summed over two clusters describes neither. Only the names that public dashboards know
# carry the model's name, so the model chooses among the jobs and the job chooses the series.
CLUSTER_VARIABLES = (
    Variable("model", "Model", "label_values(vllm:num_requests_running, model_name)", all_value=".*"),
    Variable("job", "Job", 'label_values(vllm:num_requests_running{model_name=~"$model"}, job)'),
)
MAP_CHANGES = f"changes({select('step35_map_epoch')}[1m]) > 0"

# Blue is less than the mean, red is more, grey is the mean.
DIVERGING = (
    Step(None, "#2166ac"),
    Step(0.6, "#92c5de"),
    Step(0.85, "#8e8e8e"),
    Step(1.15, "#f4a582"),
    Step(1.4, "#d6604d"),
    Step(1.8, "#b2182b"),
)
_DEFAULT_STEPS = {Look.MATRIX: DIVERGING, Look.PHASES: (Step(None, "#3d3d3d"), Step(1.0, "blue"))}


def board_json(board: Board) -> str:
    """The file of a dashboard."""
    return json.dumps(dashboard(board), indent=1) + "\n"


def dashboard(board: Board) -> dict[str, Any]:
    return {
        "uid": f"step35-{board.name}",
        "title": f"Step35 / {board.title}",
        "description": board.description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "graphTooltip": 1,  # one cross-hair for all panels
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [_links()],
        "annotations": {"list": [_map_changes()]},
        "templating": {"list": [_source(), *map(_variable, (*CLUSTER_VARIABLES, *board.variables))]},
        "panels": list(_placed(board.rows)),
    }


def _placed(rows: tuple[Row, ...]) -> Iterator[dict[str, Any]]:
    """Row by row from the top; within a row from left to right, in lines as high as their highest panel."""
    number, top = 1, 0
    for row in rows:
        heading = {"type": "row", "id": number, "title": row.title, "collapsed": row.is_collapsed}
        heading["gridPos"] = {"x": 0, "y": top, "w": GRID_WIDTH, "h": ROW_HEIGHT}
        places, bottom = _places(row.panels, top + ROW_HEIGHT)
        panels = [
            _panel(panel, number + offset, place)
            for offset, (panel, place) in enumerate(zip(row.panels, places, strict=True), start=1)
        ]
        yield {**heading, "panels": panels if row.is_collapsed else []}
        if not row.is_collapsed:
            yield from panels
        number, top = number + 1 + len(panels), top + ROW_HEIGHT if row.is_collapsed else bottom


def _places(panels: tuple[Panel, ...], top: int) -> tuple[list[dict[str, int]], int]:
    """Where each panel lies, and the first free line below."""
    places, left, bottom = [], 0, top
    for panel in panels:
        if left + panel.width > GRID_WIDTH:
            left, top = 0, bottom
        places.append({"x": left, "y": top, "w": panel.width, "h": panel.height})
        left, bottom = left + panel.width, max(bottom, top + panel.height)
    return places, bottom


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "table" if panel.look is Look.MATRIX else panel.look.value,
        "id": number,
        "title": panel.title,
        "description": panel.description,
        "gridPos": place,
        "datasource": SOURCE,
        "interval": SCRAPE_INTERVAL,
        "targets": [_target(query, idx, panel.look) for idx, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _options(panel),
        "transformations": _transformations(panel),
    }


def _target(query: Query, idx: int, look: Look) -> dict[str, Any]:
    is_now = look in (Look.STAT, Look.BARS, Look.TABLE, Look.MATRIX)
    return {
        "refId": "ABCDEFGHIJ"[idx],
        "datasource": SOURCE,
        "expr": query.expression,
        "legendFormat": query.legend,
        "instant": is_now,
        "range": not is_now,
        "format": "table" if look in (Look.TABLE, Look.MATRIX) else "time_series",
    }


def _field(panel: Panel) -> dict[str, Any]:
    steps = panel.steps or _DEFAULT_STEPS.get(panel.look, (Step(None, "blue"),))
    field: dict[str, Any] = {
        "unit": panel.unit.value,
        "color": {"mode": "palette-classic" if panel.look is Look.LINES else "thresholds"},
        "thresholds": {
            "mode": "absolute",
            "steps": [{"value": step.value, "color": step.colour} for step in steps],
        },
        "custom": _custom(panel),
    }
    bounds = {"min": panel.low, "max": panel.high}
    field.update({name: bound for name, bound in bounds.items() if bound is not None})
    return field


def _custom(panel: Panel) -> dict[str, Any]:
    match panel.look:
        case Look.LINES:
            fill = 30 if panel.is_stacked else 0
            stacking = {"mode": "normal" if panel.is_stacked else "none", "group": "A"}
            return {"lineWidth": 1, "fillOpacity": fill, "showPoints": "never", "stacking": stacking}
        case Look.MATRIX:
            return {"align": "center", "cellOptions": {"type": "color-background", "mode": "basic"}}
        case Look.PHASES:
            return {"lineWidth": 0, "fillOpacity": 80}
        case _:
            return {}


def _options(panel: Panel) -> dict[str, Any]:
    match panel.look:
        case Look.LINES:
            legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
            return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
        case Look.STAT:
            return {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "none"}
        case Look.BARS:
            return {"reduceOptions": {"calcs": ["lastNotNull"]}, "orientation": "horizontal", "displayMode": "basic"}
        case Look.TABLE:
            return {"showHeader": True, "cellHeight": "sm", "sortBy": [{"displayName": "Value", "desc": True}]}
        case Look.MATRIX:
            # Grafana names the first column so.
            first = f"{panel.rows}\\{panel.columns}"
            return {"showHeader": True, "cellHeight": "sm", "sortBy": [{"displayName": first, "desc": False}]}
        case Look.HEATMAP:
            return _heatmap(panel)
        case Look.PHASES:
            return {"mergeValues": True, "showValue": "never", "legend": {"showLegend": False}}


def _heatmap(panel: Panel) -> dict[str, Any]:
    """Series as they are, one for each row; nothing is counted again."""
    colours: dict[str, Any] = {"mode": "scheme", "scheme": "RdBu", "reverse": True, "scale": "linear", "steps": 64}
    bounds = {"min": panel.low, "max": panel.high}
    return {
        "calculate": False,
        "cellGap": 0,
        "cellValues": {"unit": panel.unit.value},
        "color": {**colours, **{name: bound for name, bound in bounds.items() if bound is not None}},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "yHistogram": False},
        "yAxis": {"axisPlacement": "left", "unit": "none"},
    }


def _transformations(panel: Panel) -> list[dict[str, Any]]:
    match panel.look:
        case Look.MATRIX:
            labels = {"rowField": panel.rows, "columnField": panel.columns, "valueField": "Value"}
            return [
                {"id": "sortBy", "options": {"sort": [{"field": panel.columns}]}},
                {"id": "groupingToMatrix", "options": {**labels, "emptyValue": "null"}},
            ]
        case Look.TABLE:
            return [{"id": "organize", "options": {"excludeByName": {"Time": True}}}]
        case _:
            return []


def _source() -> dict[str, Any]:
    return {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus"}


def _variable(variable: Variable) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": "query",
        "name": variable.name,
        "label": variable.label,
        "datasource": SOURCE,
        "query": {"query": variable.values, "refId": variable.name},
        "refresh": 2,  # whenever the time range changes
        "sort": 3,  # by number where there is one
        "multi": False,
        "includeAll": bool(variable.all_value),
    }
    if variable.all_value:
        made |= {"allValue": variable.all_value, "current": {"text": "All", "value": "$__all"}}
    return made


def _map_changes() -> dict[str, Any]:
    """Marks in every panel over time."""
    return {
        "name": "expert map changed",
        "datasource": SOURCE,
        "enable": True,
        "expr": MAP_CHANGES,
        "iconColor": "purple",
        "step": SCRAPE_INTERVAL,
        "titleFormat": "expert map changed",
    }


def _links() -> dict[str, Any]:
    """To the other boards, with what is chosen here."""
    return {
        "type": "dashboards",
        "tags": [TAG],
        "title": "Step35",
        "asDropdown": True,
        "includeVars": True,
        "keepTime": True,
    }
