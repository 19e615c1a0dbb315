"""Every rule is checked twice, in Python and in CEL: the two must agree on every block."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import celpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapt_operator.api.schema import immutable
from dapt_operator.api.v1alpha1.base import SKIP_RULES, Base, Rule
from dapt_operator.api.v1alpha1.profile import Ports, Storage
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.spec_corpus import Corpus
from dapt_operator.api.v1alpha1.spec_evaluation import Evaluation, Gates, Selection, SelectionWeights, Task
from dapt_operator.api.v1alpha1.spec_operation import Credential, MeasuringResources
from dapt_operator.api.v1alpha1.spec_training import (
    Budget,
    Distribution,
    FinetuningBudget,
    Method,
    Optimizer,
    PreferenceOptimizer,
    Pretraining,
    Regularization,
    TuningMethod,
)
from dapt_operator.api.v1alpha1.spec_tuning_data import InstructionFields, MessageFields, PreferenceFields
from dapt_operator.api.v1alpha1.status import Frozen
from dapt_operator.api.v1alpha1.stored.resource import StoredAdaptation

SIDES: dict[str, Any] = {"domain": [{"source": "s3://a"}], "general": [{"source": "s3://b"}]}
SPEC: dict[str, Any] = {
    "model": {"source": "hf://a/b"},
    "corpus": SIDES,
    "output": {"destination": "s3://c"},
    "resources": {},
}
ADAPTER = {"destination": "s3://c", "form": "adapter"}
LORA: dict[str, Any] = {"method": {"lora": {}}}
TUNING: dict[str, Any] = {"data": [{"source": "s3://a"}]}

# Block, data, and which of its rules are broken, by place in RULES.
CASES: list[tuple[type[Base], dict[str, Any], list[int]]] = [
    (Method, {"full": {}}, []),
    (Method, {"lora": {"rank": 4}}, []),
    (Method, {}, [0]),
    (Method, {"full": {}, "lora": {}}, [0]),
    (TuningMethod, {"lora": {}}, []),
    (TuningMethod, {"full": {}, "lora": {}}, [0]),
    (Budget, {"tokens": 5}, []),
    (Budget, {}, [0]),
    (Budget, {"tokens": 5, "steps": 5}, [0]),
    (Budget, {"epochs": 0.5, "tokens": 5, "steps": 5}, [0]),
    (FinetuningBudget, {"steps": 5}, []),
    (FinetuningBudget, {"epochs": 1, "steps": 5}, [0]),
    (MeasuringResources, {"gpusPerModel": 8}, []),
    (MeasuringResources, {"gpusPerModel": 8, "gpus": 4, "nodes": 2}, []),
    (MeasuringResources, {"gpusPerModel": 8, "gpus": 4}, [0]),
    (MeasuringResources, {"gpusPerModel": 4, "gpus": 6}, [0]),
    (Regularization, {"ewc": {}}, []),
    (Regularization, {}, [0]),
    (Regularization, {"l2sp": {}, "klToBase": {}}, [0]),
    (Pretraining, {"regularization": {"ewc": {}}}, []),
    (Pretraining, {"regularization": {"ewc": {}}, "distribution": {"zeroStage": 2, "offload": "none"}}, []),
    (Pretraining, {"distribution": {"zeroStage": 3, "offload": "optimizer"}}, []),
    (Pretraining, {"regularization": {"ewc": {}}, "distribution": {"zeroStage": 3}}, [0]),
    (Pretraining, {"regularization": {"ewc": {}}, "distribution": {"sequenceParallel": 1}}, []),
    (Pretraining, {"regularization": {"ewc": {}}, "distribution": {"sequenceParallel": 2}}, [1]),
    (Pretraining, {"distribution": {"sequenceParallel": 8}}, []),
    (Pretraining, {"regularization": {"l2sp": {}}, "distribution": {"offload": "optimizer"}}, [0]),
    (Distribution, {}, []),
    (Distribution, {"zeroStage": 0, "offload": "none"}, []),
    (Distribution, {"zeroStage": 1, "offload": "optimizer"}, []),
    (Distribution, {"zeroStage": 0, "offload": "optimizer"}, [0]),
    (Distribution, {"offload": "all"}, []),
    (Distribution, {"zeroStage": 3, "offload": "all"}, []),
    (Distribution, {"zeroStage": 2, "offload": "all"}, [1]),
    (Optimizer, {}, []),
    (Optimizer, {"betas": [0.9, 0.9]}, []),
    (Optimizer, {"betas": [0.99, 0.9]}, [0]),
    (PreferenceOptimizer, {}, []),
    (PreferenceOptimizer, {"betas": [0.99, 0.9]}, [0]),
    (Corpus, SIDES, []),
    (Corpus, SIDES | {"replayFraction": 0.05}, []),
    (Corpus, SIDES | {"replayFraction": 0.0}, [1]),
    (Corpus, SIDES | {"generalUse": "measure"}, []),
    (Corpus, SIDES | {"generalUse": "measure", "replayFraction": 0.0}, []),
    (Corpus, SIDES | {"generalUse": "measure", "replayFraction": 0.1}, [0]),
    (Evaluation, {}, []),
    (Evaluation, {"domain": {"tasks": [{"name": "a"}]}, "general": {"tasks": [{"name": "b"}]}}, []),
    (Evaluation, {"domain": {"tasks": [{"name": "a"}, {"name": "a"}]}}, [0]),
    (Evaluation, {"general": {"tasks": [{"name": "a"}, {"name": "a"}]}}, [0]),
    (Evaluation, {"domain": {"tasks": [{"name": "a"}]}, "general": {"tasks": [{"name": "a"}]}}, [0]),
    (Gates, {}, []),
    (Gates, {"hardStopFactor": 1.0}, [0]),
    (Gates, {"minDomainPerplexityDecrease": 1.0}, [1]),
    (Gates, {"onBreach": "Block", "rollback": {"learningRateFactor": 1.0, "replayFactor": 1.0}}, []),
    (Gates, {"onBreach": "Rollback", "rollback": {"learningRateFactor": 1.0, "replayFactor": 1.0}}, [2]),
    (Gates, {"onBreach": "Rollback", "rollback": {"learningRateFactor": 1.0, "replayFactor": 1.5}}, []),
    (Gates, {"onBreach": "Rollback", "rollback": {"maxRollbacks": 0}}, [3]),
    (Gates, {"hardStopFactor": 0.5, "minDomainPerplexityDecrease": 3.0}, [0, 1]),
    (SelectionWeights, {"domainTasks": 0.0}, []),
    (SelectionWeights, {"domainPerplexity": 0.0, "domainTasks": 0.0}, [0]),
    (Selection, {"interpolate": [0.6, 0.8, 1.0]}, []),
    (Selection, {"interpolate": [0.6, 0.6]}, [0]),
    (Ports, {}, []),
    (Ports, {"progress": 29500}, [0]),
    (Storage, {"claimTemplate": {"accessModes": ["ReadWriteMany"]}}, []),
    (Storage, {"existingClaim": "a", "claimTemplate": {}}, [0]),
    (Credential, {"secretName": "dapt-s3", "use": "read"}, []),
    (Credential, {"secretName": "dapt-clinical-0a1b2c3d-signing", "use": "read"}, [0]),
    (Task, {"name": "mmlu"}, []),
    (Task, {"name": "own.yaml", "source": "s3://a"}, []),
    (Task, {"name": "evil.yaml"}, [0]),
    (DomainAdaptationSpec, SPEC, []),
    (DomainAdaptationSpec, SPEC | {"preference": TUNING}, [0]),
    (DomainAdaptationSpec, SPEC | {"preference": TUNING, "finetuning": TUNING}, []),
    (
        DomainAdaptationSpec,
        SPEC | {"output": ADAPTER, "pretraining": LORA, "model": {"source": "hf://a/b@c/d.gguf"}},
        [4],
    ),
    (
        DomainAdaptationSpec,
        SPEC
        | {"output": ADAPTER, "pretraining": LORA, "finetuning": TUNING}
        | {"preference": TUNING | {"method": {"full": {}}}},
        [1],
    ),
    (DomainAdaptationSpec, SPEC | {"output": ADAPTER}, [1]),
    (DomainAdaptationSpec, SPEC | {"output": ADAPTER, "pretraining": LORA}, []),
    (DomainAdaptationSpec, SPEC | {"output": ADAPTER, "pretraining": LORA, "finetuning": TUNING}, []),
    (
        DomainAdaptationSpec,
        SPEC | {"output": ADAPTER, "pretraining": LORA, "finetuning": TUNING | {"method": {"full": {}}}},
        [1],
    ),
    (DomainAdaptationSpec, SPEC | {"selection": {"averageLast": 10}}, []),
    (DomainAdaptationSpec, SPEC | {"selection": {"averageLast": 11}}, [2]),
    (DomainAdaptationSpec, SPEC | {"selection": {"weights": {"domainPerplexity": 0.0}}}, [3]),
    (
        DomainAdaptationSpec,
        SPEC
        | {
            "selection": {"weights": {"domainPerplexity": 0.0}},
            "evaluation": {"domain": {"tasks": [{"name": "a"}]}},
        },
        [],
    ),
    *(
        (block, {"roles": {name: "user"}}, broken_rules)
        for block in (MessageFields, InstructionFields, PreferenceFields)
        for name, broken_rules in (("human", []), ("", [0]), ("x" * 129, [0]), ("a\u202eb", [0]))
    ),
]


def holds_in_cel(rule: str, **values: Any) -> bool:
    environment = celpy.Environment()
    program = environment.program(environment.compile(rule))
    return bool(program.evaluate({name: celpy.json_to_cel(value) for name, value in values.items()}))


def broken(block: Base, data: dict[str, Any]) -> tuple[list[Rule], list[Rule]]:
    """The rules that a block breaks, by Python and by CEL."""
    return (
        [rule for rule in block.RULES if not rule.holds(block)],
        [rule for rule in block.RULES if not holds_in_cel(rule.cel, self=data)],
    )


@pytest.mark.parametrize(("block_type", "data", "expected"), CASES)
def test_python_and_cel_agree(block_type: type[Base], data: dict[str, Any], expected: list[int]) -> None:
    block = block_type.model_validate(data, context={SKIP_RULES: True})
    rules = [block_type.RULES[index] for index in expected]
    assert broken(block, block.to_dict()) == (rules, rules)


def test_every_rule_is_broken_by_some_case() -> None:
    def blocks(block: type[Base]) -> Iterator[type[Base]]:
        yield block
        for subclass in block.__subclasses__():
            yield from blocks(subclass)

    declared = {(block, index) for block in blocks(Base) for index in range(len(block.RULES))}
    assert {(block, index) for block, _, indices in CASES for index in indices} == declared


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "onBreach": st.sampled_from(["Rollback", "Block", "Warn"]),
            "hardStopFactor": st.floats(0.5, 2),
            "minDomainPerplexityDecrease": st.floats(0, 2),
            "rollback": st.fixed_dictionaries(
                {},
                optional={
                    "maxRollbacks": st.integers(0, 2),
                    "learningRateFactor": st.sampled_from([0.5, 1.0]),
                    "replayFactor": st.sampled_from([1.0, 2.0]),
                },
            ),
        },
    )
)
def test_python_and_cel_agree_on_any_gates(data: dict[str, Any]) -> None:
    gates = Gates.model_validate(data, context={SKIP_RULES: True})
    by_python, by_cel = broken(gates, gates.to_dict())
    assert by_python == by_cel


CHANGES: dict[str, Any] = {
    "seed": 4,
    "model": {"source": "s3://other"},
    "corpus": SIDES | {"deduplicate": "none"},
    "evaluation": {"fewShot": 1},
    "profile": "other",
    "pretraining": {"globalBatchSize": 8},
    "finetuning": TUNING,
    "preference": TUNING,
    "output": {"destination": "s3://other"},
}


@pytest.mark.parametrize("frozen", [True, False, None])
@pytest.mark.parametrize("block", immutable.FROZEN_BLOCKS)
def test_python_and_cel_agree_on_frozen_blocks(block: str, frozen: bool | None) -> None:
    status = None if frozen is None else {"frozen": {block: frozen}}

    def document(change: bool) -> dict[str, Any]:
        spec = deepcopy(SPEC)
        if change:
            spec[block] = CHANGES[block]
        whole = {"metadata": {"name": "a"}, "spec": spec} | ({"status": status} if status else {})
        return StoredAdaptation.model_validate(whole, context={SKIP_RULES: True}).to_dict()

    held = frozen is True
    for old_changed, new_changed in ((False, True), (True, False), (True, True)):
        old, new = document(old_changed), document(new_changed)
        refused = held and old_changed != new_changed
        assert holds_in_cel(immutable.cel(block), self=new, oldSelf=old) is not refused
        by_python = immutable.changed_blocks(
            DomainAdaptationSpec.model_validate(old["spec"], context={SKIP_RULES: True}),
            DomainAdaptationSpec.model_validate(new["spec"], context={SKIP_RULES: True}),
            None if frozen is None else Frozen.model_validate({block: frozen}),
        )
        assert by_python == ({block: immutable.message(block)} if refused else {})
