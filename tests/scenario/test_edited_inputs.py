"""Inputs that are edited before the stage that consumes them has started: the changed part is prepared again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.align import AlignConfig
from dapt_contract.stages.baseline import BaselineConfig
from dapt_contract.stages.finetune import FinetuneConfig
from dapt_contract.stages.prepare import PrepareConfig, PrepareFacts
from dapt_contract.stages.publish import LearnedData, PublishConfig
from dapt_contract.stages.tuning_data import TuningDataConfig, TuningDataFacts
from dapt_operator.testing.objects import Ends, Stays
from support.builders import facts_for, healthy, prepare_facts
from support.worlds import World, failing

OTHER = {"finetuning": {"data": [{"source": "s3://corpora/version-2.jsonl"}]}}
FIRST = {"finetuning": {"data": [{"source": "file:///text/instructions.jsonl"}]}}
PAIRS = {"preference": {"data": [{"source": "s3://corpora/pairs.jsonl"}]}}
OTHER_PAIRS = {"preference": {"data": [{"source": "s3://corpora/pairs-2.jsonl"}]}}
TASK = {"evaluation": {"domain": {"tasks": [{"name": "new", "source": "s3://eval/new.jsonl"}]}}}
BEFORE_FINETUNE = ["destination", "prepare", "baseline", "pretrain", "evaluate"]
CHAIN = [*BEFORE_FINETUNE, "finetune", "verify", "publish"]


def read_instructions(world: World) -> list[list[str]]:
    """Sources of the examples that each run has read which had any."""
    configs = [
        data
        for run in world.runs
        for data in (run.config.tuning_data if isinstance(run.config, PrepareConfig) else [run.config])
        if isinstance(data, TuningDataConfig) and data.kind == "instructions"
    ]
    return [[source.source for source in data.instructions] for data in configs]


def folders_read(world: World) -> set[str]:
    """Folders of tuning data that a run has succeeded in writing."""
    found = set()
    for run in world.runs:
        if isinstance(run.config, PrepareConfig):
            found |= {data.folder for data in run.config.tuning_data}
        elif isinstance(run.config, TuningDataConfig):
            found.add(run.config.folder)
    return found


def finetune(world: World) -> FinetuneConfig:
    config = world.config("finetune")
    assert isinstance(config, FinetuneConfig)
    return config


def align(world: World) -> AlignConfig:
    config = world.config("align")
    assert isinstance(config, AlignConfig)
    return config


def edited(at: str, *edits: Mapping[str, Any], spec: dict[str, Any] | None = None) -> World:
    """A life in which the spec is edited while a stage runs."""
    world = World(spec)
    world.live_until(at)
    for edit in edits:
        world.edit(**edit)
        world.settle()
    world.live()
    assert world.status["phase"] == "Published"
    return world


# --- tuning data ---


def test_prepare_reads_the_tuning_data_once_where_nothing_is_edited() -> None:
    world = World(PAIRS)
    world.live()
    assert world.stages == [*BEFORE_FINETUNE, "finetune", "align", "verify", "publish"]
    prepare = world.config("prepare")
    assert isinstance(prepare, PrepareConfig)
    assert [data.kind for data in prepare.tuning_data] == ["instructions", "preferences"]
    assert finetune(world).data_folder == prepare.tuning_data[0].folder
    assert align(world).data_folder == prepare.tuning_data[1].folder


@pytest.mark.parametrize("at", BEFORE_FINETUNE)
def test_edited_examples_are_read_before_fine_tuning_and_the_corpus_is_not(at: str) -> None:
    world = edited(at, OTHER)
    again = [] if at == "destination" else ["tuning_data"]
    assert world.stages == [*BEFORE_FINETUNE, *again, *CHAIN[len(BEFORE_FINETUNE) :]]
    assert read_instructions(world)[-1] == ["s3://corpora/version-2.jsonl"]
    newest = [run.config for run in world.runs if run.kind in ("prepare", "tuning_data")][-1]
    data = newest.tuning_data[0] if isinstance(newest, PrepareConfig) else newest
    assert isinstance(data, TuningDataConfig)
    assert finetune(world).data_folder == data.folder


@pytest.mark.parametrize("at", [*BEFORE_FINETUNE, "finetune"])
def test_added_preference_data_is_read_and_learned_from(at: str) -> None:
    world = edited(at, PAIRS)
    assert world.stages.count("tuning_data") == (0 if at == "destination" else 1)
    assert world.stages.count("prepare") == 1
    assert align(world).data_folder in folders_read(world)


@pytest.mark.parametrize("at", BEFORE_FINETUNE)
def test_fine_tuning_can_be_added_after_prepare(at: str) -> None:
    world = edited(at, FIRST, spec={"finetuning": None})
    assert "finetune" in world.stages
    assert finetune(world).data_folder in folders_read(world)


@pytest.mark.parametrize("at", BEFORE_FINETUNE)
def test_removed_tuning_is_neither_read_again_nor_run(at: str) -> None:
    world = edited(at, {"finetuning": None, "preference": None}, spec=PAIRS)
    assert set(world.stages) == {*BEFORE_FINETUNE, "verify", "publish"}


@pytest.mark.parametrize("at", ["prepare", "pretrain", "evaluate"])
def test_an_edit_that_is_taken_back_reads_nothing_again(at: str) -> None:
    world = edited(at, OTHER, FIRST)
    assert world.stages == CHAIN
    assert read_instructions(world) == [["file:///text/instructions.jsonl"]]


def test_data_that_was_read_after_an_edit_is_not_read_twice() -> None:
    world = World()
    world.live_until("pretrain")
    world.edit(**OTHER)
    world.live_until("tuning_data")
    world.edit(**FIRST)  # prepare has read it
    world.live_until("finetune")
    assert read_instructions(world)[0] == ["file:///text/instructions.jsonl"]
    assert finetune(world).data_folder in folders_read(world)
    prepare = world.config("prepare")
    assert isinstance(prepare, PrepareConfig)
    assert finetune(world).data_folder == prepare.tuning_data[0].folder
    world.live()
    assert world.status["usage"]["restarts"] == 0


@pytest.mark.parametrize("graceful", [False, True])
def test_an_edit_while_the_data_is_read_ends_that_run_and_reads_the_new_data(graceful: bool) -> None:
    world = World(graceful=graceful)
    world.live_until("pretrain")
    world.edit(**OTHER)
    world.live_until("tuning_data")
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.edit(finetuning={"data": [{"source": "s3://corpora/version-3.jsonl"}]})
    world.live()
    assert world.status["phase"] == "Published"
    assert world.tries.count("tuning_data/1") == 2
    assert read_instructions(world)[-1] == ["s3://corpora/version-3.jsonl"]
    newest = [run.config for run in world.runs if run.kind == "tuning_data"][-1]
    assert isinstance(newest, TuningDataConfig)
    assert finetune(world).data_folder == newest.folder
    assert world.status["usage"]["restarts"] == 0


def test_two_edits_of_both_kinds_are_read_once_each() -> None:
    world = edited("pretrain", OTHER, PAIRS, OTHER_PAIRS)
    assert world.stages == [
        *BEFORE_FINETUNE, "tuning_data", "finetune", "tuning_data", "align", "verify", "publish",
    ]  # fmt: skip
    titles = [event.message for event in world.cluster.events(world.key)]
    assert any(message.startswith("tuning data of instructions succeeded") for message in titles)
    assert any(message.startswith("tuning data of preferences succeeded") for message in titles)


def test_an_edit_during_a_suspension_counts_when_it_is_resumed() -> None:
    world = World(graceful=True)
    world.live_until("evaluate")
    world.edit(suspend=True)
    world.live()
    world.edit(**OTHER)
    world.settle()
    assert world.status["phase"] == "Suspended"
    assert "tuning_data" not in world.stages
    world.edit(suspend=False)
    world.live()
    assert world.status["phase"] == "Published"
    assert read_instructions(world)[-1] == ["s3://corpora/version-2.jsonl"]


def test_the_learning_rate_of_fine_tuning_is_no_input_of_its_data() -> None:
    world = edited("pretrain", {"finetuning": {"optimizer": {"learningRate": 1e-5}, "budget": {"epochs": 3}}})
    assert world.stages == CHAIN
    assert finetune(world).optimizer.learning_rate == 1e-5


@pytest.mark.parametrize(
    "edit",
    [
        {"finetuning": {"sequenceLength": 64}},
        {"finetuning": {"badRecords": {"maxFraction": 0.1}}},
        {"finetuning": {"data": [{"source": "file:///text/instructions.jsonl", "format": "plain"}]}},
        {
            "finetuning": {
                "data": [{"source": "file:///text/instructions.jsonl", "fields": {"prompt": "question"}}]
            }
        },
    ],
    ids=["length", "bad records", "format", "fields"],
)
def test_everything_that_decides_the_records_is_an_input(edit: dict[str, Any]) -> None:
    world = edited("pretrain", edit)
    assert world.stages.count("tuning_data") == 1
    assert world.stages.count("prepare") == 1


def test_broken_data_is_corrected_by_its_block_alone() -> None:
    said = "s3://corpora/version-2.jsonl:3: the model's chat template refuses the conversation"
    broken = failing(
        "tuning_data",
        lambda run: (
            Ends(64, message=said, cause=Cause.BAD_INPUT)
            if isinstance(run.config, TuningDataConfig)
            and run.config.instructions[0].source == "s3://corpora/version-2.jsonl"
            else None
        ),
    )
    world = World()
    world.live_until("pretrain")
    world.edit(**OTHER)
    world.live(broken)
    assert world.condition("Stalled") == (
        "True",
        "BadInput",
        f"tuning data found its input wrong: {said}; correct it, then start it again (any change of the spec does, and"
        " so does `dapt run`)",
    )
    assert "finetuning" not in world.status["frozen"]
    assert world.status["selected"]["id"] == "a1-s40"
    world.edit(finetuning={"data": [{"source": "s3://corpora/fixed.jsonl"}]})
    world.live(broken)
    assert world.status["phase"] == "Published"
    assert world.stages.count("prepare") == world.stages.count("pretrain") == 1


def test_data_corrected_where_it_lies_is_read_again_after_any_edit() -> None:
    """On a cluster nobody sees the files: the edit says that they were corrected."""
    world = World()
    world.live_until("pretrain")
    world.edit(**OTHER)
    world.live(failing("tuning_data", lambda run: Ends(64, message="line 3", cause=Cause.BAD_INPUT)))
    world.edit(limits={"gpuHours": 100})
    world.live()
    assert world.tries.count("tuning_data/2") == 1
    assert world.status["phase"] == "Published"


def test_once_fine_tuning_has_started_its_data_stays() -> None:
    """The block is frozen; a retry learns from the data that the first run was given."""
    world = World()
    world.live_until("finetune")
    given = finetune(world).data_folder
    assert world.status["frozen"]["finetuning"] is True
    world.live(
        failing(
            "finetune", lambda run: Ends(75, cause=Cause.INFRASTRUCTURE) if run.run.try_number == 1 else None
        )
    )
    assert world.tries.count("finetune/2") == 1
    assert finetune(world).data_folder == given


RATE = {"optimizer": {"learningRate": 1e-7}}


@pytest.mark.parametrize(("block", "kind"), [("finetuning", "finetune"), ("preference", "align")])
@pytest.mark.parametrize("edit", [RATE, {"data": [{"source": "s3://corpora/other.jsonl"}]}, None])
def test_tuning_that_failed_for_good_goes_on_with_its_correction(
    block: str, kind: str, edit: dict[str, Any] | None
) -> None:
    """Everything before it is paid for, and nothing after it has read its block."""
    world = World(PAIRS)
    given: list[str] = []

    def diverges(run: StageFile) -> Ends | None:
        assert isinstance(run.config, FinetuneConfig | AlignConfig)
        given.append(run.config.data_folder)
        is_mended = run.config.optimizer.learning_rate <= 1e-7 or given[0] != run.config.data_folder
        return None if is_mended else Ends(77, message="the loss is nan at step 3", cause=Cause.DIVERGED)

    world.live(failing(kind, diverges))
    assert world.condition("Stalled")[1:] == (
        "Diverged",
        f"{kind} diverged: the loss is nan at step 3; lower the learning rate of spec.{block}, then start it again (any"
        " change of the spec does, and so does `dapt run`)",
    )
    assert block not in world.status["frozen"]
    world.edit(**{block: edit} if edit is not None else {"preference": None, block: None})
    world.live(failing(kind, diverges))
    assert world.status["phase"] == "Published"
    assert world.tries.count(f"{kind}/2") == (0 if edit is None else 1)
    assert world.stages.count("tuning_data") == (1 if edit is not None and "data" in edit else 0)
    assert world.stages.count("pretrain") == 1
    assert world.status["frozen"].get(block) is (None if edit is None else True)


def test_tuning_that_succeeded_for_another_candidate_keeps_its_block_frozen() -> None:
    world = World()
    world.live_until("verify")
    world.edit(selection={"pin": "a1-s20"})
    world.live(failing("finetune", lambda run: Ends(77, message="nan", cause=Cause.DIVERGED)))
    assert world.condition("Stalled")[1] == "Diverged"
    assert world.status["frozen"]["finetuning"] is True


def old_prepare(stage: StageFile) -> Ends | Stays:
    """A prepare from before tuning data had digests."""
    return Ends(facts=prepare_facts()) if stage.kind == "prepare" else healthy(stage)


def test_a_ledger_without_digests_of_tuning_data_goes_on() -> None:
    world = World(PAIRS)
    world.live(old_prepare)
    assert world.status["phase"] == "Published"
    assert world.stages.count("tuning_data") == 2


def test_the_data_that_is_used_is_what_the_status_counts() -> None:
    world = edited("pretrain", OTHER)
    facts = [run for run in world.status["ledger"]["runs"] if run["stage"] == "tuning_data"]
    assert [run["facts"]["config_digest"] for run in facts] == [finetune(world).data_folder.partition("/")[2]]


def test_what_was_found_in_replaced_data_is_said_no_more() -> None:
    of_corpus = "the domain corpus has 200,000,000 tokens"
    of_pairs = "spec.preference.data: 2 of 9 pairs repeat an earlier one and are learned from once."
    before = "spec.finetuning.data: 3 bad records are skipped."
    after = "spec.finetuning.data: 1 of 9 examples contain an evaluation item and are left out."

    def script(stage: StageFile) -> Ends | Stays:
        facts = facts_for(stage)
        if isinstance(facts, PrepareFacts):
            return Ends(facts=facts.model_copy(update={"warnings": (of_corpus, before, of_pairs)}))
        if isinstance(facts, TuningDataFacts):
            return Ends(facts=facts.model_copy(update={"warnings": (after,)}))
        return Ends(facts=facts)

    world = World(PAIRS)
    world.live_until("pretrain", script)
    assert {of_corpus, before, of_pairs} <= set(world.status["plan"]["warnings"])
    world.edit(**OTHER)
    world.live(script)
    shown = set(world.status["plan"]["warnings"])
    assert {of_corpus, of_pairs, after} <= shown
    assert before not in shown
    publish = world.config("publish")
    assert isinstance(publish, PublishConfig)
    assert {of_corpus, of_pairs, after} <= set(publish.card.warnings)
    assert before not in publish.card.warnings


@pytest.mark.parametrize("at", ["destination", "pretrain"])
def test_stages_card_and_status_name_the_same_data_by_its_content(at: str) -> None:
    world = edited(at, OTHER, OTHER_PAIRS, spec=PAIRS)
    instructions, pairs = finetune(world), align(world)
    assert instructions.data_digest is not None
    assert pairs.data_digest is not None
    assert (len(instructions.data_digest), len(pairs.data_digest)) == (16, 16)
    edited_data = [run.config for run in world.runs if isinstance(run.config, TuningDataConfig)]
    assert {config.prepared_digest for config in edited_data} <= {"sha256:data"}
    assert instructions.data_digest != pairs.data_digest
    publish = world.config("publish")
    assert isinstance(publish, PublishConfig)
    assert publish.card.tuning_data == (
        LearnedData(
            kind="instructions",
            sources=("s3://corpora/version-2.jsonl",),
            records=100,
            digest=instructions.data_digest,
        ),
        LearnedData(
            kind="preferences", sources=("s3://corpora/pairs-2.jsonl",), records=100, digest=pairs.data_digest
        ),
    )
    assert world.status["resolved"]["finetuningData"] == {"records": 100, "digest": instructions.data_digest}
    assert world.status["resolved"]["preferenceData"] == {"records": 100, "digest": pairs.data_digest}


def test_few_steps_are_counted_from_the_tokens_that_were_prepared() -> None:
    world = World({"finetuning": {"globalBatchSize": 32}})
    world.live_until("baseline")
    # 12,000 tokens are 94 sequences of 128, each read twice; 100 examples would make 7 steps.
    (warning,) = (text for text in world.status["plan"]["warnings"] if text.startswith("finetuning has"))
    assert warning.startswith("finetuning has 6 optimizer steps, under 20")


def test_licence_and_language_are_those_at_publication() -> None:
    world = World({"output": {"license": "mit"}})
    world.live_until("publish")
    destination = {"destination": "file:///out/model"}
    world.edit(output=destination | {"license": "Apache-2.0", "language": ["en", "zho"]})
    world.live()
    publish = world.config("publish")
    assert isinstance(publish, PublishConfig)
    assert (publish.card.license, publish.card.language) == ("Apache-2.0", ("en", "zho"))
    assert world.stages.count("publish") == 2
    assert world.status["frozen"]["output"] is True


# --- evaluation items, and what prepare only checks ---


@pytest.mark.parametrize(("at", "prepares"), [("destination", 1), ("prepare", 2), ("baseline", 1)])
@pytest.mark.parametrize("decontaminate", [True, False])
def test_edited_evaluation_is_prepared_before_the_base_model_is_measured(
    at: str, prepares: int, decontaminate: bool
) -> None:
    world = World({"corpus": {"decontaminate": decontaminate}})
    world.live_until(at)
    if at == "baseline":
        assert world.status["frozen"]["evaluation"] is True  # an edit is refused from here on
        return
    world.edit(**TASK)
    world.live()
    assert world.status["phase"] == "Published"
    assert world.stages.count("prepare") == prepares
    prepare, baseline = world.config("prepare"), world.config("baseline")
    assert isinstance(prepare, PrepareConfig)
    assert isinstance(baseline, BaselineConfig)
    assert prepare.tasks == baseline.evaluation.tasks
    assert prepare.tasks[0].source == "s3://eval/new.jsonl"
    assert "tuning_data" not in world.stages
    assert world.status["usage"]["restarts"] == 0


@pytest.mark.parametrize("has_ended", [False, True], ids=["running", "ended"])
def test_a_corpus_edited_before_the_base_model_is_measured_is_prepared_alone(has_ended: bool) -> None:
    world = World()
    world.live_until("prepare")
    if has_ended:
        world.cluster.run_pods(world.key, healthy)
    world.edit(corpus={"domain": [{"source": "s3://corpora/corrected.jsonl"}]})
    world.live()
    assert world.tries[:4] == ["destination/1", "prepare/1", "prepare/2", "baseline/1"]
    prepare = world.config("prepare")
    assert isinstance(prepare, PrepareConfig)
    assert [source.source for source in prepare.domain] == ["s3://corpora/corrected.jsonl"]
    assert world.status["phase"] == "Published"
    assert world.status["usage"]["restarts"] == 0


def test_evaluation_edited_after_prepare_has_ended_is_prepared_again() -> None:
    """The edit and the end of prepare are seen in one reconcile."""
    world = World()
    world.live_until("prepare")
    world.cluster.run_pods(world.key, healthy)
    world.edit(**TASK)
    world.live()
    assert world.tries[:4] == ["destination/1", "prepare/1", "prepare/2", "baseline/1"]
    prepared = [run.config for run in world.runs if isinstance(run.config, PrepareConfig)]
    # What the run before it has reported, which the second one finds on the work volume.
    assert [config.prepared_digest for config in prepared] == [None, "sha256:data"]
    assert world.status["phase"] == "Published"


def test_an_evaluation_that_is_restored_while_prepare_runs_changes_nothing() -> None:
    world = World()
    world.live_until("prepare")
    world.edit(**TASK)
    world.edit(evaluation={"domain": {"tasks": [{"name": "codes", "source": "file:///eval/codes.jsonl"}]}})
    world.live()
    assert world.tries.count("prepare/2") == 0


@pytest.mark.parametrize("at", ["prepare", "baseline"])
@pytest.mark.parametrize(
    "edit",
    [
        {"pretraining": {"budget": {"steps": 20}}},
        {"pretraining": {"globalBatchSize": 16}},
        {"pretraining": {"distribution": {"precision": "fp32"}}},
        {"pretraining": {"checkpoints": {"count": 2}}},
        {"gates": {"onBreach": "Rollback"}},
    ],
    ids=["steps", "batch", "precision", "checkpoints", "attempts"],
)
def test_what_prepare_only_checks_prepares_nothing_again(at: str, edit: dict[str, Any]) -> None:
    world = edited(at, edit)
    assert world.stages.count("prepare") == 1


# --- the destination ---


def taken(stage: StageFile) -> Ends | Stays:
    config = stage.config
    if stage.kind == "destination" and getattr(config, "destination", "") == "file:///out/model":
        return Ends(64, message="output.destination file:///out/model: not empty", cause=Cause.BAD_INPUT)
    return healthy(stage)


def test_a_taken_destination_is_found_before_anything_is_read() -> None:
    world = World()
    world.live(taken)
    assert world.tries == ["destination/1"]
    assert world.condition("Stalled") == (
        "True",
        "BadInput",
        "destination found its input wrong: output.destination file:///out/model: not empty; correct it, then start it"
        " again (any change of the spec does, and so does `dapt run`)",
    )
    assert world.status["phase"] == "Stalled"
    world.edit(output={"destination": "file:///out/other"})
    world.live(taken)
    assert world.tries[:3] == ["destination/1", "destination/1", "prepare/1"]
    assert world.status["phase"] == "Published"
    assert world.status["output"]["destination"] == "file:///out/other"


def test_a_destination_that_was_emptied_is_tried_again_after_any_edit() -> None:
    world = World()
    world.live(taken)
    world.edit(limits={"gpuHours": 100})
    world.live()
    assert world.tries[:3] == ["destination/1", "destination/2", "prepare/1"]
    assert world.status["phase"] == "Published"


@pytest.mark.parametrize(
    "edit",
    [
        OTHER,
        PAIRS,
        {"gates": {"maxGeneralPerplexityIncrease": 0.3}},
        {"pretraining": {"budget": {"steps": 20}}},
    ],
)
@pytest.mark.parametrize("at", ["prepare", "baseline"])
def test_the_trial_is_about_the_place_and_not_about_the_model(at: str, edit: dict[str, Any]) -> None:
    world = edited(at, edit)
    assert world.stages.count("destination") == 1


@pytest.mark.parametrize(
    ("at", "trials"), [("destination", 2), ("prepare", 2), ("baseline", 1), ("publish", 1)]
)
def test_another_destination_is_tried_as_long_as_nothing_was_paid_for(at: str, trials: int) -> None:
    world = edited(at, {"output": {"destination": "file:///out/other"}})
    assert world.stages.count("destination") == trials
    assert world.stages.count("prepare") == 1
    assert world.stages.count("publish") == (2 if at == "publish" else 1)
    publish = world.config("publish")
    assert isinstance(publish, PublishConfig)
    assert publish.destination == "file:///out/other" == world.status["output"]["destination"]
    assert world.status["usage"]["restarts"] == 0


def test_the_trial_has_the_credentials_and_the_claim_of_publication() -> None:
    spec = {
        "output": {"destination": "pvc://models/clinical"},
        "credentials": [
            {"secretName": "dapt-write", "use": "write"},
            {"secretName": "dapt-read", "use": "read"},
        ],
    }
    world = World(spec)
    world.live_until("destination")
    (container,) = world.job["spec"]["template"]["spec"]["containers"]
    assert [item["secretRef"] for item in container["envFrom"]] == [{"name": "dapt-write"}]
    mounts = {mount["mountPath"]: mount.get("readOnly") for mount in container["volumeMounts"]}
    assert mounts["/mnt/claims/models"] is None
    names = {variable["name"] for variable in container["env"]}
    assert "HF_HUB_OFFLINE" not in names
    assert world.job["metadata"]["name"].startswith("clinical-destination-")


def test_tuning_data_is_read_with_the_read_credentials_and_without_an_accelerator() -> None:
    spec = {
        "credentials": [
            {"secretName": "dapt-write", "use": "write"},
            {"secretName": "dapt-read", "use": "read"},
        ]
    }
    world = World(spec)
    world.live_until("pretrain")
    world.edit(finetuning={"data": [{"source": "pvc://corpora/v2.jsonl"}]})
    world.live_until("tuning_data")
    (container,) = world.job["spec"]["template"]["spec"]["containers"]
    assert [item["secretRef"] for item in container["envFrom"]] == [{"name": "dapt-read"}]
    mounts = {mount["mountPath"]: mount.get("readOnly") for mount in container["volumeMounts"]}
    assert mounts["/mnt/claims/corpora"] is True
    assert "nvidia.com/gpu" not in container["resources"].get("limits", {})
    assert "HF_HUB_OFFLINE" not in {variable["name"] for variable in container["env"]}
    assert world.job["metadata"]["name"].startswith("clinical-tuning-data-")
    assert world.job["metadata"]["labels"]["dapt.dev/stage"] == "tuning_data"
    assert world.status["phase"] == "Preparing"


def test_output_is_frozen_by_a_successful_publication_alone() -> None:
    refused = failing(
        "publish",
        lambda run: (
            Ends(64, message="output.destination file:///out/model: not empty", cause=Cause.BAD_INPUT)
            if isinstance(run.config, PublishConfig) and run.config.destination == "file:///out/model"
            else None
        ),
    )
    world = World()
    world.live(refused)
    assert world.condition("Stalled")[1] == "BadInput"
    assert "output" not in world.status["frozen"]
    world.edit(output={"destination": "file:///out/other"})
    world.live(refused)
    assert world.tries[-2:] == ["publish/1", "publish/2"]
    assert world.status["phase"] == "Published"
    assert world.status["frozen"]["output"] is True
    assert world.status["output"]["destination"] == "file:///out/other"


def test_a_model_that_went_to_the_old_place_while_it_was_edited_is_published_again() -> None:
    world = World()
    world.live_until("publish")
    world.cluster.run_pods(world.key, healthy)  # its end is not seen yet
    world.edit(output={"destination": "file:///out/other"})
    world.live()
    assert world.tries[-2:] == ["publish/1", "publish/2"]
    assert world.status["output"]["destination"] == "file:///out/other"


# --- the operator is interrupted between the creation of a run and the write of the status ---


def interrupted(stage: str) -> World:
    """A world in which the first run of a stage was created and its creation was not stored."""
    world = World()
    world.live_until_interrupted(stage)
    assert world.running == stage
    assert stage not in {record["stage"] for record in world.status.get("ledger", {}).get("runs", [])}
    return world


EDITS: dict[str, dict[str, Any]] = {
    "destination": {"output": {"destination": "file:///out/other"}},
    "prepare": TASK,
    "baseline": TASK,
    "pretrain": {"pretraining": {"budget": {"steps": 20}}},
    "finetune": OTHER,
    "publish": {"output": {"destination": "file:///out/other"}},
}


@pytest.mark.parametrize("stage", EDITS)
def test_a_run_that_is_unknown_is_adopted_when_it_would_be_created_now(stage: str) -> None:
    world = interrupted(stage)
    world.live()
    assert world.status["phase"] == "Published"
    assert world.tries == [f"{name}/1" for name in CHAIN]
    assert world.status["usage"]["restarts"] == 0


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("stage", EDITS)
def test_a_run_that_is_unknown_and_was_created_from_another_spec_is_replaced(stage: str, ended: bool) -> None:
    world = interrupted(stage)
    if ended:
        world.cluster.run_pods(world.key, healthy)
    first = [run for run in world.runs if run.kind == stage][-1]
    world.edit(**EDITS[stage])
    world.live()
    assert world.status["phase"] == "Published"
    newest = [run for run in world.runs if run.kind == stage][-1]
    assert newest.config != first.config
    assert newest.run.fence > first.run.fence
    assert world.status["usage"]["restarts"] == 0
    assert all(record.get("failures", {}) == {} for record in world.status["ledger"]["runs"])
    prepare, baseline = world.config("prepare"), world.config("baseline")
    assert isinstance(prepare, PrepareConfig)
    assert isinstance(baseline, BaselineConfig)
    assert prepare.tasks == baseline.evaluation.tasks
    assert finetune(world).data_folder in folders_read(world)


def test_a_discarded_run_freezes_nothing() -> None:
    world = interrupted("finetune")
    world.edit(**OTHER)
    world.reconcile()
    record = next(run for run in world.status["ledger"]["runs"] if run["stage"] == "finetune")
    assert (record["state"], record["cause"], record["discarded"]) == ("Failed", "Stopped", True)
    assert record["message"] == (
        "it was created from another spec while the operator was interrupted: it is replaced"
    )
    assert "finetuning" not in world.status["frozen"]


def test_a_discarded_run_costs_its_grace_period() -> None:
    world = World(graceful=True)
    world.live_until_interrupted("pretrain")
    world.cluster.run_pods(world.key, lambda stage: Stays())
    started = world.cluster.now
    world.cluster.advance(100)
    world.edit(pretraining={"budget": {"steps": 20}})
    world.settle()
    world.cluster.advance(40)
    world.cluster.run_pods(world.key, healthy)
    held_seconds = (world.cluster.now - started).total_seconds()
    world.settle()
    assert world.tries[-1] == "pretrain/2"
    record = next(run for run in world.status["ledger"]["runs"] if run["stage"] == "pretrain")
    assert record["acceleratorSeconds"] == 2 * held_seconds


def test_a_changed_profile_is_no_other_configuration() -> None:
    world = interrupted("pretrain")
    world.offer(trainerImage="registry.example/dapt-trainer:2.0.0", pendingTimeoutSeconds=99)
    world.live()
    assert world.tries == [f"{name}/1" for name in CHAIN]


def test_all_runs_are_known_again_when_the_status_was_lost() -> None:
    world = World({"cleanup": {"finishedRuns": "Retain"}})
    world.live_until("verify")
    resource = world.cluster.stored(world.key).resource
    del resource["status"]
    world.live()
    assert world.status["phase"] == "Published"
    assert world.tries == [f"{name}/1" for name in CHAIN]


# --- files on the machine that plans ---


def test_files_that_are_corrected_in_place_are_other_data() -> None:
    world = World()
    world.cluster.contents = {"file:///text/instructions.jsonl": "1"}
    world.live_until("pretrain")
    world.cluster.contents = {"file:///text/instructions.jsonl": "2"}
    world.live()
    assert world.stages == [*BEFORE_FINETUNE, "tuning_data", *CHAIN[len(BEFORE_FINETUNE) :]]
    config = world.config("tuning_data")
    assert isinstance(config, TuningDataConfig)
    assert config.content == (("file:///text/instructions.jsonl", "2"),)
    assert finetune(world).data_folder == config.folder


def test_files_that_change_once_fine_tuning_has_started_change_nothing() -> None:
    world = World()
    world.cluster.contents = {"file:///text/instructions.jsonl": "1"}
    world.live_until("finetune")
    given = finetune(world).data_folder
    world.cluster.contents = {"file:///text/instructions.jsonl": "2"}
    world.live(
        failing(
            "finetune", lambda run: Ends(75, cause=Cause.INFRASTRUCTURE) if run.run.try_number == 1 else None
        )
    )
    assert world.stages == [*BEFORE_FINETUNE, "finetune", "finetune", "verify", "publish"]
    assert finetune(world).data_folder == given


def test_evaluation_items_that_are_corrected_in_place_are_prepared_until_the_base_is_measured() -> None:
    world = World()
    world.cluster.contents = {"file:///eval/codes.jsonl": "1"}
    world.live_until("prepare")
    world.cluster.contents = {"file:///eval/codes.jsonl": "2"}
    world.live_until("baseline")
    assert world.tries == ["destination/1", "prepare/1", "prepare/2", "baseline/1"]
    world.cluster.contents = {"file:///eval/codes.jsonl": "3"}
    world.live()
    assert world.stages.count("prepare") == 2
    assert world.status["phase"] == "Published"


def test_prepare_that_refused_a_file_reads_it_once_it_is_corrected() -> None:
    world = World()
    world.cluster.contents = {"file:///text/instructions.jsonl": "1", "file:///eval/codes.jsonl": "1"}
    world.live(failing("prepare", lambda run: Ends(64, message="line 3", cause=Cause.BAD_INPUT)))
    assert world.condition("Stalled")[1] == "BadInput"
    world.cluster.contents = {"file:///text/instructions.jsonl": "1", "file:///eval/codes.jsonl": "2"}
    world.live()
    assert world.tries[:3] == ["destination/1", "prepare/1", "prepare/2"]
    assert world.status["phase"] == "Published"


def test_a_healthy_run_of_each_new_kind_has_facts() -> None:
    world = edited("pretrain", OTHER)
    for run in world.runs:
        assert facts_for(run) is not None
