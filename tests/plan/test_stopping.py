"""The estimated time from a stop request to a written checkpoint."""

from __future__ import annotations

import pytest

from dapt_contract.stages.pretrain import PretrainConfig
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.plan.sizing.stopping import WRITE_BYTES_PER_SECOND, stop_seconds
from dapt_operator.stage_run import RunResources
from support.builders import model_facts, profile
from support.worlds import World

MODEL = model_facts(parameters=8_000_000_000)


def offered(**accelerator: object) -> AdaptationProfileSpec:
    return AdaptationProfileSpec.model_validate(profile(accelerator=accelerator)["spec"])


def config(**over: object) -> PretrainConfig:
    world = World()
    world.live_until("pretrain")
    found = world.config("pretrain")
    assert isinstance(found, PretrainConfig)
    return PretrainConfig.model_validate(found.model_dump() | over)


def resources(nodes: int) -> RunResources:
    return RunResources(nodes=nodes, processes_per_node=8, accelerators_per_node=8, cpu=None, memory=None)


def test_a_full_checkpoint_is_written_by_all_nodes() -> None:
    full = config(lora=None)
    no_peak = offered(peakTflops=None)
    size = 8e9 * (2 + 12)
    assert stop_seconds(full, resources(1), MODEL, no_peak) == pytest.approx(size / WRITE_BYTES_PER_SECOND)
    assert stop_seconds(full, resources(4), MODEL, no_peak) == pytest.approx(
        size / 4 / WRITE_BYTES_PER_SECOND
    )
    adapters = stop_seconds(config(), resources(1), MODEL, no_peak)
    assert adapters is not None
    assert adapters < 10


def test_the_profile_says_how_fast_the_volume_is() -> None:
    full = config(lora=None)
    fast = AdaptationProfileSpec.model_validate(profile(volumeBytesPerSecond=2_000_000_000)["spec"])
    assert stop_seconds(full, resources(1), MODEL, fast, 0.001) == pytest.approx(8e9 * 14 / 2e9, rel=0.01)


def test_the_step_that_has_begun_is_waited_for() -> None:
    long_step = config(lora=None, global_batch_size=1024, sequence_length_tokens=4096)
    without = stop_seconds(long_step, resources(1), MODEL, offered(peakTflops=None))
    estimated = stop_seconds(long_step, resources(1), MODEL, offered(peakTflops=1000))
    measured = stop_seconds(long_step, resources(1), MODEL, offered(peakTflops=1000), 90.0)
    assert without is not None
    assert estimated is not None
    assert measured == pytest.approx(without + 90.0)
    # 6 x 8e9 parameters x 4.2 M tokens on 8 x 1,000 TFLOP/s at 46 %, activations as the configuration says
    assert estimated - without == pytest.approx(54, rel=0.4)


def test_a_stage_that_trains_nothing_has_nothing_to_save() -> None:
    world = World()
    world.live_until("baseline")
    assert stop_seconds(world.config("baseline"), resources(1), MODEL, offered()) is None
    assert stop_seconds(config(), resources(1), None, offered()) is None


def test_the_pods_of_a_training_get_the_time_for_their_checkpoint() -> None:
    world = World({"pretraining": {"method": {"lora": None, "full": {}}}})
    world.live_until("pretrain")
    assert world.job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 80
    world.live_until("verify")
    assert world.job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 30
