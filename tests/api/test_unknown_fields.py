"""An unknown field gets the nearest place of its own block, and what a message proposes is never refused itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dapt_operator.api.schema.crd import structural
from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.api.validation.hints.advice import has_value, value_at
from dapt_operator.api.validation.hints.field_places import OTHER_NAMES
from dapt_operator.api.validation.problem import Problem
from dapt_operator.api.validation.validate import check
from dapt_operator.api.validation.yaml_source import Path, YamlDocument, load

MANIFEST = """\
apiVersion: dapt.dev/v1alpha1
kind: DomainAdaptation
metadata: {name: one}
spec:
  model: {source: hf://org/base@1}
  corpus: {domain: [{source: s3://c/d.jsonl}, {source: s3://c/e.jsonl}], general: [{source: s3://c/g.jsonl}]}
  pretraining: {}
  finetuning: {data: [{source: s3://c/s.jsonl}]}
  preference: {data: [{source: s3://c/p.jsonl}]}
  output: {destination: s3://models/one}
  resources: {nodes: 1}
"""
PROFILE = """\
apiVersion: dapt.dev/v1alpha1
kind: AdaptationProfile
metadata: {name: h100}
spec: {trainerImage: "registry.example/trainer:1", accelerator: {memoryGiB: 80}, storage: {existingClaim: work}}
"""


def with_field(path: str, value: object, text: str = MANIFEST) -> dict[str, Any]:
    """Return the manifest's data with one more field; numbers in the path are indices."""
    (document,) = load(text)
    *parents, name = path.split("/")
    block: Any = document.data
    for part in parents:
        block = block[int(part)] if part.isdigit() else block.setdefault(part, {})
    block[name] = value
    return dict(document.data)


def problems_of(data: object) -> list[Problem]:
    return check(YamlDocument(data), local=True)[1]


# path of the unknown field, its value, what the message says, and where the value is afterwards
MOVES: tuple[tuple[str, object, str, str], ...] = (
    ("spec/finetuning/learningRate", 1e-4, "spec.finetuning.optimizer.learningRate", "move"),
    ("spec/finetuning/learning_rate", 1e-4, "spec.finetuning.optimizer.learningRate", "move"),
    ("spec/finetuning/lr", 1e-4, "spec.finetuning.optimizer.learningRate", "move"),
    ("spec/finetuning/epochs", 3, "spec.finetuning.budget.epochs", "move"),
    ("spec/finetuning/num_train_epochs", 3, "spec.finetuning.budget.epochs", "move"),
    ("spec/finetuning/max-steps", 30, "spec.finetuning.budget.steps", "move"),
    ("spec/finetuning/warmupFraction", 0.1, "spec.finetuning.schedule.warmupFraction", "move"),
    ("spec/finetuning/lora", {"rank": 8}, "spec.finetuning.method.lora", "move"),
    ("spec/finetuning/rank", 8, "spec.finetuning.method.lora.rank", "move"),
    ("spec/finetuning/lora_rank", 8, "spec.finetuning.method.lora.rank", "move"),
    ("spec/finetuning/optimizer.learningRate", 1e-4, "spec.finetuning.optimizer.learningRate", "move"),
    ("spec/finetuning/warmup", 0.03, "spec.finetuning.schedule.warmupFraction", "move"),
    ("spec/corpus/held_out_fraction", 0.01, "spec.corpus.heldOut.fraction", "move"),
    ("spec/model/extend", {"vocabularySize": 9}, "spec.model.tokenizer.extend", "move"),
    (
        "spec/epochs",
        2,
        "spec.preference.epochs or spec.pretraining.budget.epochs or spec.finetuning.budget.epochs",
        "move",
    ),
    ("spec/evaluation/tasks", [{"name": "mmlu"}], "domain.tasks or spec.evaluation.general.tasks", "move"),
    ("spec/labels", {"team": "a"}, "metadata.labels", "move"),
    ("spec/finetuning/format", "promptResponse", "spec.finetuning.data[].format", "move"),
    ("spec/preference/weight_decay", 0.0, "spec.preference.optimizer.weightDecay", "move"),
    ("spec/preference/budget", {"epochs": 2}, "spec.preference.epochs", "unwrap"),
    ("spec/pretraining/schedule/learningRate", 1e-5, "spec.pretraining.optimizer.learningRate", "move"),
    ("spec/pretraining/optimizer/globalBatchSize", 8, "spec.pretraining.globalBatchSize", "move"),
    ("spec/pretraining/zeroStage", 2, "spec.pretraining.distribution.zeroStage", "move"),
    ("spec/pretraining/count", 4, "spec.pretraining.checkpoints.count", "move"),
    ("spec/corpus/textField", "body", "spec.corpus.domain[].textField", "move"),
    ("spec/corpus/domain/0/heldOut", {"fraction": 0.1}, "spec.corpus.heldOut", "move"),
    ("spec/corpus/documentBoundaries", False, "spec.corpus.packing.documentBoundaries", "move"),
    ("spec/gates/seed", 4, "spec.seed", "move"),
    ("spec/gates/maxRollbacks", 1, "spec.gates.rollback.maxRollbacks", "move"),
    ("spec/model/destination2", "s3://a/b", "known here", "remove"),
    ("spec/corpus/fewShot", 0, "spec.evaluation.fewShot", "move"),
    ("spec/gpusPerNode", 2, "spec.resources.gpusPerNode", "move"),
    ("spec/Seed", 5, "'seed'", "rename"),
    ("spec/corpus/sequence_length", 512, "'sequenceLength'", "rename"),
    ("spec/corpus/SEQUENCE-LENGTH", 512, "'sequenceLength'", "rename"),
    ("spec/corpus/max_seq_length", 512, "'sequenceLength'", "rename"),
    ("spec/pretraining/batch_size", 16, "'globalBatchSize'", "rename"),
    ("spec/finetuning/methods", {"full": {}}, "'method'", "rename"),
    ("seed", 5, "spec.seed", "move"),
    ("namespace", "team", "metadata.namespace", "move"),
)


@pytest.mark.parametrize(("path", "value", "text", "how"), MOVES, ids=[row[0] for row in MOVES])
def test_unknown_field_gets_the_nearest_place_which_is_accepted(
    path: str, value: object, text: str, how: str
) -> None:
    data = with_field(path, value)
    (problem,) = problems_of(data)
    assert text in problem.message
    if how == "remove":
        assert problem.advice is None
        return
    assert problem.advice is not None
    assert problems_of(problem.advice.applied(data)) == []


def test_the_advice_of_the_issue_is_word_for_word() -> None:
    (learning_rate,) = problems_of(with_field("spec/finetuning/learningRate", 1e-4))
    assert learning_rate.message == (
        "unknown field here; it is known as spec.finetuning.optimizer.learningRate; move it there"
    )
    (budget,) = problems_of(with_field("spec/preference/budget", {"epochs": 2}))
    assert budget.message == (
        "unknown field; its field is known as spec.preference.epochs; move what is in it there"
    )


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        # another stage's field of that name would train something else
        (
            "spec/preference/steps",
            40,
            "unknown field here; only spec.pretraining.budget.steps and spec.finetuning.budget.steps are known;"
            " remove it",
        ),
        (
            "spec/finetuning/checkpoints",
            {"count": 2},
            "unknown field here; only spec.pretraining.checkpoints is known; remove it",
        ),
        # a rule would refuse it at the only place
        (
            "spec/pretraining/method/rank",
            8,
            "unknown field here; it is known as spec.pretraining.method.lora.rank; move it there",
        ),
        # known in its own block, though not with this value: never another stage's
        (
            "spec/finetuning/lora",
            True,
            "unknown field here; it is known as spec.finetuning.method.lora, which takes a block with the fields rank,"
            " alpha, dropout and targets and must agree with the fields around it; correct and move it, or remove it",
        ),
        (
            "spec/pretraining/budget/epoch",
            "many",
            "unknown field; nearest known name is 'epochs', which takes a number above 0 and at most 1000 and must"
            " agree with the fields around it; correct and rename it, or remove it",
        ),
    ],
)
def test_unknown_field_without_an_accepted_place(path: str, value: object, message: str) -> None:
    (problem,) = problems_of(with_field(path, value))
    assert problem.message == message


def test_a_name_that_is_given_already_is_not_renamed_onto() -> None:
    (document,) = load(
        MANIFEST.replace("pretraining: {}", "pretraining: {globalBatchSize: 8, batch_size: 8}")
    )
    (problem,) = check(document, local=True)[1]
    assert str(problem) == (
        "spec.pretraining.batch_size (line 7): unknown field; nearest known name is 'globalBatchSize', which is given"
        " in line 7; remove one of them"
    )


def test_a_place_that_breaks_a_rule_is_not_proposed() -> None:
    data = with_field("spec/pretraining/lora", {"rank": 4})
    data["spec"]["pretraining"]["method"] = {"full": {}}
    (problem,) = problems_of(data)
    assert problem.advice is None
    assert problem.message == (
        "unknown field here; it is known as spec.pretraining.method.lora, which takes a block with the fields rank,"
        " alpha, dropout and targets and must agree with the fields around it; correct and move it, or remove it"
    )


def test_field_of_a_pod_belongs_to_the_template_of_the_profile() -> None:
    data = with_field("spec/nodeSelector", {"gpu": "h100"}, PROFILE)
    (problem,) = problems_of(data)
    assert problem.message == (
        "unknown field here; it is known as spec.podTemplate.spec.nodeSelector; move it there"
    )
    assert problem.advice is not None
    assert problems_of(problem.advice.applied(data)) == []


def _blocks(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if "properties" in schema and not path.startswith("status"):
        yield path, schema
        for name, child in schema["properties"].items():
            yield from _blocks(child, f"{path}/{name}".removeprefix("/"))


_SPEC_BLOCKS = [
    (path, schema)
    for path, schema in _blocks(structural(DomainAdaptation))
    if path.startswith("spec") and "/" in path
]


@pytest.mark.parametrize("path", [path for path, _ in _SPEC_BLOCKS])
def test_no_advice_for_a_misplaced_field_of_any_block_is_refused(path: str) -> None:
    block = path.split("/")
    # Every eighth name of all blocks, moved here with a value of its own place: unseen combinations, and quick.
    foreign = {
        name: child
        for other, schema in _SPEC_BLOCKS
        for name, child in schema["properties"].items()
        if other != path and "default" in child
    }
    for name in sorted(foreign)[len(path) % 8 :: 8]:
        data = with_field(f"{path}/{name}", foreign[name]["default"])
        for problem in problems_of(data):
            if problem.advice is not None:
                left = {str(other) for other in problems_of(problem.advice.applied(data))}
                assert left <= {str(other) for other in problems_of(data)}, (path, name, problem.message)
                assert (
                    not has_value(problem.advice.applied(data), (*block, name)) or not problem.advice.removed
                )


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (
            "spec/pretraining/optimizer/type",
            "adamw",
            "unknown field; known here: learningRate, weightDecay, betas, gradientClip; remove it",
        ),
        (
            "spec/pretraining/gradientAccumulationSteps",
            8,
            "follows from globalBatchSize, microBatchSize and the number of ranks; remove it, and set globalBatchSize",
        ),
        (
            "spec/finetuning/data/0/fields",
            {"output": "a"},
            "unknown field; nearest known name is 'response'; rename or remove it",
        ),
    ],
)
def test_a_name_that_only_happens_to_be_elsewhere_is_not_sent_there(
    path: str, value: object, sentence: str
) -> None:
    assert [problem.message for problem in problems_of(with_field(path, value))] == [sentence]


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        ([{"name": "quiz", "source": "quiz.jsonl"}], ["spec.evaluation.domain.tasks[0].source"]),
        (["mmlu", "arc_easy"], ["spec.evaluation.domain.tasks[0]", "spec.evaluation.domain.tasks[1]"]),
    ],
)
def test_a_wrong_task_has_no_further_problem_of_our_making(value: object, fields: list[str]) -> None:
    data = with_field("spec/evaluation", {"domain": {"tasks": value}})
    assert [problem.field for problem in problems_of(data)] == fields


def test_the_schema_has_a_place_for_every_name_that_another_library_uses() -> None:
    known = {
        name
        for model in (DomainAdaptation, AdaptationProfile)
        for _, schema in _blocks(structural(model))
        for name in schema["properties"]
    } | {"source", "textField", "name", "messages", "prompt", "response"}
    assert {name for names in OTHER_NAMES.values() for name in names} <= known


def test_an_advice_leaves_the_original_as_it_is() -> None:
    data = with_field("spec/finetuning/epochs", 3)
    path: Path = ("spec", "finetuning", "epochs")
    (problem,) = problems_of(data)
    assert problem.advice is not None
    problem.advice.applied(data)
    assert value_at(data, path) == 3


def test_a_source_without_its_list_makes_one_problem_and_a_list() -> None:
    data = with_field("spec/finetuning", {"source": "s3://c/s.jsonl"})
    (problem,) = problems_of(data)
    assert problem.message == (
        "unknown field here; it is known as spec.finetuning.data[].source; move it there"
    )
    assert problem.advice is not None
    changed: Any = problem.advice.applied(data)
    assert changed["spec"]["finetuning"] == {"data": [{"source": "s3://c/s.jsonl"}]}
    assert problems_of(changed) == []


def test_a_source_alongside_an_empty_list_is_a_problem_of_its_own() -> None:
    spec: dict[str, Any] = {"profile": None, "suspend": None, "corpus": {"source": [], "domain": []}}
    found = problems_of(with_field("spec", spec))
    (message,) = (problem.message for problem in found if problem.field == "spec.corpus.source")
    assert message.startswith("unknown field here; it is known as spec.corpus.domain[].source")
