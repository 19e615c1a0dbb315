"""The chart's dashboards and alerts: off by default, whole when they are on, and each alert with its page."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from dapt_operator.runtime.metrics import LABELS, RECONCILE_DURATION, RECONCILE_ERRORS
from dapt_operator.runtime.operator_metrics import OPERATOR_GAUGES, PROCESS_GAUGES
from dapt_operator.runtime.series.table import SERIES
from dapt_trainer.pod.progress import METRICS

ROOT = Path(__file__).parents[2]
FILES = ROOT / "charts" / "dapt" / "files"
RUNBOOKS = ROOT / "docs" / "runbooks"
RULES = yaml.safe_load((FILES / "alerts" / "dapt.yaml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
BOARDS = {path.name: json.loads(path.read_text()) for path in sorted((FILES / "dashboards").glob("*.json"))}
NAMES = {
    *(series.name for series in SERIES),
    *(name for name, _, _ in (*OPERATOR_GAUGES, *PROCESS_GAUGES)),
    *(f"dapt_trainer_{name}" for name in METRICS),
    *(f"{RECONCILE_DURATION[0]}_{part}" for part in ("bucket", "count", "sum")),
    RECONCILE_ERRORS[0],
}


def expressions(board: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]


def objects(helm: Any, *values: str) -> list[dict[str, Any]]:
    done = helm("template", "dapt", str(ROOT / "charts" / "dapt"), *values)
    assert done.returncode == 0, done.stderr
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def test_neither_is_installed_by_default(helm: Any) -> None:
    kinds = {item["kind"] for item in objects(helm)}
    assert not kinds & {"PrometheusRule", "ConfigMap"}


def test_dashboards_come_as_config_maps_that_a_sidecar_finds(helm: Any) -> None:
    values = ("--set", "dashboards.enabled=true", "--set", "dashboards.annotations.grafana_folder=dapt")
    maps = [item for item in objects(helm, *values) if item["kind"] == "ConfigMap"]
    found: dict[str, Any] = {}
    for item in maps:
        assert item["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert item["metadata"]["annotations"] == {"grafana_folder": "dapt"}
        found |= {name: json.loads(text) for name, text in item["data"].items()}
    assert found == BOARDS
    assert len(maps) == 3


def test_rules_come_as_one_object_with_the_addresses_of_their_pages(helm: Any) -> None:
    values = ("--set", "alerts.enabled=true", "--set", "alerts.runbooks=https://runbooks.example/dapt/")
    (rule,) = (item for item in objects(helm, *values) if item["kind"] == "PrometheusRule")
    installed = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
    assert [alert["expr"] for alert in installed] == [alert["expr"] for alert in ALERTS]
    for alert in installed:
        page = f"https://runbooks.example/dapt/{alert['alert']}.md"
        assert alert["annotations"]["runbook_url"] == page


def test_each_alert_has_a_severity_and_a_page() -> None:
    index = (RUNBOOKS / "index.md").read_text()
    for alert in ALERTS:
        name, severity = alert["alert"], alert["labels"]["severity"]
        assert severity in ("critical", "warning", "info")
        assert alert["annotations"]["runbook_url"] == f"docs/runbooks/{name}.md"
        assert f"| [{name}]({name}.md) | {severity} |" in index
        assert (RUNBOOKS / f"{name}.md").read_text().startswith(f"# {name}\n")
    pages = {path.stem for path in RUNBOOKS.iterdir()} - {"index"}
    assert pages == {alert["alert"] for alert in ALERTS}


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: board["uid"])
def test_a_dashboard_asks_for_series_that_exist(board: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for expression in expressions(board):
        assert set(re.findall(r"\bdapt_\w+", expression)) <= NAMES


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_a_rule_asks_for_series_and_names_labels_that_exist(alert: dict[str, Any]) -> None:
    labels = {series.name: {*LABELS, series.label} for series in SERIES}
    labels |= {name: set(names) for name, _, names in (*OPERATOR_GAUGES, *PROCESS_GAUGES)}
    first, *others = re.findall(r"\bdapt_\w+", alert["expr"])
    assert {first, *others} <= NAMES
    asked = set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"]))
    assert asked <= labels.get(first, set())


def test_every_series_of_an_adaptation_is_on_a_dashboard() -> None:
    shown = {
        name
        for board in BOARDS.values()
        for expression in expressions(board)
        for name in re.findall(r"\bdapt_\w+", expression)
    }
    only_in_rules = {"dapt_progress_timestamp_seconds"}
    assert {series.name for series in SERIES} - shown == only_in_rules


def test_the_dashboards_are_what_their_script_writes() -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="`make setup` installs what writes the dashboards")
    written = runpy.run_path(str(ROOT / "charts" / "dashboards.py"))["render"]()
    assert {name: json.loads(text) for name, text in written.items()} == BOARDS, "run `make chart`"
