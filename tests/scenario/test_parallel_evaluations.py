"""Tests evaluations in parallel with pretraining: they start early, never block, and the selection waits for them."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_contract.pod.progress import Progress
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.evaluate import EvaluateConfig, EvaluateFacts
from dapt_contract.stages.pretrain import CheckpointFacts
from dapt_operator.testing.objects import Ends, Script, Stays
from support.builders import checkpoint, facts_for, full_digest, healthy, measure, pretrain_facts
from support.worlds import World

ROWS = (checkpoint(10, 2.9), checkpoint(20, 2.8), checkpoint(30, 2.7, 0.3), checkpoint(40, 2.6))
TWO = {"evaluation": {"concurrency": 2}}


def spec(when: str = "everyCheckpoint", **over: Any) -> dict[str, Any]:
    return {
        "evaluation": {"when": when},
        "selection": {"interpolate": [1.0], "averageLast": 1},
        "gates": {"onBreach": "Block"},
    } | over


def read(world: World, *rows: CheckpointFacts, run: Script = lambda _: Stays()) -> None:
    """The running pretraining tells of these checkpoints; other runs do what `run` says."""

    def script(stage: StageFile) -> Ends | Stays:
        if stage.kind == "pretrain":
            step = rows[-1].step if rows else 0
            return Stays(Progress(run_key=stage.run.key, stage="pretrain", step=step, checkpoints=rows))
        return run(stage)

    world.cluster.run_pods(world.key, script)


def training(world: World) -> World:
    """Until pretraining runs."""
    world.live_until("pretrain")
    return world


def as_trained(stage: StageFile) -> Ends | Stays:
    """Evaluations measure what pretraining measured: later checkpoints are better in the domain."""
    if not isinstance(stage.config, EvaluateConfig):
        return healthy(stage)
    attempt, _, step = stage.config.candidate.partition("-s")
    nats = 3.0 - int(step) / 100 - int(attempt[1:]) / 10
    return Ends(
        facts=EvaluateFacts(
            candidate=stage.config.candidate, measure=measure(nats, digest=full_digest(stage.config))
        )
    )


def ids(world: World) -> list[str | None]:
    return [run.run.candidate for run in world.runs if run.kind == "evaluate"]


def test_checkpoint_is_evaluated_while_the_training_continues() -> None:
    world = training(World(spec(), TWO))
    read(world, *ROWS[:1])
    world.settle()
    assert world.alive == ["evaluate a1-s10", "pretrain"]
    assert world.condition("Reconciling") == (
        "True", "StageRunning", "pretrain is running; 1 evaluation runs in parallel",
    )  # fmt: skip
    assert world.status["phase"] == "Pretraining"
    config = world.config("evaluate")
    assert isinstance(config, EvaluateConfig)
    assert config.model.adapters == ("stages/pretrain-a1/try-1/checkpoint-10",)
    assert config.expected_digest == "00000000000a"


def test_evaluations_start_one_per_reconcile_up_to_the_concurrency() -> None:
    world = training(World(spec(), TWO))
    read(world, *ROWS)
    assert len(world.reconcile().apply) == 2  # ConfigMap and Job of one run
    assert world.plans[-1].requeue_after == 0.1
    world.settle()
    assert world.alive == ["evaluate a1-s10", "evaluate a1-s20", "pretrain"]
    world.end(
        "evaluate", Ends(facts=EvaluateFacts(candidate="a1-s10", measure=measure())), candidate="a1-s10"
    )
    world.settle()
    assert world.alive == ["evaluate a1-s20", "evaluate a1-s30", "pretrain"]


def test_a_lost_reading_only_delays() -> None:
    world = training(World(spec(), TWO))
    read(world, *ROWS[:2])
    world.settle()
    read(world)
    world.settle()
    assert world.alive == ["evaluate a1-s10", "evaluate a1-s20", "pretrain"]
    world.end("evaluate", Ends(75, message="a node is lost", cause=Cause.INFRASTRUCTURE), candidate="a1-s20")
    world.settle()
    assert world.alive == ["evaluate a1-s10", "evaluate a1-s20", "pretrain"]
    assert world.tries.count("evaluate/2") == 1


def test_candidates_are_evaluated_as_they_come_and_pass_the_gate() -> None:
    world = training(World(spec("candidates"), {"evaluation": {"concurrency": 4}}))
    read(world, *ROWS)
    world.settle()
    assert world.alive == ["evaluate a1-s10", "evaluate a1-s20", "evaluate a1-s40", "pretrain"]


def test_at_the_end_only_the_selection_asks() -> None:
    world = training(World(spec("end"), TWO))
    read(world, *ROWS)
    world.settle()
    assert world.alive == ["pretrain"]
    world.live()
    assert ids(world) == ["a1-s40"]


def test_the_selection_waits_for_every_evaluation_and_ranks_by_the_tasks_too() -> None:
    def script(stage: StageFile) -> Ends | Stays:
        if stage.kind == "pretrain":
            return Ends(facts=pretrain_facts(ROWS))
        if isinstance(stage.config, EvaluateConfig):
            gained = 0.45 if stage.config.candidate == "a1-s20" else 0.1
            told = measure(domain_gain=gained, digest=full_digest(stage.config))
            return Ends(facts=EvaluateFacts(candidate=stage.config.candidate, measure=told))
        return healthy(stage)

    world = World(spec(), TWO)
    world.live(script)
    assert ids(world) == ["a1-s10", "a1-s20", "a1-s30", "a1-s40"]
    assert world.status["selected"] == {
        "id": "a1-s20", "reason": "largest gain of 3 candidates within the perplexity limit on half A;"
        " it passes the gates on half B", "digest": "000000000014",
    }  # fmt: skip
    assert world.stages[-3:] == ["finetune", "verify", "publish"]


def test_phase_is_evaluating_while_evaluations_are_left() -> None:
    world = training(World(spec(), TWO))
    world.end("pretrain", Ends(facts=pretrain_facts(ROWS)))
    world.settle()
    assert world.alive == ["evaluate a1-s10", "evaluate a1-s20"]
    assert world.status["phase"] == "Evaluating"
    assert world.condition("Reconciling") == ("True", "StageStarting", "evaluate of a1-s10 is starting")


def test_pods_that_wait_never_hold_up_the_training() -> None:
    world = training(World(spec(), TWO | {"pendingTimeoutSeconds": 60}))
    read(world, *ROWS[:1], run=lambda _: Stays(pending_reason="Unschedulable: 0/3 nodes are available"))
    world.settle()
    read(world, *ROWS[:1], run=lambda _: Stays(pending_reason="Unschedulable: 0/3 nodes are available"))
    world.cluster.advance(600)
    world.settle()
    assert world.condition("Stalled")[0] == "False"

    def breaks(stage: StageFile) -> Ends | Stays:
        if stage.kind == "pretrain":
            return Ends(75, message="a node is lost", cause=Cause.INFRASTRUCTURE)
        return Stays(pending_reason="Unschedulable: 0/3 nodes are available")

    world.cluster.run_pods(world.key, breaks)
    world.settle()
    assert world.alive == ["evaluate a1-s10", "pretrain"]

    def ends(stage: StageFile) -> Ends | Stays:
        if stage.kind == "pretrain":
            return Ends(facts=pretrain_facts(ROWS[:1]))
        return Stays(pending_reason="Unschedulable: 0/3 nodes are available")

    world.cluster.run_pods(world.key, ends)
    world.settle()
    assert world.condition("Stalled")[:2] == ("True", "PendingTimeout")
    world.live()
    assert world.status["phase"] == "Published"


def failing_evaluation(name: str) -> Script:
    def script(stage: StageFile) -> Ends | Stays:
        if stage.kind == "pretrain":
            return Ends(facts=pretrain_facts(ROWS))
        if stage.run.candidate == name and stage.kind == "evaluate":
            return Ends(64, message="a task is broken", cause=Cause.BAD_INPUT)
        return as_trained(stage)

    return script


def test_an_evaluation_that_fails_for_good_costs_its_candidate_alone() -> None:
    world = World(spec(), TWO)
    world.live(failing_evaluation("a1-s40"))
    assert world.status["selected"]["id"] == "a1-s20"
    assert world.status["selected"]["reason"] == (
        "largest gain of 2 candidates within the perplexity limit on half A;"
        " it passes the gates on half B; without a1-s40, whose evaluation gave no result"
    )
    failed = next(one for one in world.status["stages"] if one.get("candidate") == "a1-s40")
    assert (failed["state"], failed["reason"], failed["message"]) == (
        "Failed",
        "BadInput",
        "a task is broken",
    )
    shown = next(one for one in world.status["candidates"] if one["id"] == "a1-s40")
    assert shown["message"] == "its evaluation failed: a task is broken"
    assert world.status["phase"] == "Published"


def test_edit_does_not_repeat_a_failed_evaluation_while_the_chain_continues() -> None:
    world = World(spec(), TWO)
    world.live_until("finetune", failing_evaluation("a1-s40"))
    world.edit(limits={"gpuHours": 100})
    world.settle()
    assert world.alive == ["finetune a1-s20"]


@pytest.mark.parametrize("when", ["everyCheckpoint", "candidates", "end"])
def test_failure_of_every_evaluation_needs_user_action_and_an_edit_retries(when: str) -> None:
    def broken(stage: StageFile) -> Ends | Stays:
        if stage.kind == "evaluate":
            return Ends(64, message="a task is broken", cause=Cause.BAD_INPUT)
        return healthy(stage)

    world = World(spec(when, gates={"onBreach": "Rollback"}), TWO)
    world.live(broken)
    assert world.condition("Stalled")[1] == "BadInput"
    assert world.condition("Stalled")[2].startswith("evaluate found its input wrong: a task is broken")
    assert world.stages.count("pretrain") == 1
    assert world.reconcile().is_empty
    world.edit(seed=18)
    world.live()
    assert world.status["phase"] == "Published"
    assert world.status["selected"]["id"] == "a1-s40"


def test_a_result_about_other_weights_is_refused() -> None:
    world = training(World(spec(), TWO))
    read(world, *ROWS[:2])
    world.settle()
    world.cluster.run_pods(world.key, lambda s: Ends(facts=facts_for(s)) if s.kind == "evaluate" else Stays())
    world.settle()
    again = checkpoint(20, 2.5, try_number=2).model_copy(update={"weights_digest": "abcabcabcabc"})
    world.end("pretrain", Ends(facts=pretrain_facts([ROWS[0], again])))
    world.live()
    shown = {one["id"]: one for one in world.status["candidates"]}
    assert shown["a1-s20"]["message"] == (
        "its evaluation scored the weights 000000000014, and the candidate has abcabcabcabc"
    )
    assert "tasks" not in shown["a1-s20"]
    assert world.status["selected"]["id"] == "a1-s10"


def test_suspension_stops_all_and_resuming_costs_no_retry() -> None:
    world = training(World(spec(), TWO, graceful=True))
    read(world, *ROWS[:2])
    world.settle()
    read(world, *ROWS[:2])
    world.edit(suspend=True)
    for _ in range(4):
        world.settle()
        world.cluster.run_pods(world.key, healthy)
    assert world.alive == []
    assert world.status["phase"] == "Suspended"
    assert {one["state"] for one in world.status["stages"][3:]} == {"Suspended"}
    world.edit(suspend=False)
    world.settle()
    assert world.alive == ["evaluate a1-s10", "evaluate a1-s20", "pretrain"]
    world.live()
    assert world.status["usage"]["restarts"] == 0
    assert world.status["phase"] == "Published"


def test_suspension_in_the_middle_of_the_last_evaluations() -> None:
    world = training(World(spec(), TWO))
    world.end("pretrain", Ends(facts=pretrain_facts(ROWS)))
    world.settle()
    world.edit(suspend=True)
    world.reconcile()
    assert world.alive == []
    world.settle()
    world.cluster.advance(60)
    world.settle()
    assert world.status["phase"] == "Suspended"
    world.edit(suspend=False)
    world.live()
    assert world.status["usage"]["restarts"] == 0
    assert world.status["phase"] == "Published"


def test_a_rollback_leaves_the_evaluations_of_the_stopped_attempt() -> None:
    world = training(World(spec(gates={"onBreach": "Rollback"}), TWO))
    read(world, *ROWS[:2])
    world.settle()
    facts = pretrain_facts([*ROWS[:2], checkpoint(30, 2.7, 0.9)], "ForgettingLimit", message="past it")
    world.end("pretrain", Ends(76, facts=facts, message="past it", cause=Cause.FORGETTING_LIMIT))
    world.settle()
    assert world.alive == ["evaluate a1-s10", "evaluate a1-s20", "pretrain"]
    assert world.runs[-1].run.attempt == 2
    world.live(as_trained)
    assert world.status["selected"]["id"] == "a2-s20"
    assert {"a1-s10", "a1-s20", "a1-s30"} < set(ids(world))


def test_the_end_of_the_budget_stops_all() -> None:
    world = training(World(spec(limits={"gpuHours": 1.0}), TWO))
    read(world, *ROWS[:1])
    world.settle()
    read(world, *ROWS[:1])
    world.cluster.advance(1300)  # two accelerators train, one evaluates
    for _ in range(4):
        world.settle()
        world.cluster.run_pods(world.key, lambda s: Stays())
    assert world.alive == []
    assert world.condition("Finished")[1] == "BudgetExhausted"


ONE_NODE = {"storage": {"existingClaim": None, "claimTemplate": {"accessModes": ["ReadWriteOnce"]}}}


def test_with_a_volume_of_one_node_evaluations_come_after_the_training() -> None:
    world = training(World(spec(), TWO | ONE_NODE))
    assert world.status["plan"]["warnings"][-1] == (
        "the profile's work volume (ReadWriteOnce) can be mounted by one node alone: evaluations run after pretraining,"
        " one at a time, not in parallel with it; a ReadWriteMany volume lets them run in parallel"
    )
    read(world, *ROWS)
    world.settle()
    assert world.alive == ["pretrain"]
    world.end("pretrain", Ends(facts=pretrain_facts(ROWS)))
    world.settle()
    assert world.alive == ["evaluate a1-s10"]
    world.live()
    assert len(ids(world)) == 4
    assert world.status["phase"] == "Published"


def test_a_run_costs_six_requests_and_two_deletions_at_most() -> None:
    world = World(spec(gates={"onBreach": "Rollback"}), TWO)
    training(world)
    for rows in (ROWS[:1], ROWS[:2]):
        read(world, *rows)
        world.settle()
    world.live(as_trained)
    assert world.status["phase"] == "Published"
    calls = [verb for verb in world.cluster.verbs if not verb.startswith(("apply Secret", "apply Service"))]
    deletions = [verb for verb in calls if verb.startswith("delete ")]
    assert len(calls) - len(deletions) <= 6 * len(world.runs)
    assert len(deletions) == len(set(deletions)) == 2 * len(world.runs)


def test_deleting_the_resource_ends_everything() -> None:
    world = training(World(spec(), TWO))
    read(world, *ROWS)
    world.settle()
    world.cluster.stored(world.key).resource["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z"
    plan = world.reconcile()
    # Somebody's finalizer may hold the resource for long: its runs end at once.
    assert {removal.kind for removal in plan.delete} == {"Job"}
    assert (plan.apply, plan.status) == ((), None)
    world.settle()
    assert world.alive == []


def test_evaluation_job_over_the_quota_waits_while_the_training_continues() -> None:
    world = training(World(spec(), TWO))
    world.cluster.refuse(world.key, "Job", "exceeded quota: jobs")
    read(world, *ROWS[:1])
    world.settle()
    assert world.alive == ["pretrain"]
    assert world.condition("Stalled")[0] == "False"
    world.cluster.refuse(world.key, "Job")
    world.settle()
    assert world.alive == ["evaluate a1-s10", "pretrain"]
