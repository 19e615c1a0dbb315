"""Preference tuning at the end of the chain."""

from __future__ import annotations

import pytest

from builders import healthy, measure
from dapt_contract.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.align import AlignConfig
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.evaluate import VerifyConfig, VerifyFacts
from dapt_contract.stages.publish import PublishConfig
from dapt_operator.cluster.memory import Ends, Stays
from worlds import World

PREFERENCE = {"preference": {"data": [{"source": "file:///text/preferences.jsonl"}]}}
TUNED = ModelReference(weights="model", adapters=("a", "b"))
ALIGNED = ModelReference(weights="model", adapters=("a",), tuned=("b", "c"))


def test_align_follows_finetune_and_verify_compares_all_four() -> None:
    world = World(PREFERENCE)
    world.live()
    assert world.stages[-4:] == ["finetune", "align", "verify", "publish"]
    align, verify, publish = (world.config(kind) for kind in ("align", "verify", "publish"))
    assert isinstance(align, AlignConfig)
    assert align.model == TUNED
    assert isinstance(verify, VerifyConfig)
    assert [named.name for named in verify.models] == ["base", "chosen", "finetuned", "final"]
    assert (verify.models[2].model, verify.models[3].model) == (TUNED, ALIGNED)
    assert isinstance(publish, PublishConfig)
    assert publish.model == ALIGNED
    assert world.status["output"]["deployable"] is True
    assert world.status["frozen"]["preference"] is True


def test_running_out_of_memory_halves_the_micro_batch() -> None:
    def script(stage: StageFile) -> Ends | Stays:
        if stage.kind == "align" and stage.run.try_number == 1:
            return Ends(70, message="out of memory", cause=Cause.OUT_OF_MEMORY)
        return healthy(stage)

    world = World(PREFERENCE)
    world.live(script)
    first, second = [run.config for run in world.runs if isinstance(run.config, AlignConfig)]
    assert (first.global_batch_size, second.global_batch_size) == (first.global_batch_size,) * 2
    assert second.micro_batch_size == first.micro_batch_size // 2


def test_the_phase_says_so() -> None:
    world = World(PREFERENCE)
    world.live_until("align")
    assert world.status["phase"] == "Aligning"


@pytest.mark.parametrize("on_breach", ["Block", "Rollback"])
def test_a_failed_verification_blocks_and_never_rolls_back(on_breach: str) -> None:
    def script(stage: StageFile) -> Ends | Stays:
        if stage.kind == "verify":
            return Ends(facts=VerifyFacts(final=measure(increase=0.4), digests=()))
        return healthy(stage)

    world = World(PREFERENCE | {"gates": {"onBreach": on_breach}})
    world.live(script)
    assert world.condition("Stalled")[1] == "VerifyFailed"
    assert world.stages.count("pretrain") == 1
