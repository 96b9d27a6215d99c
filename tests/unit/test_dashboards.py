"""Dashboards: the files are what Python makes, name nothing that is not recorded, fit their grid, and compute right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.dashboards import experts, overview, promql, speculation
from ops.dashboards.boards import BOARDS, FOLDERS, files
from ops.dashboards.grafana import MAP_CHANGES, SCRAPE_INTERVAL, dashboard
from ops.dashboards.panels import GRID_WIDTH, Unit
from ops.telemetry.metrics import METRICS
from ops.telemetry.spec import Kind
from tests.checks.promql import labels_of, problems, selectors
from tests.fakes.promtool import MISSING, Promtool, find_promtool

CHART = Path(__file__).parents[2] / "helm" / "step35-cluster"
COMMON_VARIABLES = ("datasource", "model", "job")
TOTALS = ("_total", "_bucket", "_sum", "_count")
GROWTH = re.compile(r"\b(?:rate|increase)\((\w+){")
GROUPED = re.compile(r"\bby \(([^)]*)\)")
# Counters that stand for the processes that have them; the second is 1 in each process that took over.
SHOWN_AS_THEY_ARE = {"step35_telemetry_scrapes_total", "step35_coordinator_restarts_total"}
# Never drawn: opt-in matrices other than the load, and what other panels already imply.
NOT_DRAWN = {
    "step35_balancer_decisions_total",
    "step35_expert_gate_mass",
    "step35_expert_rows_total",
    "step35_expert_soft_load_tokens",
    "step35_kv_blocks",
    "step35_kv_blocks_used",
    "step35_request_completion_tokens",
    "step35_request_prompt_tokens",
}


@pytest.fixture(scope="module")
def promtool(tmp_path_factory: pytest.TempPathFactory) -> Promtool:
    found = find_promtool(tmp_path_factory.mktemp("promtool"))
    if found is None:
        pytest.skip(MISSING)
    return found


BOARD = pytest.mark.parametrize("board", [pytest.param(dashboard(board), id=board.name) for board in BOARDS])


@pytest.mark.parametrize("path", files(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_are_what_python_makes(path: Path) -> None:
    """Here and in the chart; mend with: python -m ops.dashboards --write."""
    assert path.read_text() == files()[path]


def test_no_dashboard_is_left_over() -> None:
    """A board that was renamed leaves no file behind."""
    on_disk = {path for folder in FOLDERS for path in folder.glob("*.json")}
    assert on_disk == set(files())


@BOARD
def test_expressions_name_only_what_is_recorded(board: dict[str, Any]) -> None:
    """Metrics, labels and values of labels are those of the registry; matchers keep to the chosen job."""
    for title, expression in _expressions(board):
        assert problems(expression) == [], f"{title}: {expression}"
        for selector in selectors(expression):
            assert ("job", "=", "$job") in selector.matchers, f"{title}: {selector}"


@pytest.mark.parametrize(
    "wrong",
    [
        "sum(rate(step35_requests_started_total[5m]))",
        'sum(rate(step35_requests_finished_total{cause="stop"}[5m]))',
        'sum(rate(step35_requests_finished_total{reason="stopped"}[5m]))',
        'sum(rate(step35_requests_finished_total{reason=~"stop|ended"}[5m]))',
        "sum by (layer) (rate(step35_requests_finished_total[5m]))",
        "sum by (reason) (rate(step35_requests_finished_total[5m]) / rate(step35_steps_total[5m]))",
        "step35_map_epoch and on (tier) step35_view_id",
        "step35_time_to_first_token_seconds",
        'vllm:num_requests_running{member="a"}',
        "vector(1)",
    ],
)
def test_the_check_finds_what_is_wrong(wrong: str) -> None:
    """Unknown metrics, labels and values, and labels that only one side has."""
    assert problems(wrong) != []


@BOARD
def test_counters_are_rates_and_buckets_are_summed(board: dict[str, Any]) -> None:
    """A counter's value means nothing by itself, and a quantile needs the buckets of all processes."""
    for title, expression in _expressions(board):
        totals = [name for name in _names(expression) if name.endswith(TOTALS) and name not in SHOWN_AS_THEY_ARE]
        assert len(totals) == len([name for name in GROWTH.findall(expression) if name in totals]), (
            f"{title}: {expression}"
        )
        if "histogram_quantile" in expression:
            assert "sum by (le) (rate(" in expression


