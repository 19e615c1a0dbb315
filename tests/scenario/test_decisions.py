"""Tests selection and gates over whole adaptations: what blocks, what an edit decides again, what a warning passes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from dapt_contract.measure import Measure
from dapt_contract.pod.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.evaluate import EvaluateConfig, EvaluateFacts
from dapt_contract.stages.pretrain import CheckpointFacts, PretrainConfig
from dapt_contract.stages.publish import PublishConfig
from dapt_contract.stages.verify import VerifyFacts
from dapt_operator.testing.objects import Ends, Script, Stays
from support.builders import checkpoint, healthy, measure, pretrain_facts
from support.worlds import World

REMEDIES = (
    "everything is kept: change gates or selection here to decide again from the stored numbers, or start a new"
    " adaptation with more corpus.replayFraction (it was 0.13), a lower learningRate (it was 0.0001) or fewer tokens"
)

LEARN_MORE = (
    "everything is kept: change gates or selection here to decide again from the stored numbers, or start a new"
    " adaptation with more tokens, a higher learningRate (it was 0.0001) or less corpus.replayFraction (it was 0.13)"
)


def measured(
    rows: list[CheckpointFacts],
    evaluations: Mapping[str, Measure] | None = None,
    final: Measure | None = None,
    ends: Ends | None = None,
) -> Script:
    """Pretraining with these checkpoints, evaluations by candidate, a final measure."""

    def script(stage: StageFile) -> Ends | Stays:
        if stage.kind == "pretrain":
            return ends or Ends(facts=pretrain_facts(rows))
        if isinstance(stage.config, EvaluateConfig) and evaluations is not None:
            name = stage.config.candidate
            return Ends(facts=EvaluateFacts(candidate=name, measure=evaluations[name]))
        if stage.kind == "verify" and final is not None:
            return Ends(facts=VerifyFacts(final=final, digests=()))
        return healthy(stage)

    return script


def rows(*increases: float) -> list[CheckpointFacts]:
    """Checkpoints at 10, 20, ... whose domain loss falls, with these increases of general perplexity."""
    return [checkpoint(10 * (i + 1), 2.9 - 0.1 * i, rise) for i, rise in enumerate(increases)]


def test_the_largest_gain_among_those_that_pass_is_taken() -> None:
    world = World()
    world.live(measured(rows(0.05, 0.14, 0.3, 0.5)))
    assert world.status["selected"]["id"] == "a1-s20"
    assert world.status["selected"]["reason"] == (
        "largest gain of 2 candidates within the perplexity limit on half A; it passes the gates on half B"
    )
    passes = {one["id"]: one.get("passes") for one in world.status["candidates"]}
    assert passes == {"a1-s10": None, "a1-s20": True, "a1-s30": False, "a1-s40": False}


def test_gates_that_no_candidate_passes_stall_with_remedies() -> None:
    world = World()
    world.live(measured(rows(0.2, 0.21)))
    assert world.stages[-1] == "pretrain"
    message = (
        "no candidate passes the gates: general perplexity of a1-s20 on half B is +21.0% against"
        " the base model's, over the"
        " limit of +15.0%; general perplexity of a1-s10 on half B is +20.0% against"
        " the base model's, over the limit of +15.0%; " + REMEDIES
    )
    assert world.condition("Stalled") == ("True", "GatesBreached", message)
    assert world.condition("GatesPassed") == ("False", "GatesBreached", message)
    assert world.condition("Finished")[0] == "False"
    assert world.status["phase"] == "Stalled"
    assert world.reconcile().is_empty


def test_a_wider_gate_decides_again_without_a_new_pretraining() -> None:
    world = World()
    world.live(measured(rows(0.2, 0.21)))
    world.edit(gates={"maxGeneralPerplexityIncrease": 0.205})
    world.live(measured(rows(0.2, 0.21), {"a1-s10": measure(increase=0.2)}, measure(increase=0.2)))
    assert world.tries[4:] == ["evaluate/1", "finetune/1", "verify/1", "publish/1"]
    assert world.status["selected"]["id"] == "a1-s10"
    assert world.status["phase"] == "Published"


def test_a_candidate_that_fails_on_tasks_gives_way_to_the_next() -> None:
    bad, good = measure(general_drop=0.06), measure()
    world = World()
    world.live(measured(rows(0.05, 0.05, 0.05), {"a1-s30": bad, "a1-s20": good}))
    assert [run.run.candidate for run in world.runs if run.kind == "evaluate"] == ["a1-s30", "a1-s20"]
    assert world.status["selected"]["id"] == "a1-s20"
    assert world.status["selected"]["reason"] == (
        "largest gain of 3 candidates within the perplexity limit on half A that passes the gates on half B, after"
        " a1-s30 failed there"
    )


def test_three_candidates_fail_and_no_fourth_is_tried() -> None:
    bad = measure(general_drop=0.06)
    names = {f"a1-s{step}": bad for step in (10, 20, 30, 40)}
    world = World()
    world.live(measured(rows(0.05, 0.05, 0.05, 0.05), names))
    assert [run.run.candidate for run in world.runs if run.kind == "evaluate"] == [
        "a1-s40",
        "a1-s30",
        "a1-s20",
    ]
    lost = "lost 6.0 points on 400 items (chance explains 1.6), over the limit of 3.0"
    assert world.condition("Stalled") == (
        "True",
        "GatesBreached",
        f"none of the best 3 of 4 candidates passes the gates: general of a1-s40 {lost}; general of a1-s30 {lost};"
        f" general of a1-s20 {lost}; {REMEDIES}",
    )


def test_a_candidate_that_half_b_rules_out_is_not_evaluated() -> None:
    world = World()
    table = [checkpoint(10, 2.9, 0.05), checkpoint(20, 2.5, 0.05, increase_b=0.3)]
    world.live(measured(table))
    assert [run.run.candidate for run in world.runs if run.kind == "evaluate"] == ["a1-s10"]
    assert world.status["selected"]["id"] == "a1-s10"


def test_no_gain_on_the_half_that_judges_blocks() -> None:
    world = World({"evaluation": None, "finetuning": None})
    world.live(measured([checkpoint(40, 3.0, 0.01)]))
    assert world.condition("Stalled")[1:] == (
        "NoGain",
        "no candidate passes the gates: domain perplexity of a1-s40 on half B is +0.0% against the base"
        f" model's and the gain there is 0.000, not above zero; {LEARN_MORE}",
    )


def test_too_small_a_gain_is_not_answered_with_a_rollback() -> None:
    gates = {"onBreach": "Rollback", "minDomainPerplexityDecrease": 0.5}
    world = World({"gates": gates, "evaluation": None, "finetuning": None})
    world.live(measured([checkpoint(40, 2.9, 0.01)]))
    assert [run.kind for run in world.runs].count("pretrain") == 1
    assert world.condition("Stalled")[1:] == (
        "NoGain",
        "no candidate passes the gates: domain perplexity of a1-s40 on half B is -9.5% against the base"
        f" model's, and a decrease of at least 50.0% is required; {LEARN_MORE}",
    )


def test_the_forgetting_limit_leaves_the_checkpoints_before_it() -> None:
    facts = pretrain_facts(rows(0.05, 0.7), "ForgettingLimit", message="past the hard stop")
    ends = Ends(76, facts=facts, message="past the hard stop", cause=Cause.FORGETTING_LIMIT)
    world = World()
    world.live(measured([], ends=ends))
    assert world.tries.count("pretrain/2") == 0
    assert world.status["selected"]["id"] == "a1-s10"
    assert world.status["attempts"][0]["endedBy"] == "ForgettingLimit"
    assert world.status["phase"] == "Published"


def test_divergence_before_the_first_checkpoint_blocks() -> None:
    facts = pretrain_facts([], "Diverged", message="at step 3 of 40: the loss is nan")
    ends = Ends(
        77, facts=facts, message="pretraining stopped at step 3 of 40: the loss is nan", cause=Cause.DIVERGED
    )
    world = World()
    world.live(measured([], ends=ends))
    assert world.condition("Stalled")[1:] == (
        "GatesBreached",
        f"pretraining ended without a checkpoint (at step 3 of 40: the loss is nan); {REMEDIES}",
    )


def test_lost_message_of_a_reached_limit_costs_one_short_run() -> None:
    world = World()
    facts = pretrain_facts(rows(0.05), "ForgettingLimit")

    def script(stage: StageFile) -> Ends | Stays:
        if stage.kind != "pretrain":
            return healthy(stage)
        return Ends(76, lose_message=True) if stage.run.try_number == 1 else Ends(facts=facts)

    world.live(script)
    assert world.tries.count("pretrain/2") == 1
    assert world.status["phase"] == "Published"


def test_divergence_whose_message_is_lost_twice_blocks() -> None:
    world = World()
    world.live(measured([], ends=Ends(77, lose_message=True)))
    assert world.tries[-2:] == ["pretrain/1", "pretrain/2"]
    assert world.condition("Stalled")[2] == f"pretraining ended without a checkpoint; {REMEDIES}"


def test_on_breach_warn_publishes_the_best_candidate_with_a_warning() -> None:
    world = World({"gates": {"onBreach": "Warn"}})
    world.live(measured(rows(0.2, 0.21), {"a1-s20": measure(increase=0.21)}, measure(increase=0.21)))
    breach = (
        "general perplexity of a1-s20 on half B is +21.0% against the base model's, over the limit of +15.0%"
    )
    final = (
        "general perplexity of the finished model on half B is +21.0% against the base model's,"
        " over the limit of +15.0%"
    )
    assert world.status["phase"] == "Published"
    assert (
        world.status["selected"]["reason"]
        == f"largest gain; it breaches a gate and onBreach is Warn: {breach}"
    )
    assert world.condition("GatesPassed") == ("False", "PassedWithWarnings", f"{breach}; {final}")
    publish = world.config("publish")
    assert isinstance(publish, PublishConfig)
    assert publish.card.warnings == (breach, final)
    pretrain = world.config("pretrain")
    assert isinstance(pretrain, PretrainConfig)
    assert pretrain.stop_rule.enforce_limit is False


def test_loss_within_noise_passes_and_the_model_card_warns() -> None:
    world = World()
    world.live(measured(rows(0.05), {"a1-s10": measure(general_drop=0.035, error=0.025)}))
    publish = world.config("publish")
    assert isinstance(publish, PublishConfig)
    assert publish.card.warnings == (
        "general of a1-s10 lost 3.5 points on 400 items, over the limit of 3.0 but within noise (chance explains"
        " 4.1); about 553 items would settle it",
    )


def test_a_further_try_is_not_forgiven_a_loss_within_noise() -> None:
    """With enough tries one that forgets too much passes by luck."""
    noisy = measure(general_drop=0.035, error=0.025)
    names = {"a1-s20": measure(general_drop=0.09, error=0.025), "a1-s10": noisy}
    world = World()
    world.live(measured(rows(0.05, 0.05), names))
    assert world.condition("Stalled")[1:] == (
        "GatesBreached",
        "no candidate passes the gates: general of a1-s20 lost 9.0 points on 400 items (chance explains 4.1), over the"
        " limit of 3.0; general of a1-s10 lost 3.5 points on 400 items, over the limit of 3.0 but within noise (chance"
        f" explains 4.1); about 553 items would settle it, which is forgiven the first candidate alone; {REMEDIES}",
    )


def test_a_finished_model_that_breaches_a_gate_is_not_published() -> None:
    world = World()
    world.live(measured(rows(0.05), final=measure(increase=0.4)))
    assert world.stages[-1] == "verify"
    message = (
        "verification: general perplexity of the finished model on half B is +40.0% against"
        " the base model's, over the limit of"
        f" +15.0%; {REMEDIES}"
    )
    assert world.condition("Stalled") == ("True", "VerifyFailed", message)
    assert world.condition("GatesPassed") == ("False", "VerifyFailed", message)
    world.edit(gates={"maxGeneralPerplexityIncrease": 0.5})
    world.live()
    assert world.tries[-2:] == ["verify/1", "publish/1"]
    assert world.status["phase"] == "Published"


def test_an_edit_that_selects_another_candidate_stops_the_work_on_the_first() -> None:
    world = World()
    script = measured(rows(0.05, 0.14), {"a1-s20": measure(), "a1-s10": measure()})
    world.live_until("finetune", script)
    world.edit(gates={"maxGeneralPerplexityIncrease": 0.1})
    world.live(script)
    tuned = [run.run.candidate for run in world.runs if run.kind == "finetune"]
    assert tuned == ["a1-s20", "a1-s10"]
    assert world.status["selected"]["id"] == "a1-s10"
    assert world.status["phase"] == "Published"


def test_status_columns_show_the_selected_candidate_only() -> None:
    world = World()
    world.live(measured(rows(0.05, 0.3)))
    assert world.status["forgetting"] == pytest.approx(0.05, abs=1e-5)
    assert world.status["gain"] == pytest.approx(0.6, abs=1e-5)


def test_another_answer_to_a_breach_prepares_nothing_again() -> None:
    world = World()
    world.live(measured(rows(0.2, 0.21)))
    world.edit(gates={"onBreach": "Rollback", "rollback": {"maxRollbacks": 5}})
    world.live(measured(rows(0.05, 0.06)))
    assert [one for one in world.tries if one.startswith(("destination", "prepare", "baseline"))] == [
        "destination/1",
        "prepare/1",
        "baseline/1",
    ]
    assert world.status["phase"] == "Published"
