"""The workflow on GitHub runs what .ci/run runs, and the hooks of a commit are those of `make setup`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yaml").read_text())
JOBS: dict[str, Any] = WORKFLOW["jobs"]
SCRIPT = (ROOT / ".ci" / "run").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
each_job = pytest.mark.parametrize("job", JOBS)


def targets(shell: str) -> list[str]:
    """Return the targets of the Makefile that lines of a shell ask for, in their order."""
    lines = (line.split("#")[0] for line in shell.splitlines())
    return [target for line in lines for target in re.findall(r"(?:^|\s)make ([a-z-]+)", line)]


def prerequisites(target: str) -> list[str]:
    """Return what a target of the Makefile makes first."""
    (found,) = re.findall(rf"^{target}:([^#\n]*)", MAKEFILE, flags=re.MULTILINE)
    return str(found).split()


def steps_of_the_script() -> list[str]:
    """Return the targets that .ci/run makes, with `test` replaced by its parts."""
    return [
        step
        for target in targets(SCRIPT)
        for step in (prerequisites("test") if target == "test" else [target])
    ]


def steps_of(job: str) -> list[str]:
    return [target for step in JOBS[job]["steps"] for target in targets(step.get("run", ""))]


def test_the_jobs_run_every_step_of_the_script_and_no_other() -> None:
    assert {"lint", "types", "imports", "unit", "torch-tests", "cluster-tests"} <= set(steps_of_the_script())
    assert {step for job in JOBS for step in steps_of(job)} == set(steps_of_the_script())


def test_no_step_but_the_set_up_runs_twice() -> None:
    steps = [step for job in JOBS for step in steps_of(job) if step != "setup"]
    assert sorted(steps) == sorted(set(steps))


@each_job
def test_a_job_keeps_the_order_of_the_script_and_sets_up_first(job: str) -> None:
    order = list(dict.fromkeys(steps_of_the_script()))
    steps = steps_of(job)
    assert steps[0] == "setup"
    assert steps == sorted(steps, key=order.index)


@each_job
def test_a_job_does_nothing_but_call_the_makefile(job: str) -> None:
    runs = [step["run"] for step in JOBS[job]["steps"] if "run" in step]
    assert [run for run in runs if len(targets(run)) != 1 or "\n" in run.strip()] == []


def test_components_are_built_where_they_are_tested() -> None:
    assert {"cluster-extras", "cluster-tests"} <= set(steps_of("cluster-tests"))
    (cache,) = [step for step in JOBS["cluster-tests"]["steps"] if "/cache@" in step.get("uses", "")]
    assert cache["with"]["path"] == "${{ env.DAPT_COMPONENTS }}"
    for pattern in re.findall(r"'([^']+)'", cache["with"]["key"]):
        assert list(ROOT.glob(pattern)), pattern


def test_settings_of_the_script_hold_in_the_workflow() -> None:
    exported = dict(re.findall(r"^export (\w+)=(\S+)$", SCRIPT, flags=re.MULTILINE))
    assert exported["DAPT_REQUIRE_ALL_TESTS"] == "1"
    assert exported.items() <= WORKFLOW["env"].items()


@each_job
def test_actions_are_pinned_by_commit_and_may_only_read(job: str) -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert "permissions" not in JOBS[job]
    for step in JOBS[job]["steps"]:
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"])


def test_hooks_of_a_commit_use_what_the_set_up_installed() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert {repository["repo"] for repository in config["repos"]} == {"local"}
    ours = {hook["id"]: hook["entry"] for hook in hooks if hook["language"] == "system"}
    assert {"ruff-check", "ruff-format", "lint-imports"} <= ours.keys()
    assert [name for name, entry in ours.items() if not entry.startswith(".venv/bin/")] == []
    pins = [pin for hook in hooks for pin in hook.get("additional_dependencies", ())]
    assert pins
    assert [pin for pin in pins if not re.fullmatch(r"[\w-]+==[\d.]+", pin)] == []
