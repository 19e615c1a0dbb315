"""The notebook of the Python client runs from its first cell to its last, before an API server in the process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dapt_operator.cluster.kubernetes.resources import KINDS
from support.api_double import ApiDouble, Odd, Request
from support.kubeconfigs import write_kubeconfig

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook" / "client.ipynb"
PATH = KINDS["DomainAdaptation"].path("health", "clinical")
DONE: dict[str, Any] = {
    "phase": "Published",
    "observedGeneration": 1,
    "conditions": [
        {
            "type": "Finished",
            "status": "True",
            "reason": "Published",
            "message": "model published to s3://models/clinical",
            "lastTransitionTime": "2026-01-31T12:00:00Z",
        }
    ],
    "candidates": [{"id": "a1-s40", "attempt": 1, "forgetting": 0.02, "gain": 0.3, "passes": True}],
    "selected": {"id": "a1-s40", "reason": "largest gain"},
    "output": {"destination": "s3://models/clinical"},
}


def read_cells() -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text())["cells"]
    return cells


def test_the_notebook_is_stored_without_results() -> None:
    cells = read_cells()
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert {(cell["execution_count"], *cell["outputs"]) for cell in cells if cell["cell_type"] == "code"} == {
        (None,)
    }


def test_the_notebook_runs_to_its_last_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with ApiDouble() as api:
        monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "kubeconfig", api.url, "health")))

        def publish(request: Request) -> Odd | None:
            if request.query.get("watch"):
                api.add(PATH, api.objects[PATH] | {"status": DONE})
            return None

        api.interfere = publish
        names: dict[str, Any] = {}
        for cell in read_cells():
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert names["status"].selected.id == "a1-s40"
    assert capsys.readouterr().out.splitlines()[-2:] == ["Published ", "a1-s40 0.02 0.3 True"]
    assert (tmp_path / "reports/clinical/report.html").is_file()
