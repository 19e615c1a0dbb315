"""Tests whole adaptations without a failure."""

from __future__ import annotations

from typing import Any

from dapt_contract.pod.progress import Progress
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.pretrain import PretrainConfig
from dapt_contract.stages.publish import PublishConfig
from dapt_contract.stages.verify import VerifyConfig
from dapt_operator.api.v1alpha1.conditions import CONDITION_TYPES
from dapt_operator.testing.objects import Ends, Stays
from support.builders import checkpoint, healthy, prepare_facts
from support.worlds import World


def test_every_stage_runs_once_and_in_order() -> None:
    world = World()
    world.live()
    assert world.stages == [
        "destination", "prepare", "baseline", "pretrain", "evaluate", "finetune", "verify", "publish",
    ]  # fmt: skip
    assert [run.run.fence for run in world.runs] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert {run.run.try_number for run in world.runs} == {1}
    assert world.condition("Finished") == ("True", "Published", "model published to file:///out/model")
    assert world.condition("Ready") == ("True", "Published", "model published to file:///out/model")
    assert world.condition("Reconciling") == ("False", "Published", "no work is left to do")
    assert world.condition("Stalled") == ("False", "Progressing", "no user action is required")
    assert world.status["phase"] == "Published"
    assert world.status["selected"] == {
        "id": "a1-s40",
        "reason": "largest gain of 4 candidates within the perplexity limit on half A; it passes the gates on half B",
        "digest": "000000000028",
    }
    assert world.status["output"]["deployable"] is True


def test_first_reconcile_sets_all_conditions() -> None:
    world = World()
    world.reconcile()
    assert [item["type"] for item in world.status["conditions"]] == list(CONDITION_TYPES)
    assert world.condition("Accepted") == ("True", "Planned", "the spec and its profile fit together")
    assert world.condition("Reconciling") == ("True", "StageStarting", "destination is starting")
    assert world.status["observedGeneration"] == 1
    assert world.status["phase"] == "Preparing"


def test_what_was_automatic_is_shown() -> None:
    world = World({"pretraining": {"microBatchSize": None}})
    world.live()
    shown = world.status["resolved"]
    assert shown["learningRate"] == 1.0e-4
    assert shown["replayFraction"] == 0.13
    assert (shown["microBatchSize"], shown["gradientAccumulationSteps"], shown["worldSize"]) == (4, 1, 2)
    assert (shown["zeroStage"], shown["precision"], shown["totalSteps"]) == (2, "bf16", 40)
    assert shown["model"]["digest"] == "sha256:model"
    assert shown["measuring"] == ["baseline, evaluate, verify: 1 whole copy"]


def test_ranks_that_share_the_measured_model_are_shown() -> None:
    resources = {"baseline": {"gpus": 2, "gpusPerModel": 2}}
    world = World({"stageResources": resources})
    world.live_until("pretrain")
    assert world.status["resolved"]["measuring"] == [
        "baseline: 1 copy over 2 ranks, ZeRO 3",
        "evaluate, verify: 1 whole copy",
    ]


def test_blocks_freeze_when_their_stage_starts() -> None:
    world = World()
    world.reconcile()
    assert "frozen" not in world.status
    world.live_until("prepare")
    assert world.status.get("frozen", {}) == {}
    world.live_until("baseline")
    assert world.status["frozen"] == {
        "seed": True, "model": True, "corpus": True, "evaluation": True, "profile": True,
    }  # fmt: skip
    world.live_until("pretrain")
    assert world.status["frozen"] == {
        "seed": True, "model": True, "corpus": True, "evaluation": True, "profile": True, "pretraining": True,
    }  # fmt: skip


def test_each_configuration_follows_from_the_stages_before() -> None:
    world = World({"output": {"language": ["en", "de", "en"]}})
    world.live()
    pretrain, verify, publish = (world.config(kind) for kind in ("pretrain", "verify", "publish"))
    assert isinstance(pretrain, PretrainConfig)
    assert pretrain.base_general_perplexity == 16.444646771097048
    assert pretrain.stop_rule.max_increase_fraction == 0.15
    assert isinstance(verify, VerifyConfig)
    assert [(named.name, named.model.adapters) for named in verify.models] == [
        ("base", ()), ("chosen", ("stages/pretrain-a1/try-1/checkpoint-40",)), ("final", ("a", "b")),
    ]  # fmt: skip
    assert verify.reuse_paths == (("base", "stages/baseline-a1"), ("chosen", "stages/evaluate-a1-a1-s40"))
    assert isinstance(publish, PublishConfig)
    assert publish.card.selection_reason == (
        "largest gain of 4 candidates within the perplexity limit on half A; it passes the gates on half B"
    )
    assert publish.card.language == ("en", "de"), "each once"
    assert publish.card.training_tokens == 40 * 8 * 128
    assert publish.run_digest == world.status["digests"]["run"]