@BOARD
def test_legends_show_labels_that_the_result_has(board: dict[str, Any]) -> None:
    """{{layer}} of a sum without layer would be shown as it is written."""
    for panel in _panels(board):
        for target in panel["targets"]:
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            kept = {label for labels in GROUPED.findall(target["expr"]) for label in labels.split(", ")}
            assert shown <= kept, panel["title"]
            assert target["legendFormat"] or target["format"] == "table", panel["title"]


@BOARD
def test_panels_have_ids_units_descriptions_and_a_source(board: dict[str, Any]) -> None:
    """What Grafana needs and what its reader needs."""
    panels = list(_panels(board))
    ids = [panel["id"] for panel in [*board["panels"], *panels] if panel["type"] == "row"]
    ids += [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in panels]
    assert len(set(titles)) == len(titles)
    for panel in panels:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in {unit.value for unit in Unit}
        assert panel["targets"], panel["title"]
        assert {part["datasource"]["uid"] for part in (panel, *panel["targets"])} == {"${datasource}"}
        assert panel["interval"] == SCRAPE_INTERVAL


@BOARD
def test_no_panel_overlaps_another(board: dict[str, Any]) -> None:
    """Also when a collapsed row is opened, and nothing sticks out of the grid."""
    open_panels = board["panels"]
    groups = [open_panels, *(row["panels"] for row in open_panels if row["type"] == "row" and row["panels"])]
    for group in groups:
        places = [panel["gridPos"] for panel in group]
        assert all(place["x"] >= 0 and place["x"] + place["w"] <= GRID_WIDTH for place in places)
        for one, other in combinations(places, 2):
            assert not (_meet(one, other, "x", "w") and _meet(one, other, "y", "h")), (one, other)


@BOARD
def test_variables_are_declared_and_used(board: dict[str, Any]) -> None:
    """Source, model and job on every board; every further one appears in an expression; none is used undeclared."""
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert tuple(variables)[:3] == COMMON_VARIABLES
    assert '{model_name=~"$model"}' in variables["job"]["query"]["query"]
    text = json.dumps(board)
    used = {name for name in variables if f"${name}" in text or f"${{{name}}}" in text}
    assert used == set(variables)
    named = {name for _, expression in _expressions(board) for name in re.findall(r"\$([A-Za-z_]\w*)", expression)}
    assert named <= {"__rate_interval", *variables}


def test_variable_queries_ask_for_labels_that_exist() -> None:
    """label_values(metric, label): the metric is recorded or an alias, and has the label."""
    for board in map(dashboard, BOARDS):
        for variable in board["templating"]["list"][1:]:
            inner = variable["query"]["query"].removeprefix("label_values(").removesuffix(")")
            metric, _, label = inner.rpartition(", ")
            assert problems(metric) == []
            assert label in (labels_of(selectors(metric)[0].name) or ())


def test_uids_are_unique_and_every_metric_is_drawn() -> None:
    """A metric that nobody draws is one that nobody sees; the exceptions are listed."""
    boards = [dashboard(board) for board in BOARDS]
    assert len({board["uid"] for board in boards}) == len(boards) == 5
    drawn = {selector.name for board in boards for _, text in _expressions(board) for selector in selectors(text)}
    parts = ("_bucket", "_sum", "_count")
    missing = {
        name
        for name, spec in METRICS.items()
        if name not in drawn and not (spec.kind is Kind.HISTOGRAM and drawn & {name + part for part in parts})
    }
    assert missing == NOT_DRAWN


