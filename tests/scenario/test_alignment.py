"""Preference tuning at the end of the chain."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.align import AlignConfig
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.publish import PublishConfig
from dapt_contract.stages.verify import VerifyConfig, VerifyFacts
from dapt_operator.testing.objects import Ends, Stays
from support.builders import facts_for, healthy, measure
from support.worlds import World

PREFERENCE: dict[str, dict[str, Any]] = {
    "preference": {"data": [{"source": "file:///text/preferences.jsonl"}]}
}
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

    world = World({"preference": PREFERENCE["preference"] | {"globalBatchSize": 8}})
    world.live(script)
    first, second = [run.config for run in world.runs if isinstance(run.config, AlignConfig)]
    assert (first.global_batch_size, second.global_batch_size) == (first.global_batch_size,) * 2
    assert second.micro_batch_size == first.micro_batch_size // 2


def test_phase_is_aligning_while_align_runs() -> None:
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


def test_model_card_lists_tuning_data_and_examples_lost_to_the_length() -> None:
    def script(stage: StageFile) -> Ends | Stays:
        lost = {
            "finetune": {"dropped_examples": 3, "cut_examples": 7},
            "align": {"dropped_pairs": 2, "cut_pairs": 4},
        }
        if stage.kind in lost:
            return Ends(facts=facts_for(stage).model_copy(update=lost[stage.kind]))
        return healthy(stage)

    world = World(PREFERENCE)
    world.live(script)
    publish = world.config("publish")
    assert isinstance(publish, PublishConfig)
    card = publish.card
    assert (card.sft_examples, card.dpo_pairs, card.dpo_beta) == (100, 50, 0.1)
    assert card.warnings[:4] == (
        "fine-tuning left out 3 of 103 examples: no token of their responses lies within finetuning.sequenceLength",
        "fine-tuning cut 7 of 100 examples at finetuning.sequenceLength",
        "preference tuning left out 2 of 52 pairs: their prompts leave no room for an answer within the sequence"
        " length",
        "preference tuning cut answers of 4 of 50 pairs at the sequence length",
    )