def test_the_key_of_the_signatures_is_made_once_with_the_first_run() -> None:
    world = World()
    world.live_until("prepare")
    (secret,) = world.cluster.objects(world.key, "Secret")
    assert secret["metadata"]["name"] == "dapt-clinical-00000001-signing"
    world.live()
    assert world.cluster.objects(world.key, "Secret") == [secret]


def test_without_tasks_nothing_is_evaluated_apart() -> None:
    world = World({"evaluation": None})
    world.live()
    assert world.stages == ["destination", "prepare", "baseline", "pretrain", "finetune", "verify", "publish"]


def test_without_fine_tuning_the_model_is_not_for_deployment() -> None:
    world = World({"finetuning": None})
    world.live()
    assert "finetune" not in world.stages
    assert world.status["output"]["deployable"] is False
    publish = world.config("publish")
    assert isinstance(publish, PublishConfig)
    assert publish.card.warnings == (
        "This model had continued pre-training alone, no instruction tuning: it is not for deployment as it is.",
    )


def test_a_profile_of_kind_cpu_uses_no_accelerator_hours() -> None:
    world = World(
        {"limits": {"gpuHours": 0.001}}, {"accelerator": {"kind": "cpu", "memoryGiB": 8, "peakTflops": None}}
    )
    world.live()
    assert world.status["phase"] == "Published"
    assert world.status["usage"]["gpuHours"] == 0.0


def test_accelerator_hours_are_counted_over_all_stages() -> None:
    world = World()
    world.live()
    # 30 s each: pretrain and finetune on 2 accelerators, baseline, evaluate and verify on 1
    assert world.status["usage"]["gpuHours"] == round(30 * (2 + 2 + 1 + 1 + 1) / 3600, 4)


def test_nothing_is_written_while_nothing_changes() -> None:
    world = World()
    world.live_until("pretrain")
    writes = world.cluster.writes
    for _ in range(5):
        world.cluster.advance(120)
        assert world.reconcile().is_empty
    assert world.cluster.writes == writes


def test_a_finished_adaptation_never_starts_again() -> None:
    world = World()
    world.live()
    world.cluster.delete_jobs(world.key)
    for _ in range(3):
        world.cluster.advance(1000)
        assert world.reconcile().is_empty
    world.edit(gates={"maxGeneralPerplexityIncrease": 0.01})
    runs = list(world.runs)
    world.settle()
    assert world.runs == runs
    assert world.status["phase"] == "Published"


def test_lost_jobs_of_finished_stages_are_not_run_again() -> None:
    world = World()
    world.live_until("finetune")
    live = world.cluster.live_jobs(world.key)[0]["metadata"]["name"]
    world.cluster.delete_jobs(world.key, except_prefix=live)
    world.live(healthy)
    assert world.status["phase"] == "Published"
    assert [stage["try"] for stage in world.status["stages"]] == [1] * 8


def test_events_report_each_change_once() -> None:
    world = World()
    world.live()
    told = [(event.reason, event.message) for event in world.cluster.events(world.key)]
    assert told[:3] == [
        ("StageStarted", "destination was started (run 1)"),
        ("StageSucceeded", "destination succeeded; prepare was started (run 1)"),
        ("StageSucceeded", "prepare succeeded; baseline was started (run 1)"),
    ]
    assert ("StageSucceeded", "pretrain succeeded; evaluate of a1-s40 was started (run 1)") in told
    assert (
        "CandidateSelected",
        "a1-s40: largest gain of 4 candidates within the perplexity limit on half A; it passes the gates on half B",
    ) in told
    assert told[-1] == ("Published", "model published to file:///out/model")
    assert len(told) == len(set(told))


def test_progress_is_written_at_most_every_ten_seconds_and_percent() -> None:
    world = World()
    world.live_until("pretrain")

    def reading(step: int) -> None:
        world.cluster.run_pods(
            world.key,
            lambda stage: Stays(
                Progress(
                    run_key=stage.run.key, stage="pretrain", fraction=step / 1000, step=step, total_steps=1000
                )
            ),
        )

    reading(5)
    world.settle()
    assert world.status["progress"]["step"] == 5
    assert world.condition("Reconciling") == ("True", "StageRunning", "pretrain is running")
    writes = world.cluster.writes
    world.cluster.advance(60)
    reading(10)
    assert world.reconcile().is_empty
    world.cluster.advance(-55)
    reading(100)
    assert world.reconcile().is_empty
    world.cluster.advance(60)
    world.settle()
    assert world.status["progress"]["step"] == 100
    assert world.cluster.writes == writes + 1


