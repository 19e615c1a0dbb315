"""The profile's bounds of the preflight reach the pod, and the pod knows its node."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.pod.preflight import PreflightBounds
from dapt_operator.api.v1alpha1.base import camel_case
from dapt_operator.api.v1alpha1.profile import ProfilePreflight
from dapt_operator.launchers.render.environment import SINGLE_POD, environment_of
from dapt_trainer.errors import InputError
from dapt_trainer.pod.settings import PodSettings
from dapt_trainer.preflight import findings
from support.launch_builders import profile, stage_run


def variables(**changes: Any) -> dict[str, dict[str, Any]]:
    made = environment_of(stage_run(), profile(**changes), SINGLE_POD, {})
    return {item["name"]: item for item in made}


def read(text: str | None) -> PreflightBounds:
    return PodSettings.read(
        {"DAPT_WORK": "/work"} | ({} if text is None else {"DAPT_PREFLIGHT": text})
    ).preflight


def test_bounds_of_the_profile_arrive_in_the_pod() -> None:
    bounds = {"minAllReduceGiBPerSecond": 80.0, "maxClockDifferenceSeconds": 2.0}
    text = variables(preflight=bounds)["DAPT_PREFLIGHT"]["value"]
    assert text == '{"min_all_reduce_gib_per_second":80.0,"max_clock_difference_seconds":2.0}'
    assert read(text) == PreflightBounds(min_all_reduce_gib_per_second=80, max_clock_difference_seconds=2)
    assert not read(variables(preflight={"enabled": False})["DAPT_PREFLIGHT"]["value"]).enabled


def test_profile_without_bounds_measures_and_judges_nothing() -> None:
    assert "DAPT_PREFLIGHT" not in variables()
    assert read(None) == PreflightBounds()
    assert read(None).enabled


def test_every_bound_of_the_profile_is_one_of_the_trainer() -> None:
    assert set(ProfilePreflight.model_fields) == set(PreflightBounds.model_fields)


def test_messages_name_fields_that_the_profile_has() -> None:
    """A refusal names the field as it is written in YAML."""
    source = inspect.getsource(findings)
    named = set(re.findall(r'"((?:min|max)[A-Z]\w+)"|preflight\.((?:min|max)[A-Z]\w+)', source))
    fields = {camel_case(name) for name in ProfilePreflight.model_fields}
    assert {first or second for first, second in named} == fields - {"enabled"}


def test_pod_learns_the_name_of_its_node() -> None:
    source = variables()["DAPT_NODE_NAME"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert source == "spec.nodeName"
    settings = PodSettings.read({"DAPT_WORK": "/work", "DAPT_NODE_NAME": "gpu-7"})
    assert (settings.node_name, settings.work) == ("gpu-7", Path("/work"))
    assert PodSettings.read({"DAPT_WORK": "/work"}).node_name != ""


@pytest.mark.parametrize("text", ["fast", '{"min_write_mib_per_second": -1}'])
def test_bounds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError) as raised:
        read(text)
    assert str(raised.value) == (
        f"DAPT_PREFLIGHT is {text!r}, expected bounds as JSON: set the profile's preflight"
    )
