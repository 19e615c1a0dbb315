"""The profile's bandwidth of the work volume goes to pods, whose time limits follow from it."""

from __future__ import annotations

import pytest

from dapt_operator.launchers.render.environment import SINGLE_POD, environment_of
from support.launch_builders import profile, stage_run


@pytest.mark.parametrize(
    ("fields", "expected"), [({"volumeBytesPerSecond": 100_000_000}, "100000000"), ({}, None)]
)
def test_pod_gets_the_bandwidth_that_the_profile_states(
    fields: dict[str, object], expected: str | None
) -> None:
    variables = {
        item["name"]: item.get("value")
        for item in environment_of(stage_run(), profile(**fields), SINGLE_POD, {})
    }
    assert variables.get("DAPT_VOLUME_BYTES_PER_SECOND") == expected
