"""The alerts of docs/operating.md, judged by Prometheus' own tool: each fires when it should, and about whom."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from testcluster import prometheus
from testcluster.control_plane import ROOT

pytestmark = pytest.mark.cluster
RULES = re.findall(
    r"```yaml\n# alerts\.yaml\n(.*?)```", (ROOT / "docs" / "operating.md").read_text(), re.DOTALL
)[0]
WHO = '{namespace="health",name="clinical"}'
QUIET = {
    "dapt_reconcile_duration_seconds_count": "0+1x300",
    "dapt_reconcile_errors_total": "0x300",
    'dapt_condition{namespace="health",name="clinical",type="Stalled"}': "0x300",
    f"dapt_progress_ratio{WHO}": "0+0.002x300",
    f"dapt_general_perplexity_increase_ratio{WHO}": "0.1x300",
    'dapt_restarts_total{namespace="health",name="clinical",cause="infrastructure"}': "1x300",
    f"dapt_goodput_ratio{WHO}": "0.97x300",
}
"""An adaptation on its way, minute by minute for five hours."""
LOUD = {
    "DaptOperatorGone": {"dapt_reconcile_duration_seconds_count": "_x300"},
    "DaptReconcileErrors": {"dapt_reconcile_errors_total": "0+1x300"},
    "DaptStalled": {'dapt_condition{namespace="health",name="clinical",type="Stalled"}': "1x300"},
    "DaptTrainingStandsStill": {f"dapt_progress_ratio{WHO}": "0.4x300"},
    "DaptForgetting": {f"dapt_general_perplexity_increase_ratio{WHO}": "0.6x300"},
    "DaptRestarts": {
        'dapt_restarts_total{namespace="health",name="clinical",cause="infrastructure"}': "1+0.02x300"
    },
    "DaptGoodput": {f"dapt_goodput_ratio{WHO}": "0.7x300"},
}


@pytest.fixture(scope="module")
def promtool() -> Path:
    found = prometheus.find()
    tool = Path(found).with_name("promtool") if found else None
    if tool is None or not tool.exists():
        pytest.skip(prometheus.HOW_TO_GET_IT)
    return tool


def firing(promtool: Path, folder: Path, series: dict[str, str], expected: dict[str, list[Any]]) -> str:
    """What promtool finds wrong after five hours of these series; empty when exactly the expected alerts fire."""
    (folder / "alerts.yaml").write_text(RULES)
    names = re.findall(r"alert: (\w+)", RULES)
    test = {
        "rule_files": ["alerts.yaml"],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [
                    {"eval_time": "290m", "alertname": name, "exp_alerts": expected.get(name, [])}
                    for name in names
                ],
            }
        ],
    }
    (folder / "test.yaml").write_text(json.dumps(test))
    command: list[str | Path] = [promtool, "test", "rules", "test.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_no_alert_fires_while_all_is_well(promtool: Path, tmp_path: Path) -> None:
    assert firing(promtool, tmp_path, QUIET, {}) == ""


@pytest.mark.parametrize("alert", LOUD)
def test_each_alert_fires_alone_when_it_should(promtool: Path, tmp_path: Path, alert: str) -> None:
    about_one = alert not in ("DaptOperatorGone", "DaptReconcileErrors")
    labels = {"namespace": "health", "name": "clinical"} if about_one else {}
    summary = re.search(rf"alert: {alert}\n.*?summary: \"(.*?)\"", RULES, re.DOTALL)
    assert summary is not None
    text = summary[1].replace("{{ $labels.namespace }}", "health").replace("{{ $labels.name }}", "clinical")
    if alert == "DaptRestarts":
        labels["cause"] = "infrastructure"
        text = text.replace("{{ $labels.cause }}", "infrastructure")
    if alert == "DaptStalled":
        labels["type"] = "Stalled"
    expected = {alert: [{"exp_labels": labels, "exp_annotations": {"summary": text}}]}
    assert firing(promtool, tmp_path, QUIET | LOUD[alert], expected) == ""
    assert "FAILED" in firing(promtool, tmp_path, QUIET | LOUD[alert], {})
    assert "{{" not in text


def test_every_alert_is_tried() -> None:
    assert re.findall(r"alert: (\w+)", RULES) == list(LOUD)
