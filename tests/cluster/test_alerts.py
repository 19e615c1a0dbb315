"""The alerts of the chart, judged by Prometheus' own tool: each fires by its fault, alone."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from testcluster import prometheus
from testcluster.control_plane import ROOT

pytestmark = pytest.mark.cluster
RULES = (ROOT / "charts" / "dapt" / "files" / "alerts" / "dapt.yaml").read_text()
ALERTS = [rule for group in yaml.safe_load(RULES)["groups"] for rule in group["rules"]]
OF_THE_OPERATOR = {
    "dapt_operator_acting": "1x600",
    "dapt_reconcile_errors_total": "0x600",
    'dapt_list_failing{namespace="finance",kind="Pod"}': "0x600",
    "dapt_last_list_timestamp_seconds": "0+60x600",
    "dapt_unreadable_adaptations": "0x600",
}


def series(name: str = "clinical", **values: str) -> dict[str, str]:
    """Series of one adaptation, minute by minute for ten hours; `values` replaces some or adds others."""
    of = f'namespace="health",name="{name}"'
    quiet = {
        "Stalled": "0x600",
        "Suspended": "0x600",
        "Finished": "0x600",
        "dapt_progress_ratio": "0+0.001x600",
        "dapt_eta_seconds": "36000-36x600",
        "dapt_progress_timestamp_seconds": "0+60x600",
        "dapt_general_perplexity_increase_ratio": "0.1x600",
        "dapt_restarts_total": "1x600",
        "dapt_goodput_ratio": "0.97x600",
        "dapt_running_gpu_seconds": "0+480x600",
    } | values
    labels = {
        "dapt_restarts_total": ',cause="Infrastructure"',
        "dapt_running_gpu_seconds": ',stage="pretrain"',
    }
    return {
        (
            f"{key}{{{of}{labels.get(key, '')}}}"
            if key.startswith("dapt_")
            else f'dapt_condition{{{of},type="{key}"}}'
        ): numbers
        for key, numbers in quiet.items()
    }


NOTHING_RUNS = {"dapt_running_gpu_seconds": "_x600", "dapt_progress_timestamp_seconds": "_x600"}
FAULTS = {"dapt_general_perplexity_increase_ratio": "0.9x600", "dapt_goodput_ratio": "0.1x600"}
"""What stays in the status of a training that ended badly."""
SILENT = {
    "on its way": series(),
    "suspended": series(
        Suspended="1x600", Stalled="1x600", dapt_progress_ratio="0.4x600", **NOTHING_RUNS | FAULTS
    ),
    "suspended while runs are lost": series(
        Suspended="1x600", dapt_restarts_total="0+0.1x600", **NOTHING_RUNS
    ),
    "finished": series(Finished="1x600", dapt_progress_ratio="1x600", **NOTHING_RUNS | FAULTS),
    "stopped early": series(Finished="1x600", dapt_progress_ratio="0.4x600", **NOTHING_RUNS | FAULTS),
    "stopped early, and measured now": series(dapt_progress_ratio="0.4x600", **NOTHING_RUNS),
    # A hundredth of a month takes seven hours: the status has had no progress for five.
    "a month of training": series(
        dapt_progress_ratio="0.4x600",
        dapt_eta_seconds="1555200x600",
        dapt_progress_timestamp_seconds="18000x600",
    ),
    # Suspended for nine hours; the run has just started, and the progress in the status is old.
    "resumed": series(
        dapt_progress_ratio="0.4x600",
        dapt_progress_timestamp_seconds="_x540 32400x60",
        dapt_goodput_ratio="0.97x600",
    ),
    "waiting for an hour": series(dapt_waiting_since_timestamp_seconds="_x530 31800x70", **NOTHING_RUNS),
}
"""What must wake nobody, by what it is."""
LOUD = {
    "DaptOperatorGone": {"dapt_operator_acting": "0x600"},
    "DaptReconcileErrors": {"dapt_reconcile_errors_total": "0+1x600"},
    "DaptListFailing": {'dapt_list_failing{namespace="finance",kind="Pod"}': "1x600"},
    "DaptListOld": {"dapt_last_list_timestamp_seconds": "0+60x500 30000x100"},
    "DaptUnreadable": {"dapt_unreadable_adaptations": "2x600"},
    "DaptStalled": series(Stalled="1x600"),
    "DaptTrainingStandsStill": series(
        dapt_progress_ratio="0.4x600", dapt_eta_seconds="36000x600", dapt_progress_timestamp_seconds="0x600"
    ),
    "DaptWaiting": series(dapt_waiting_since_timestamp_seconds="0x600", **NOTHING_RUNS),
    "DaptForgetting": series(dapt_general_perplexity_increase_ratio="0.6x600"),
    "DaptRestarts": series(dapt_restarts_total="1+0.02x600"),
    "DaptGoodput": series(dapt_goodput_ratio="0.7x600"),
}
"""The fault of each alert."""
LABELS = {
    "DaptListFailing": {"namespace": "finance", "kind": "Pod"},
    "DaptStalled": {"type": "Stalled"},
    "DaptRestarts": {"cause": "Infrastructure"},
}
"""Further labels of what fires."""
VALUES = {"DaptUnreadable": "2", "DaptWaiting": "9h 50m 0s"}


@pytest.fixture(scope="module")
def promtool() -> Path:
    found = prometheus.find()
    tool = Path(found).with_name("promtool") if found else None
    if tool is None or not tool.exists():
        pytest.skip(prometheus.HOW_TO_GET_IT)
    return tool


def firing(promtool: Path, folder: Path, series: dict[str, str], expected: dict[str, list[Any]]) -> str:
    """What promtool finds wrong after these series; empty when exactly the expected alerts fire."""
    (folder / "alerts.yaml").write_text(RULES)
    checks = [
        {"eval_time": "590m", "alertname": rule["alert"], "exp_alerts": expected.get(rule["alert"], [])}
        for rule in ALERTS
    ]
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    test = {
        "rule_files": ["alerts.yaml"],
        "evaluation_interval": "5m",
        "tests": [{"interval": "1m", "input_series": inputs, "alert_rule_test": checks}],
    }
    (folder / "test.yaml").write_text(json.dumps(test))
    command: list[str | Path] = [promtool, "test", "rules", "test.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("case", SILENT)
def test_no_alert_fires_while_all_is_well(promtool: Path, tmp_path: Path, case: str) -> None:
    assert firing(promtool, tmp_path, OF_THE_OPERATOR | SILENT[case], {}) == ""


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_each_alert_fires_alone_by_its_fault(promtool: Path, tmp_path: Path, rule: dict[str, Any]) -> None:
    name = rule["alert"]
    is_of_one = "$labels.name " in rule["annotations"]["summary"]
    labels = ({"namespace": "health", "name": "clinical"} if is_of_one else {}) | LABELS.get(name, {})
    text = rule["annotations"]["summary"].replace("{{ $value | humanizeDuration }}", VALUES.get(name, ""))
    text = text.replace("{{ $value }}", VALUES.get(name, ""))
    for label, value in labels.items():
        text = text.replace(f"{{{{ $labels.{label} }}}}", value)
    assert "{{" not in text
    expected = {
        name: [
            {
                "exp_labels": labels | rule["labels"],
                "exp_annotations": rule["annotations"] | {"summary": text},
            }
        ]
    }
    others = series("other")
    assert firing(promtool, tmp_path, OF_THE_OPERATOR | series() | others | LOUD[name], expected) == ""
    assert "FAILED" in firing(promtool, tmp_path, OF_THE_OPERATOR | series() | others | LOUD[name], {})
