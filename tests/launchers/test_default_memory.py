"""The stages that read what others have written have a limit of memory, whoever wrote the manifest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dapt_operator.launchers import LAUNCHERS
from dapt_operator.launchers.render.environment import ONLINE_KINDS
from support.launch_builders import owner, profile, stage_run


def memory(
    kind: str, *, own: str | None = None, queue: str | None = None, **template: Any
) -> tuple[Any, Any]:
    """Request and limit of the memory of a rendered pod."""
    run = stage_run("done", queue=queue)
    run = replace(run, kind=kind, resources=replace(run.resources, memory=own))
    given = {"spec": {"containers": [{"name": "trainer", "resources": template}]}}
    *_, job = LAUNCHERS["IndexedJob"].render(run, profile(podTemplate=given), owner())
    found = job["spec"]["template"]["spec"]["containers"][0]["resources"]
    return found.get("requests", {}).get("memory"), found.get("limits", {}).get("memory")


@pytest.mark.parametrize("kind", ONLINE_KINDS)
def test_a_stage_with_network_has_a_limit_of_memory(kind: str) -> None:
    expected = ("2Gi", "32Gi") if kind in ("prepare", "tuning_data") else ("1Gi", "16Gi")
    assert memory(kind) == expected


def test_memory_of_the_adaptation_or_the_template_replaces_the_default() -> None:
    assert memory("prepare", own="4Gi") == ("4Gi", "4Gi")
    assert memory("prepare", limits={"memory": "6Gi"}) == (None, "6Gi")
    assert memory("prepare", requests={"memory": "8Gi"}) == ("8Gi", "32Gi")
    assert memory("prepare", requests={"memory": "64Gi"}) == ("64Gi", "64Gi")


def test_stages_that_train_and_queued_ones_get_no_memory_by_default() -> None:
    assert memory("pretrain") == (None, None)
    assert memory("prepare", queue="team") == (None, None)