def test_a_skipped_step_and_a_loss_spike_are_events_before_the_next_percent() -> None:
    world = World()
    world.live_until("pretrain")

    def reading(step: int, **marks: int) -> None:
        progress = {"stage": "pretrain", "fraction": step / 1000, "step": step, "total_steps": 1000}
        world.cluster.run_pods(
            world.key, lambda stage: Stays(Progress(run_key=stage.run.key, **progress, **marks))
        )
        world.cluster.advance(60)
        world.settle()

    reading(5, skipped_steps=0, loss_spikes=0)
    assert "skippedSteps" not in world.status["progress"]
    reading(6, skipped_steps=1, loss_spikes=0)
    reading(7, skipped_steps=1, loss_spikes=2)
    assert world.status["progress"]["lossSpikes"] == 2
    assert [(event.type, event.reason, event.message) for event in world.cluster.events(world.key)][-2:] == [
        (
            "Warning",
            "StepsSkipped",
            "pretrain, up to step 6 of 1000: 1 step was skipped, because loss or gradient was not a number",
        ),
        (
            "Warning",
            "LossSpiked",
            "pretrain, up to step 7 of 1000: 2 spikes of the training loss, over the mean before by 6 standard "
            "deviations; repeated ones stop the run, and a lower pretraining.optimizer.learningRate avoids them",
        ),
    ]


def forecast_of_running(spec: dict[str, Any], step: int = 20) -> object:
    """What the status expects at the end, by a checkpoint at half of the steps that forgets 5 %."""
    world = World({"pretraining": {"method": {"lora": None, "full": {}}} | spec})
    world.live_until("pretrain")
    world.cluster.run_pods(
        world.key,
        lambda stage: Stays(
            Progress(
                run_key=stage.run.key,
                stage="pretrain",
                fraction=0.5,
                step=step,
                total_steps=2 * step,
                checkpoints=(checkpoint(step),),
            )
        ),
    )
    world.settle()
    assert world.status["progress"]["step"] == step
    expected = world.status["progress"].get("forecast")
    world.live()
    assert "forecast" not in world.status["progress"]
    return expected


def test_a_running_full_pretraining_has_a_forecast_and_one_unlike_the_recorded_runs_has_none() -> None:
    expected = forecast_of_running({})
    assert isinstance(expected, dict)
    assert expected["step"] == 20
    assert 0.0 < expected["least"] < expected["forgetting"] < expected["most"]
    assert forecast_of_running({"budget": {"steps": 400_000}}, step=200_000) is None
    assert forecast_of_running({"method": {"lora": {}}}) is None
    assert forecast_of_running({"schedule": {"type": "wsd"}}) is None
    assert forecast_of_running({"regularization": {"ewc": {}}}) is None


def test_progress_ends_at_the_last_step() -> None:
    world = World()
    world.live_until("pretrain")
    world.cluster.run_pods(
        world.key,
        lambda stage: Stays(
            Progress(run_key=stage.run.key, stage="pretrain", fraction=0.5, step=20, total_steps=40)
        ),
    )
    world.live()
    assert world.status["progress"] == {
        "fraction": 1.0, "step": 40, "totalSteps": 40, "tokens": 40_960, "etaSeconds": 0.0,
    }  # fmt: skip


def test_a_pretraining_too_short_to_be_read_ends_at_its_last_step_too() -> None:
    world = World()
    world.live()
    assert world.status["progress"] == {
        "fraction": 1.0, "step": 40, "totalSteps": 40, "tokens": 40_960, "etaSeconds": 0.0,
    }  # fmt: skip


def test_data_warnings_appear_once_in_the_plan() -> None:
    said = (
        "The domain corpus has 60,000 training tokens; below 100,000,000 consider retrieval or fine-tuning.",
    )

    def script(stage: StageFile) -> Ends | Stays:
        if stage.kind == "prepare":
            return Ends(facts=prepare_facts(domain_tokens=60_000, general_tokens=60_000, warnings=said))
        return healthy(stage)

    world = World({"finetuning": None})
    world.live_until("baseline", script)
    assert world.status["plan"]["warnings"] == [
        *said,
        "no finetuning is asked for: a model after continued pre-training alone is not for deployment",
    ]