def test_scrape_interval_is_the_charts() -> None:
    """Grafana's rate interval must hold at least two samples of the slowest scrape that is the default anywhere."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert f"{values['monitoring']['intervalSeconds']}s" == SCRAPE_INTERVAL


def test_prometheus_understands_every_expression(promtool: Promtool) -> None:
    """promtool parses each one."""
    rules = [
        {"record": f"panel:{idx}".replace(":", "_"), "expr": _filled(expression)}
        for idx, (_, expression) in enumerate(
            [pair for board in map(dashboard, BOARDS) for pair in _expressions(board)] + [("", MAP_CHANGES)]
        )
    ]
    assert promtool.check(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]})) == ""


def test_balancedness_from_rates(promtool: Promtool) -> None:
    """Layer 3: rates 1 and 3, mean 2, maximum 3; layer 4: 2 and 2. Two processes of a rank are one rank."""
    pairs = 'step35_expert_pairs_total{job="a", layer="%s", ep_rank="%s", member="%s"}'
    series = {
        pairs % (3, 0, "w"): "0+30x20",
        pairs % (3, 1, "x"): "0+60x20",
        pairs % (3, 1, "y"): "0+30x20",
        pairs % (4, 0, "w"): "0+60x20",
        pairs % (4, 1, "x"): "0+60x20",
        pairs % (4, 1, "y"): "0+0x20",
        'step35_expert_pairs_total{job="another", layer="3", ep_rank="0", member="z"}': "0+3000x20",
    }
    said = [
        promtool.evaluate(_filled(expression), series, expected, "9m")
        for expression, expected in (
            (experts.MEAN_OVER_MAX, {'{layer="3"}': 2 / 3, '{layer="4"}': 1.0}),
            (experts.MAX_OVER_MEAN, {'{layer="3"}': 1.5, '{layer="4"}': 1.0}),
            (promql.over("avg", experts.MEAN_OVER_MAX), {"{}": (2 / 3 + 1) / 2}),
            (experts.PAIRS_OVER_MEAN, {'{ep_rank="0"}': 3 / 4, '{ep_rank="1"}': 5 / 4}),
        )
    ]
    assert said == [""] * 4


def test_layers_by_ranks_are_over_their_layers_mean(promtool: Promtool) -> None:
    """A layer with ten times the pairs looks the same as one with a tenth; numbers are padded to sort as text."""
    pairs = 'step35_expert_pairs_total{job="a", layer="%s", ep_rank="%s"}'
    series = {
        pairs % (3, 0): "0+30x20",
        pairs % (3, 10): "0+90x20",
        pairs % (14, 0): "0+300x20",
        pairs % (14, 10): "0+900x20",
    }
    expected = {
        '{layer="03", ep_rank="00"}': 0.5,
        '{layer="03", ep_rank="10"}': 1.5,
        '{layer="14", ep_rank="00"}': 0.5,
        '{layer="14", ep_rank="10"}': 1.5,
    }
    matrix = promql.padded(promql.padded(experts.PAIRS_OVER_LAYER_MEAN, "layer", 2), "ep_rank", 2)
    assert promtool.evaluate(_filled(matrix), series, expected, "9m") == ""


def test_hot_experts_are_over_their_layers_mean(promtool: Promtool) -> None:
    """Loads 1, 2 and 6 of one layer: 1/3, 2/3 and 2 of its mean; expert numbers of one to three digits are padded."""
    load = 'step35_expert_load_tokens{job="a", layer="%s", expert="%s"}'
    series = {load % (5, 7): "1x20", load % (5, 42): "2x20", load % (5, 123): "6x20", load % (6, 7): "9x20"}
    expression = promql.padded(promql.over_mean(experts.LOAD_OF_LAYER, "layer"), "expert", 3).replace("$layer", "5")
    expected = {
        '{layer="5", expert="007"}': 1 / 3,
        '{layer="5", expert="042"}': 2 / 3,
        '{layer="5", expert="123"}': 2.0,
    }
    assert promtool.evaluate(_filled(expression), series, expected, "9m") == ""


def test_acceptance_is_a_ratio_of_sums(promtool: Promtool) -> None:
    """A busy actor that takes 9 of 10 and an idle one that takes 1 of 10 together take 91 of 110, not a half."""
    names = "step35_{}_tokens_total{{{{job='a', member='{{}}', position='{{}}'}}}}"
    drafted, accepted = names.format("draft"), names.format("accepted")
    verified = "step35_verifications_total{{job='a', member='{}'}}"
    series = {
        drafted.format("busy", 0): "0+100x20",
        accepted.format("busy", 0): "0+90x20",
        drafted.format("busy", 1): "0+50x20",
        accepted.format("busy", 1): "0+20x20",
        drafted.format("idle", 0): "0+10x20",
        accepted.format("idle", 0): "0+1x20",
        verified.format("busy"): "0+100x20",
        verified.format("idle"): "0+20x20",
    }
    said = [
        promtool.evaluate(_filled(expression), series, expected, "9m")
        for expression, expected in (
            (speculation.ACCEPTANCE, {'{position="0"}': 91 / 110, '{position="1"}': 0.4}),
            (speculation.MEAN_LENGTH, {"{}": (111 + 120) / 120}),
            (speculation.MEAN_DRAFTS, {"{}": 160 / 120}),
            (speculation.WASTED, {"{}": 49 / 160}),
        )
    ]
    assert said == [""] * 4


def test_without_drafts_the_acceptance_length_is_one(promtool: Promtool) -> None:
    """Counters that never were must not make the sum vanish."""
    series = {"step35_verifications_total{job='a'}": "0+10x20"}
    assert promtool.evaluate(_filled(speculation.MEAN_LENGTH), series, {"{}": 1.0}, "9m") == ""


def test_shed_requests_are_demand(promtool: Promtool) -> None:
    """30 finish and 10 are shed: a quarter was turned away; all shed is 1, none is 0."""
    finished = {"step35_requests_finished_total{job='a', reason='stop'}": "0+30x20"}
    shed = {"step35_requests_shed_total{job='a', reason='overloaded'}": "0+10x20"}
    cases = (({**finished, **shed}, 0.25), (shed, 1.0), (finished, 0.0))
    said = [promtool.evaluate(_filled(overview.SHARE_SHED), series, {"{}": share}, "9m") for series, share in cases]
    assert said == [""] * 3


def test_quantiles_are_of_all_processes(promtool: Promtool) -> None:
    """Ten at most 1 s in one process, ten between 1 and 2 s in another: the median of all is 1 s."""
    bucket = "step35_time_to_first_token_seconds_bucket{{job='a', member='{}', le='{}'}}"
    series = {
        bucket.format("m", "1.0"): "0+10x20",
        bucket.format("m", "2.5"): "0+10x20",
        bucket.format("m", "+Inf"): "0+10x20",
        bucket.format("n", "1.0"): "0+0x20",
        bucket.format("n", "2.5"): "0+10x20",
        bucket.format("n", "+Inf"): "0+10x20",
    }
    expression = _filled(promql.quantile(0.5, overview.TTFT))
    assert promtool.evaluate(expression, series, {"{}": 1.0}, "9m") == ""


def _panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Those that show something, also in collapsed rows."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def _expressions(board: dict[str, Any]) -> list[tuple[str, str]]:
    """(title of the panel, expression)."""
    return [(panel["title"], target["expr"]) for panel in _panels(board) for target in panel["targets"]]


def _filled(expression: str) -> str:
    """As Grafana sends it, when job a is chosen."""
    return expression.replace("$__rate_interval", "2m").replace("$job", "a").replace("$layer", "5")


def _names(expression: str) -> list[str]:
    return [selector.name for selector in selectors(expression)]


def _meet(one: dict[str, int], other: dict[str, int], start: str, size: str) -> bool:
    return one[start] < other[start] + other[size] and other[start] < one[start] + one[size]
