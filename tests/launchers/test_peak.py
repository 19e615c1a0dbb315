"""The accelerators' peak goes to pods that have accelerators, so that they can tell which share of it they use."""

from __future__ import annotations

import pytest

from dapt_operator.launchers.render.environment import SINGLE_POD, environment_of
from support.launch_builders import profile, stage_run

GPUS = {"kind": "gpu", "perNode": 8, "memoryGiB": 80}


@pytest.mark.parametrize(
    ("accelerator", "held", "told"),
    [(GPUS | {"peakTflops": 989.5}, 8, "989.5"), (GPUS, 8, None), (GPUS | {"peakTflops": 989.5}, 0, None)],
    ids=["of the profile", "unknown", "a stage without accelerators"],
)
def test_the_peak_of_one_accelerator(accelerator: dict[str, object], held: int, told: str | None) -> None:
    run = stage_run(processes=8, accelerators=held)
    variables = {item["name"]: item.get("value") for item in environment_of(
        run, profile(accelerator=accelerator), SINGLE_POD, {}
    )}  # fmt: skip
    assert variables.get("DAPT_PEAK_TFLOPS") == told
