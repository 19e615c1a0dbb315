"""Averages and interpolations: measured once an attempt, ranked like checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_contract.stage_file import StageFile, digest_without_checks
from dapt_contract.stages.blend import Blend, BlendConfig, BlendFacts, BlendRow, KeepRule
from dapt_contract.stages.common import Member, ModelReference
from dapt_contract.stages.evaluate import EvaluateConfig, EvaluateFacts
from dapt_contract.stages.finetune import FinetuneConfig, FinetuneFacts
from dapt_contract.stages.publish import PublishConfig
from dapt_contract.stages.verify import VerifyConfig
from dapt_operator.testing.objects import Ends, Script, Stays
from support.builders import (
    BASE_GENERAL_NATS,
    blended,
    checkpoint,
    facts_for,
    healthy,
    measure,
    pretrain_facts,
)
from support.worlds import World

BLENDS: dict[str, Any] = {
    "selection": {"interpolate": [0.6, 0.8, 1.0], "averageLast": 3},
    "gates": {"onBreach": "Block"},
    "evaluation": {"when": "end"},
}
ROWS = (checkpoint(10, 2.9), checkpoint(20, 2.5, 0.2), checkpoint(30, 2.7), checkpoint(40, 2.6))


def folder(step: int) -> str:
    return f"stages/pretrain-a1/try-1/checkpoint-{step}"


def told(
    rows: Any = ROWS, blends: Mapping[str, tuple[float, float]] | None = None, blend: Ends | None = None
) -> Script:
    """Pretraining with these checkpoints; blends with these domain losses and increases."""

    def script(stage: StageFile) -> Ends | Stays:
        if stage.kind == "pretrain":
            return Ends(facts=pretrain_facts(rows))
        if isinstance(stage.config, BlendConfig):
            if blend is not None:
                return blend
            known = blends or {}
            made = [blended(one, *known.get(one.candidate, (2.95, 0.01))) for one in stage.config.blends]
            return Ends(facts=BlendFacts(rows=tuple(made)))
        return healthy(stage)

    return script


def test_one_run_measures_the_average_and_the_ways_back_to_the_base() -> None:
    world = World(BLENDS)
    world.live(told())
    assert world.stages == [
        "destination", "prepare", "baseline", "pretrain", "blend", "evaluate", "finetune", "verify", "publish",
    ]  # fmt: skip
    config = world.config("blend")
    assert isinstance(config, BlendConfig)
    assert [blend.candidate for blend in config.blends] == [
        "a1-avg3",
        "a1-s40-i0.6", "a1-s40-i0.8",
        "a1-s20-i0.6", "a1-s20-i0.8",  # the largest gain on half A, whether it passes or not
        "a1-avg3-i0.6", "a1-avg3-i0.8",
    ]  # fmt: skip
    recipes = {blend.candidate: blend.model for blend in config.blends}
    assert recipes["a1-avg3"] == ModelReference(
        weights="model",
        adapters=(folder(40),),
        averaged_with=(
            Member(weights="model", adapters=(folder(20),)), Member(weights="model", adapters=(folder(30),)),
        ),
        origin="model",
    )  # fmt: skip
    assert recipes["a1-s20-i0.8"] == ModelReference(
        weights="model", adapters=(folder(20),), interpolation=0.8, origin="model"
    )
    assert recipes["a1-avg3-i0.6"] == recipes["a1-avg3"].model_copy(update={"interpolation": 0.6})
    assert config.context_length_tokens == 128


def test_with_full_weights_the_members_are_folders() -> None:
    full = {"pretraining": {"method": {"lora": None, "full": {}}, "distribution": {"zeroStage": 0}}}
    world = World(BLENDS | full, {"accelerator": {"memoryGiB": 80}})
    world.live_until("blend", told())
    config = world.config("blend")
    assert isinstance(config, BlendConfig)
    assert config.blends[0].model.weights == folder(40)
    assert config.blends[0].model.averaged_with == (Member(weights=folder(20)), Member(weights=folder(30)))


def test_a_way_back_to_the_base_may_be_the_best_that_passes() -> None:
    world = World(BLENDS)
    world.live(told(blends={"a1-s20-i0.8": (2.55, 0.1)}))
    assert world.status["selected"]["id"] == "a1-s20-i0.8"
    assert world.status["selected"]["reason"] == (
        "largest gain of 10 candidates within the perplexity limit on half A; it passes the gates on half B"
    )
    config = world.config("evaluate")
    assert isinstance(config, EvaluateConfig)
    assert (config.model.interpolation, config.model.adapters) == (0.8, (folder(20),))
    shown = next(one for one in world.status["candidates"] if one["id"] == "a1-s20-i0.8")
    assert (shown["attempt"], "step" in shown, shown["passes"]) == (1, False, True)
    publish = world.config("publish")
    assert isinstance(publish, PublishConfig)
    assert publish.card.candidate == "a1-s20-i0.8"
    assert publish.card.training_tokens == 40 * 8 * 128


def test_blends_that_pass_keep_an_attempt() -> None:
    spec = BLENDS | {"gates": {"onBreach": "Rollback"}}
    world = World(spec)
    world.live(told([checkpoint(10, 2.9, 0.3), checkpoint(20, 2.5, 0.4)], {"a1-s20-i0.6": (2.7, 0.1)}))
    assert world.stages.count("pretrain") == 1
    assert "a1-avg2" in {one["id"] for one in world.status["candidates"]}


def test_no_blend_that_passes_starts_another_attempt_and_all_attempts_are_blended() -> None:
    def script(stage: StageFile) -> Ends | Stays:
        if stage.kind == "pretrain" and stage.run.attempt == 1:
            return Ends(facts=pretrain_facts([checkpoint(40, 2.5, 0.4)]))
        if isinstance(stage.config, BlendConfig) and stage.run.attempt == 1:
            return Ends(facts=BlendFacts(rows=tuple(blended(b, 2.7, 0.3) for b in stage.config.blends)))
        return healthy(stage)

    world = World(BLENDS | {"gates": {"onBreach": "Rollback"}})
    world.live(script)
    assert world.stages[:7] == [
        "destination",
        "prepare",
        "baseline",
        "pretrain",
        "blend",
        "pretrain",
        "blend",
    ]
    assert [run.run.attempt for run in world.runs if run.kind == "blend"] == [1, 2]
    assert world.status["phase"] == "Published"


def test_an_attempt_stopped_at_the_limit_is_blended_when_the_last_has_ended() -> None:
    def script(stage: StageFile) -> Ends | Stays:
        if stage.kind == "pretrain" and stage.run.attempt == 1:
            facts = pretrain_facts([checkpoint(10, 2.5, 0.9)], "ForgettingLimit", message="past it")
            return Ends(76, facts=facts, message="past it", cause=Cause.FORGETTING_LIMIT)
        return healthy(stage)

    world = World(BLENDS | {"gates": {"onBreach": "Rollback"}})
    world.live(script)
    assert world.stages[3:7] == ["pretrain", "pretrain", "blend", "blend"]


def test_weights_after_a_divergence_are_no_part_of_a_blend() -> None:
    bad = checkpoint(30, float("nan"), 0.1).model_copy(update={"general_a_nats": float("inf")})
    world = World(BLENDS)
    world.live_until("blend", told([*ROWS[:2], bad]))
    config = world.config("blend")
    assert isinstance(config, BlendConfig)
    assert [blend.candidate for blend in config.blends][:3] == ["a1-avg2", "a1-s20-i0.6", "a1-s20-i0.8"]


def test_without_shares_and_average_there_is_no_such_stage() -> None:
    world = World(BLENDS | {"selection": {"interpolate": [1.0], "averageLast": 1}})
    world.live(told())
    assert "blend" not in world.stages


def test_new_shares_are_measured_in_a_run_of_their_own_and_old_numbers_stay() -> None:
    world = World(BLENDS)
    script = told([checkpoint(10, 2.9, 0.3), checkpoint(20, 2.5, 0.4)])
    broken = {f"a1-{name}": (2.7, 0.3) for name in ("avg2", "s20-i0.6", "s20-i0.8", "avg2-i0.6", "avg2-i0.8")}
    world.live(told([checkpoint(10, 2.9, 0.3), checkpoint(20, 2.5, 0.4)], broken))
    assert world.status["phase"] == "Stalled"
    world.edit(selection={"interpolate": [0.3, 0.8]})
    world.live_until("blend", script)
    config = world.config("blend")
    assert isinstance(config, BlendConfig)
    assert [blend.candidate for blend in config.blends] == ["a1-s20-i0.3", "a1-avg2-i0.3"]
    world.live(script)
    shown = [one["id"] for one in world.status["candidates"]]
    assert shown == [
        "a1-s10",
        "a1-s20",
        "a1-avg2",
        "a1-s20-i0.3",
        "a1-s20-i0.8",
        "a1-avg2-i0.3",
        "a1-avg2-i0.8",
    ]
    assert world.stages.count("blend") == 2
    assert world.status["phase"] == "Published"


def test_blends_that_cannot_be_measured_are_done_without() -> None:
    world = World(BLENDS)
    world.live(told(blend=Ends(64, message="parts do not fit", cause=Cause.BAD_INPUT)))
    assert world.status["selected"]["id"] == "a1-s40"
    assert world.status["selected"]["reason"] == (
        "largest gain of 3 candidates within the perplexity limit on half A;"
        " it passes the gates on half B; without the blends of attempt 1, whose stage failed: parts"
        " do not fit"
    )
    assert world.status["phase"] == "Published"


def test_failed_blend_that_alone_could_pass_needs_user_action_and_no_rollback() -> None:
    world = World(BLENDS | {"gates": {"onBreach": "Rollback"}})
    fails = told(
        [checkpoint(10, 2.5, 0.4)], blend=Ends(64, message="parts do not fit", cause=Cause.BAD_INPUT)
    )
    world.live(fails)
    assert world.condition("Stalled")[1] == "BadInput"
    assert world.stages.count("pretrain") == 1
    world.edit(seed=18)
    world.live(told([checkpoint(10, 2.5, 0.4)], {"a1-s10-i0.6": (2.8, 0.1)}))
    assert world.status["selected"]["id"] == "a1-s10-i0.6"


def test_with_every_checkpoint_blends_that_pass_are_evaluated_too() -> None:
    world = World(BLENDS | {"evaluation": {"when": "everyCheckpoint"}}, {"evaluation": {"concurrency": 2}})

    def script(stage: StageFile) -> Ends | Stays:
        if isinstance(stage.config, EvaluateConfig):
            good = stage.config.candidate == "a1-avg3-i0.8"
            found = measure(2.4 if good else 2.8, digest=(stage.config.expected_digest or "").ljust(64, "0"))
            return Ends(facts=EvaluateFacts(candidate=stage.config.candidate, measure=found))
        return told(blends={"a1-s20-i0.8": (2.55, 0.4)})(stage)

    world.live(script)
    asked = {run.run.candidate for run in world.runs if run.kind == "evaluate"}
    assert asked == {
        "a1-s10", "a1-s20", "a1-s30", "a1-s40", "a1-avg3", "a1-s40-i0.6", "a1-s40-i0.8", "a1-s20-i0.6",
        "a1-avg3-i0.6", "a1-avg3-i0.8",
    }  # fmt: skip
    assert world.status["selected"]["id"] == "a1-avg3-i0.8"


def test_evaluations_run_in_parallel_with_the_blend() -> None:
    world = World(BLENDS | {"evaluation": {"when": "everyCheckpoint"}}, {"evaluation": {"concurrency": 2}})
    world.live_until("pretrain")
    world.end("pretrain", Ends(facts=pretrain_facts(ROWS)))
    world.settle()
    assert world.alive == ["blend", "evaluate a1-s10", "evaluate a1-s20"]
    world.cluster.run_pods(world.key, lambda s: Ends(facts=facts_for(s)) if s.kind == "blend" else Stays())
    world.live()
    assert world.status["phase"] == "Published"


def kept(blend: Blend, domain_nats: float = 2.95, increase: float = 0.01) -> BlendRow:
    """The row of a blend whose folder stayed on the volume."""
    return blended(blend, domain_nats, increase).model_copy(update={"try_number": 1})


def test_a_chosen_blend_that_stayed_is_a_folder_for_every_later_stage() -> None:
    def script(stage: StageFile) -> Ends | Stays:
        if isinstance(stage.config, BlendConfig):
            rows = (kept(one, 2.55 if one.candidate == "a1-avg3" else 2.95) for one in stage.config.blends)
            return Ends(facts=BlendFacts(rows=tuple(rows)))
        return told()(stage)

    world = World(BLENDS)
    world.live(script)
    assert world.status["selected"]["id"] == "a1-avg3"
    plain = ModelReference(weights="stages/blend-a1/try-1/blends/a1-avg3", origin="model")
    evaluate, finetune, verify = (world.config(kind) for kind in ("evaluate", "finetune", "verify"))
    assert isinstance(evaluate, EvaluateConfig)
    assert isinstance(finetune, FinetuneConfig)
    assert isinstance(verify, VerifyConfig)
    digest = "000000000007"  # of the row
    assert (evaluate.model, evaluate.expected_digest) == (plain, digest)
    assert (plain.weights, digest) in evaluate.recorded.folders
    assert finetune.model == plain
    assert (plain.weights, digest) in finetune.recorded.folders
    assert verify.models[1].model == plain
    assert world.status["phase"] == "Published"


def test_the_adapter_of_a_blend_is_made_of_the_adapters_of_its_checkpoints() -> None:
    """Also where the blend lies in a folder of its own, which every stage before has read."""
    tuned = "stages/finetune-a1-a1-avg3/try-1/model"

    def script(stage: StageFile) -> Ends | Stays:
        if isinstance(stage.config, BlendConfig):
            rows = (kept(one, 2.55 if one.candidate == "a1-avg3" else 2.95) for one in stage.config.blends)
            return Ends(facts=BlendFacts(rows=tuple(rows)))
        facts = facts_for(stage)
        if isinstance(facts, FinetuneFacts) and isinstance(stage.config, FinetuneConfig):
            return Ends(facts=facts.model_copy(update={"model": stage.config.model.with_tuned(tuned)}))
        return told()(stage)

    merged, adapter = World(BLENDS), World(BLENDS | {"output": {"form": "adapter"}})
    for world in (merged, adapter):
        world.live(script)
        assert world.status["phase"] == "Published"
    published, whole = adapter.config("publish"), merged.config("publish")
    assert isinstance(published, PublishConfig)
    assert isinstance(whole, PublishConfig)
    assert whole.adapter is None
    assert published.model == whole.model
    assert published.model.weights == "stages/blend-a1/try-1/blends/a1-avg3"
    assert published.adapter is not None
    assert published.adapter.recipe == ModelReference(
        weights="model",
        adapters=(folder(40),),
        averaged_with=(
            Member(weights="model", adapters=(folder(20),)),
            Member(weights="model", adapters=(folder(30),)),
        ),
        origin="model",
        tuned=(tuned,),
    )
    parts = {folder(20), folder(30), folder(40), published.model.weights}
    assert parts <= {name for name, _ in published.recorded.folders}
    assert published.run_digest != whole.run_digest


def test_the_folder_of_a_further_round_is_that_of_its_run() -> None:
    world = World(BLENDS)
    over = {f"a1-{name}": (2.7, 0.3) for name in ("avg2", "s20-i0.6", "s20-i0.8", "avg2-i0.6", "avg2-i0.8")}
    rows = [checkpoint(10, 2.9, 0.3), checkpoint(20, 2.5, 0.4)]
    world.live(told(rows, over))
    world.edit(selection={"interpolate": [0.3, 0.8]})

    def script(stage: StageFile) -> Ends | Stays:
        if isinstance(stage.config, BlendConfig):
            return Ends(facts=BlendFacts(rows=tuple(kept(one) for one in stage.config.blends)))
        return told(rows)(stage)

    world.live(script)
    run = next(run.run for run in reversed(world.runs) if run.kind == "blend")
    config = world.config("evaluate")
    assert isinstance(config, EvaluateConfig)
    assert config.model.weights == f"stages/blend-a1-{run.candidate}/try-1/blends/{config.candidate}"


def test_the_rule_for_what_stays_follows_the_gate_and_restarts_nothing() -> None:
    world = World(BLENDS | {"gates": {"onBreach": "Block", "maxGeneralPerplexityIncrease": 0.2}})
    world.live_until("blend", told())
    config = world.config("blend")
    assert isinstance(config, BlendConfig)
    assert config.keeps.most == 3
    assert config.keeps.general_limit_a_nats == pytest.approx(BASE_GENERAL_NATS + math.log(1.2))
    assert digest_without_checks(config) == digest_without_checks(
        config.model_copy(update={"keeps": KeepRule()})
    )
    world.edit(gates={"onBreach": "Block", "maxGeneralPerplexityIncrease": 0.1})
    world.settle()
    assert world.stages.count("blend") == 1
