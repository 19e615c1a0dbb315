"""What follows a failure, by stage and by cause."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.pretrain import PretrainConfig
from dapt_operator.testing.objects import Ends, Stays
from support.builders import checkpoint, pretrain_facts
from support.worlds import World, failing, once

STAGES = ["destination", "prepare", "baseline", "pretrain", "evaluate", "finetune", "verify", "publish"]
OVER = "start over (`dapt run MANIFEST --fresh`, or delete the DomainAdaptation and create it again)"
FROZEN = {
    "baseline": (
        "; spec.seed, spec.model, spec.corpus, spec.evaluation and spec.profile cannot change any more: to change one, "
        + OVER
    ),
    "pretrain": f"; spec.pretraining cannot change any more: to change it, {OVER}",
}
"""What the advice after a mistake adds where the start of the stage has frozen blocks."""


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "ends",
    [
        Ends(75, message="rank 1 lost its peer", cause=Cause.INFRASTRUCTURE),
        Ends(75, message="no step for 60 s", cause=Cause.HANG),
        Ends(1, message="ValueError: what"),
        Ends(143, message="asked to stop", disrupted=True),
        Ends(137, lose_message=True),
        Ends(0, lose_message=True),
    ],
    ids=["infrastructure", "hang", "crash", "disruption", "killed", "lost message"],
)
def test_fault_costs_one_run_of_its_stage(stage: str, ends: Ends) -> None:
    world = World()
    world.live(failing(stage, once(ends)))
    assert world.status["phase"] == "Published"
    assert world.tries.count(f"{stage}/2") == 1
    assert len(world.runs) == 9
    assert world.status["usage"]["restarts"] == 1
    fences = [run.run.fence for run in world.runs]
    assert fences == sorted(set(fences))


@pytest.mark.parametrize("stage", STAGES)
def test_bad_input_is_never_tried_again_by_itself(stage: str) -> None:
    world = World()
    message = "text/domain.jsonl:17: not JSON; correct the line"
    world.live(failing(stage, lambda run: Ends(64, message=message, cause=Cause.BAD_INPUT)))
    assert world.tries[-1] == f"{stage}/1"
    told = (
        f"{stage} found its input wrong: {message}; correct it, then start it again (any change of the spec does, and"
        f" so does `dapt run`){FROZEN.get(stage, '')}"
    )
    assert world.condition("Stalled") == ("True", "BadInput", told)
    assert world.condition("Reconciling")[0] == "False"
    assert world.condition("Finished")[0] == "False"
    assert world.status["phase"] == "Stalled"
    world.cluster.advance(86_400)
    assert world.reconcile().is_empty


def test_changed_spec_retries_a_stage_that_ended_with_bad_input() -> None:
    world = World()
    world.live(failing("prepare", lambda run: Ends(64, cause=Cause.BAD_INPUT)))
    world.edit(corpus={"badRecords": {"maxFraction": 0.01}})
    world.live()
    assert world.status["phase"] == "Published"
    assert world.tries[:3] == ["destination/1", "prepare/1", "prepare/2"]


@pytest.mark.parametrize(
    "edit",
    [
        {"model": {"source": "s3://models/other"}},
        {"corpus": {"domain": [{"source": "s3://corpora/corrected.jsonl"}]}},
        {"seed": 7},
    ],
    ids=["model", "corpus", "seed"],
)
def test_what_prepare_found_wrong_is_corrected_by_its_own_block(edit: dict[str, Any]) -> None:
    world = World()
    world.live(failing("prepare", lambda run: Ends(64, message="line 3", cause=Cause.BAD_INPUT)))
    assert world.status.get("frozen", {}) == {}
    world.edit(**edit)
    world.live()
    assert world.status["phase"] == "Published"
    assert world.tries[:4] == ["destination/1", "prepare/1", "prepare/2", "baseline/1"]
    first, second = (run.config for run in world.runs if run.kind == "prepare")
    assert first != second


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_global_batch() -> None:
    world = World()
    world.live(failing("pretrain", once(Ends(70, message="CUDA out of memory", cause=Cause.OUT_OF_MEMORY))))
    first, second = (run.config for run in world.runs if run.kind == "pretrain")
    assert isinstance(first, PretrainConfig)
    assert isinstance(second, PretrainConfig)
    assert (first.micro_batch_size, second.micro_batch_size) == (4, 2)
    assert first.global_batch_size == second.global_batch_size == 8
    assert world.status["resolved"]["gradientAccumulationSteps"] == 2
    assert world.status["phase"] == "Published"


def test_second_out_of_memory_needs_user_action() -> None:
    world = World()
    world.live(
        failing("pretrain", lambda run: Ends(70, message="CUDA out of memory", cause=Cause.OUT_OF_MEMORY))
    )
    assert world.tries[-2:] == ["pretrain/1", "pretrain/2"]
    assert world.condition("Stalled") == (
        "True",
        "OutOfMemory",
        "pretrain ran out of memory in run 2 and its micro-batch cannot be halved again: CUDA out of memory; give it"
        " more memory or accelerators, then start it again (any change of the spec does, and so does `dapt run`)",
    )


def test_a_micro_batch_of_one_cannot_be_halved() -> None:
    world = World({"pretraining": {"microBatchSize": 1}})
    world.live(failing("pretrain", lambda run: Ends(70, cause=Cause.OUT_OF_MEMORY)))
    assert world.tries.count("pretrain/2") == 0
    assert world.condition("Stalled")[1] == "OutOfMemory"


@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_more_memory_starts_again_what_ran_out_of_it(micro_batch_size: int) -> None:
    world = World({"pretraining": {"microBatchSize": micro_batch_size}})

    def cramped(run: StageFile) -> Ends | None:
        return Ends(70, cause=Cause.OUT_OF_MEMORY)

    # Often enough that the micro-batch cannot be halved as often as it ran out of memory.
    for gibibytes in (16, 32, 64, 128):
        world.live(failing("pretrain", cramped))
        assert world.condition("Stalled")[1] == "OutOfMemory"
        world.edit(resources={"memory": f"{gibibytes}Gi"})
    interruption = Ends(75, message="a rank is lost", cause=Cause.INFRASTRUCTURE)
    num_runs = len(world.runs)
    world.live(failing("pretrain", lambda run: interruption if len(world.runs) == num_runs + 1 else None))
    assert world.status["phase"] == "Published"
    config = world.config("pretrain")
    assert isinstance(config, PretrainConfig)
    assert (config.micro_batch_size, config.global_batch_size) == (1, 8)


def test_a_measuring_stage_has_no_micro_batch_to_halve() -> None:
    world = World()
    world.live(failing("baseline", lambda run: Ends(70, cause=Cause.OUT_OF_MEMORY)))
    assert world.tries[-1] == "baseline/1"
    assert world.condition("Stalled")[1] == "OutOfMemory"


@pytest.mark.parametrize("stage", STAGES)
def test_never_three_failures_without_a_step_gained(stage: str) -> None:
    world = World()
    world.live(failing(stage, lambda run: Ends(75, message="the disk is gone", cause=Cause.INFRASTRUCTURE)))
    assert world.tries[-3:] == [f"{stage}/1", f"{stage}/2", f"{stage}/3"]
    assert world.condition("Stalled") == (
        "True",
        "RetriesExhausted",
        f"{stage} failed 3 times in a row without a new optimizer step, last by Infrastructure: the disk is gone;"
        " correct it, then start it again (any change of the spec does, and so does `dapt run`)",
    )


def test_gained_steps_allow_runs_up_to_the_retries_of_the_profile() -> None:
    world = World(offered={"retries": {"infrastructure": 5}})

    def gaining(run: StageFile) -> Ends:
        rows = [checkpoint(10 * (i + 1)) for i in range(min(run.run.try_number, 4))]
        facts = pretrain_facts(rows, "Stopped", steps=10 * run.run.try_number)
        return Ends(75, facts=facts, message="a rank is lost", cause=Cause.INFRASTRUCTURE)

    world.live(failing("pretrain", gaining))
    assert world.tries[-1] == "pretrain/6"
    assert world.condition("Stalled") == (
        "True",
        "RetriesExhausted",
        "pretrain failed 6 times (retries.infrastructure is 5), last by Infrastructure: a rank is lost; correct it,"
        " then start it again (any change of the spec does, and so does `dapt run`)",
    )


def test_hanging_has_its_own_budget() -> None:
    world = World(offered={"retries": {"hang": 1}})
    world.live(failing("verify", lambda run: Ends(75, message="no heartbeat", cause=Cause.HANG)))
    assert world.tries[-1] == "verify/2"
    assert world.condition("Stalled")[2].startswith(
        "verify failed 2 times by hanging (retries.hang is 1), last by Hang"
    )


def evicted(run: StageFile, steps: int = 0) -> Ends:
    """The pod of a run is taken away; `steps`: that pretraining reached."""
    facts = pretrain_facts([checkpoint(10)], "Stopped", steps=steps) if steps else None
    return Ends(143, disrupted=True, message="evicted by the node", facts=facts)


def test_disruptions_are_free_while_pretraining_gains_steps() -> None:
    world = World()
    world.live(
        failing(
            "pretrain",
            lambda run: evicted(run, run.run.try_number) if run.run.try_number < 20 else None,
        )
    )
    assert world.status["phase"] == "Published"
    assert world.tries.count("pretrain/20") == 1
    assert world.cluster.now < datetime(2026, 1, 31, 13, 0, tzinfo=UTC)  # none of them was waited out


@pytest.mark.parametrize("stage", STAGES)
def test_disruptions_without_a_step_gained_are_waited_out_and_end_in_user_action(stage: str) -> None:
    world = World(offered={"retries": {"disruption": 3}})
    world.live(failing(stage, evicted))
    assert world.tries[-4:] == [f"{stage}/{number}" for number in range(1, 5)]
    assert world.condition("Stalled") == (
        "True",
        "RetriesExhausted",
        f"{stage} was interrupted 4 times in a row without a new optimizer step (retries.disruption is 3), last by"
        " Disruption: evicted by the node; give it capacity that is not taken away so soon (another queue, priority"
        " class or node pool), then start it again (any change of the spec does, and so does `dapt run`)",
    )
    world.edit(gates={"maxGeneralPerplexityIncrease": 0.2})
    world.live()
    assert world.status["phase"] == "Published"


def test_the_second_disruption_in_a_row_delays_the_next_run() -> None:
    world = World()
    world.live_until("prepare")
    waits = []
    for _ in range(4):
        world.cluster.run_pods(world.key, evicted, seconds=0)
        world.settle()
        waits.append(0.0 if world.running else world.plans[-1].requeue_after)
        world.live(evicted, until=lambda one: one.running is not None)
    assert waits == [0.0, 10.0, 20.0, 40.0]


def test_suspending_again_and_again_is_no_disruption() -> None:
    world = World(offered={"retries": {"disruption": 1}})
    world.live_until("pretrain")
    for _ in range(3):
        world.cluster.run_pods(world.key, lambda run: Stays())
        world.edit(suspend=True)
        world.settle()
        world.cluster.delete_jobs(world.key)
        world.settle()
        world.edit(suspend=False)
        world.live(lambda run: Stays(), until=lambda one: one.running == "pretrain")
    assert world.status["stages"][-1]["try"] == 4
    assert world.status["ledger"]["runs"][-1].get("disruptions", 0) == 0


def test_jobs_that_somebody_keeps_deleting_end_in_user_action() -> None:
    world = World(offered={"retries": {"disruption": 2}})
    world.live_until("prepare")
    for _ in range(3):
        world.cluster.run_pods(world.key, lambda run: Stays())
        world.settle()
        world.cluster.advance(11)
        world.cluster.delete_jobs(world.key)
        world.live(lambda run: Stays(), until=lambda one: one.running is not None)
    assert world.condition("Stalled")[1:] == (
        "RetriesExhausted",
        "prepare was interrupted 3 times in a row without a new optimizer step (retries.disruption is 2), last by"
        " Disruption: its Job is gone; give it capacity that is not taken away so soon (another queue, priority class"
        " or node pool), then start it again (any change of the spec does, and so does `dapt run`)",
    )


def test_second_failure_in_a_row_delays_the_next_run() -> None:
    world = World()
    script = failing(
        "prepare", lambda run: Ends(75, cause=Cause.INFRASTRUCTURE) if run.run.try_number < 3 else None
    )
    world.live_until("prepare", script)
    world.cluster.run_pods(world.key, script)
    world.settle()
    assert world.tries[1:] == ["prepare/1", "prepare/2"]
    world.cluster.run_pods(world.key, script)
    plan = world.reconcile()
    world.settle()
    assert world.tries[1:] == ["prepare/1", "prepare/2"]
    assert plan.requeue_after == 10.0
    assert world.condition("Reconciling") == (
        "True", "Retrying", "prepare failed (Infrastructure) and runs again at 2026-01-31T12:01:40Z",
    )  # fmt: skip
    world.cluster.advance(10)
    world.settle()
    assert world.tries[-1] == "prepare/3"
    assert world.condition("Reconciling") == (
        "True", "Retrying", "prepare is starting again (run 3)",
    )  # fmt: skip


def test_job_deleted_from_outside_costs_one_run() -> None:
    world = World()
    world.live_until("pretrain")
    world.cluster.advance(60)
    world.cluster.delete_jobs(world.key)
    world.live()
    assert world.tries.count("pretrain/2") == 1
    assert world.status["phase"] == "Published"


def test_diverged_finetuning_needs_user_action() -> None:
    world = World()
    world.live(
        failing("finetune", lambda run: Ends(77, message="the loss is nan at step 3", cause=Cause.DIVERGED))
    )
    assert world.condition("Stalled") == (
        "True",
        "Diverged",
        "finetune diverged: the loss is nan at step 3; lower the learning rate of spec.finetuning, then start it again"
        " (any change of the spec does, and so does `dapt run`)",
    )


def test_pods_that_wait_for_a_node_are_work_in_progress_until_the_timeout() -> None:
    world = World(offered={"pendingTimeoutSeconds": 600})
    world.reconcile()
    reason = "Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu"
    world.cluster.run_pods(world.key, lambda run: Stays(pending_reason=reason))
    world.settle()
    assert world.condition("Reconciling")[1:] == (
        "WaitingForNodes",
        "destination waits: Unschedulable: no nodes are available: Insufficient nvidia.com/gpu",
    )
    assert world.condition("Stalled")[0] == "False"
    world.cluster.advance(601)
    world.settle()
    assert world.condition("Stalled") == (
        "True",
        "PendingTimeout",
        "destination waits for a node for more than 600 s (pendingTimeoutSeconds): Unschedulable: no nodes are"
        " available: Insufficient nvidia.com/gpu; free capacity, or change resources",
    )
    world.cluster.run_pods(world.key, lambda run: Stays())
    world.settle()
    assert world.condition("Stalled")[0] == "False"
    world.live()
    assert world.status["phase"] == "Published"
