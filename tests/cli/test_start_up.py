"""A short command does no work that it does not need. Seconds are measured by `python -m bench.imports`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAM = """
import ast, atexit, json, sys
parsed = []
original = ast.parse
ast.parse = lambda *arguments, **options: (parsed.append(1), original(*arguments, **options))[1]

def report():
    from dapt_contract.base import Contract
    from dapt_operator.api.v1alpha1.base import Base

    def below(parent):
        for child in parent.__subclasses__():
            yield child
            yield from below(child)

    built = [block.__name__ for parent in (Contract, Base) for block in below(parent) if block.__pydantic_complete__]
    print(json.dumps({"modules": sorted(sys.modules), "parsed": len(parsed), "built": built}))

atexit.register(report)
from dapt_operator.cli import main
main(sys.argv[1:])
"""


def work_of(*arguments: object) -> dict[str, list[str]]:
    """Return what a command has imported, parsed and built."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    work: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return work


def test_lint_parses_no_source_and_builds_no_model_of_a_stage() -> None:
    work = work_of("lint", EXAMPLES / "clinical.yaml")
    assert work["parsed"] == 0
    assert "DomainAdaptation" in work["built"]
    assert "AdaptationProfile" not in work["built"]
    stages = {name for name in work["modules"] if name.startswith("dapt_contract.stages.")}
    assert stages == set()
    unneeded = {"kopf", "kubernetes", "matplotlib", "jinja2", "structlog", "rich", "dapt_operator.plan"}
    unneeded |= {"dapt_operator.api.v1alpha1.status", "dapt_operator.launchers", "dapt_operator.stage_run"}
    assert unneeded & set(work["modules"]) == set()


def test_plan_parses_no_source_and_builds_no_configuration_of_a_stage() -> None:
    work = work_of("plan", EXAMPLES / "clinical.yaml", "-p", EXAMPLES / "profile-h100.yaml")
    assert work["parsed"] == 0
    assert {"PretrainConfig", "PrepareConfig", "EvaluateConfig", "PrepareReport"} & set(
        work["built"]
    ) == set()
    unneeded = {"kopf", "kubernetes", "matplotlib", "jinja2", "structlog", "rich"}
    unneeded |= {"dapt_operator.api.v1alpha1.status", "dapt_operator.launchers", "dapt_operator.stage_run"}
    unneeded |= {"dapt_operator.plan.stages", "dapt_operator.plan.parsed", "dapt_contract.stages.pretrain"}
    assert unneeded & set(work["modules"]) == set()
