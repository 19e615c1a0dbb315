"""The models have the documented names and defaults, are frozen, and survive a round trip."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from dapt_operator.api.v1alpha1.base import Base, camel_case
from dapt_operator.api.v1alpha1.metadata import AdaptationMeta, ObjectMeta
from dapt_operator.api.v1alpha1.profile import AdaptationProfile, Storage, local_profile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation, DomainAdaptationSpec
from dapt_operator.api.v1alpha1.spec_corpus import Corpus, Model, Source
from dapt_operator.api.v1alpha1.spec_evaluation import Gates
from dapt_operator.api.v1alpha1.spec_operation import Output, Resources
from dapt_operator.api.v1alpha1.spec_training import Budget, Full, Lora, Method, Optimizer
from dapt_operator.api.v1alpha1.status import (
    AttemptStatus,
    CandidateStatus,
    DomainAdaptationStatus,
    Frozen,
    ProgressStatus,
    Resolved,
    ResolvedModel,
    StageStatus,
    TaskScore,
)


def minimal() -> DomainAdaptation:
    return DomainAdaptation(
        metadata=AdaptationMeta(name="clinical"),
        spec=DomainAdaptationSpec(
            model=Model(source="hf://org/base@1"),
            corpus=Corpus(
                domain=(Source(source="s3://corpora/domain.jsonl"),),
                general=(Source(source="s3://corpora/general.jsonl"),),
            ),
            output=Output(destination="s3://models/clinical"),
            resources=Resources(),
        ),
    )


def test_the_shortest_manifest_has_the_documented_defaults() -> None:
    assert minimal().to_dict() == {
        "apiVersion": "dapt.dev/v1alpha1",
        "kind": "DomainAdaptation",
        "metadata": {"name": "clinical"},
        "spec": {
            "suspend": False,
            "seed": 17,
            "model": {"source": "hf://org/base@1"},
            "corpus": {
                "domain": [{"source": "s3://corpora/domain.jsonl", "textField": "text", "weight": 1.0}],
                "general": [{"source": "s3://corpora/general.jsonl", "textField": "text", "weight": 1.0}],
                "generalUse": "train",
                "heldOut": {"fraction": 0.005},
                "packing": {"documentBoundaries": True},
                "deduplicate": "exact",
                "decontaminate": True,
                "badRecords": {"maxFraction": 0.0},
            },
            "pretraining": {
                "method": {"full": {}},
                "budget": {"epochs": 1.0},
                "optimizer": {"weightDecay": 0.1, "betas": [0.9, 0.95], "gradientClip": 1.0},
                "schedule": {"type": "cosine", "warmupFraction": 0.01, "minimumRatio": 0.1},
                "distribution": {},
                "checkpoints": {"count": 10, "keep": "all"},
            },
            "evaluation": {
                "domain": {"tasks": []},
                "general": {"tasks": []},
                "probes": {"domain": [], "general": []},
                "fewShot": 5,
                "when": "everyCheckpoint",
            },
            "gates": {
                "maxGeneralPerplexityIncrease": 0.15,
                "maxGeneralScoreDrop": 3.0,
                "minDomainPerplexityDecrease": 0.0,
                "patience": 2,
                "hardStopFactor": 4.0,
                "onBreach": "Rollback",
                "rollback": {"maxRollbacks": 2, "learningRateFactor": 0.5, "replayFactor": 2.0},
            },
            "selection": {
                "weights": {"domainPerplexity": 1.0, "domainTasks": 1.0},
                "interpolate": [0.6, 0.8, 1.0],
                "averageLast": 3,
            },
            "output": {"destination": "s3://models/clinical", "form": "merged", "modelCard": True},
            "credentials": [],
            "resources": {"nodes": 1},
            "stageResources": {},
            "limits": {},
        },
    }


def test_to_dict_can_leave_out_fields_that_were_not_set() -> None:
    assert minimal().to_dict(only_set=True)["spec"]["corpus"] == {
        "domain": [{"source": "s3://corpora/domain.jsonl"}],
        "general": [{"source": "s3://corpora/general.jsonl"}],
    }


def test_a_resource_survives_a_round_trip() -> None:
    document = minimal()
    assert DomainAdaptation.model_validate(document.to_dict()) == document


def test_values_are_frozen() -> None:
    document = minimal()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(document.spec.gates, "patience", 3)  # noqa: B010 - mypy knows that it is frozen


@pytest.mark.parametrize(
    ("python", "yaml"),
    [
        ("memory_gib", "memoryGiB"),
        ("memory_gib_per_gpu", "memoryGiBPerGpu"),
        ("kl_to_base", "klToBase"),
        ("try_number", "try"),
        ("l2sp", "l2sp"),
        ("pending_timeout_seconds", "pendingTimeoutSeconds"),
    ],
)
def test_yaml_names_are_camel_case(python: str, yaml: str) -> None:
    assert camel_case(python) == yaml


def test_whole_floats_count_as_whole_numbers_and_nothing_else_is_converted() -> None:
    assert Budget.model_validate({"tokens": 2e9}).tokens == 2_000_000_000
    for wrong in (2.5, "2", True):
        with pytest.raises(ValidationError):
            Budget.model_validate({"tokens": wrong})
    with pytest.raises(ValidationError):
        Optimizer.model_validate({"learningRate": "2e-5"})


def test_lora_without_alpha_keeps_the_scale_when_the_rank_changes() -> None:
    assert Lora().effective_alpha == 128
    assert Lora(rank=16).effective_alpha == 32
    assert Lora(rank=16, alpha=7).effective_alpha == 7


def test_rules_hold_for_values_made_in_python_too() -> None:
    with pytest.raises(ValidationError, match="exactly one of full and lora must be given: keep one of them"):
        Method(full=Full(), lora=Lora())
    with pytest.raises(ValidationError, match="hardStopFactor must be above 1"):
        Gates(hard_stop_factor=1.0)
    with pytest.raises(ValidationError, match="exactly one of claimTemplate and existingClaim"):
        Storage()


def full_status() -> DomainAdaptationStatus:
    return DomainAdaptationStatus(
        observed_generation=3,
        phase="Pretraining",
        forgetting=0.021,
        progress=ProgressStatus(fraction=0.41, step=3120, total_steps=7600, eta_seconds=8220),
        resolved=Resolved(model=ResolvedModel(revision="0e9e39f"), learning_rate=2e-5, zero_stage=2),
        frozen=Frozen(corpus=True),
        stages=(StageStatus(name="prepare", kind="prepare", try_number=2, state="Succeeded"),),
        candidates=(
            CandidateStatus(
                id="a1-s760",
                gain=0.18,
                tasks={"medqa": TaskScore(score=0.4, change_points=2.0, standard_error_points=0.9)},
                passes=True,
            ),
        ),
        attempts=(AttemptStatus(number=1, learning_rate=2e-5),),
    )


def test_status_is_written_in_camel_case_without_what_is_absent() -> None:
    assert full_status().to_dict() == {
        "observedGeneration": 3,
        "phase": "Pretraining",
        "forgetting": 0.021,
        "progress": {"fraction": 0.41, "step": 3120, "totalSteps": 7600, "etaSeconds": 8220.0},
        "resolved": {"model": {"revision": "0e9e39f"}, "learningRate": 2e-5, "zeroStage": 2},
        "frozen": {"corpus": True},
        "stages": [{"name": "prepare", "kind": "prepare", "attempt": 1, "try": 2, "state": "Succeeded"}],
        "candidates": [
            {
                "id": "a1-s760",
                "gain": 0.18,
                "tasks": {"medqa": {"score": 0.4, "changePoints": 2.0, "standardErrorPoints": 0.9}},
                "passes": True,
            }
        ],
        "attempts": [{"number": 1, "learningRate": 2e-5}],
    }


def test_status_survives_a_round_trip_and_ignores_unknown_fields() -> None:
    written = full_status().to_dict()
    assert DomainAdaptationStatus.model_validate(written) == full_status()
    written["invented"] = 1
    written["progress"]["invented"] = {"deep": True}
    assert DomainAdaptationStatus.model_validate(written) == full_status()


def test_an_empty_status_is_an_empty_block() -> None:
    assert DomainAdaptationStatus().to_dict() == {}


def test_the_local_profile_counts_processes_on_cpu_and_devices_on_gpu() -> None:
    cpu = local_profile(2, 4.0, "cpu")
    assert cpu.metadata.name == "local"
    assert cpu.spec.accelerator.to_dict() == {"kind": "cpu", "perNode": 2, "memoryGiB": 4.0}
    assert local_profile(1, 80.0, "gpu").spec.accelerator.resource == "nvidia.com/gpu"
    assert AdaptationProfile.model_validate(cpu.to_dict()) == cpu


def test_a_profile_is_default_by_its_annotation() -> None:
    profile = local_profile(1, 1.0, "cpu")
    marked = profile.model_copy(
        update={"metadata": ObjectMeta(name="x", annotations={"dapt.dev/default": "true"})}
    )
    assert (profile.is_default, marked.is_default) == (False, True)


def blocks(model: type[BaseModel]) -> Iterator[type[Base]]:
    """Every block class that can be reached from a resource."""
    assert issubclass(model, Base)
    yield model
    for field in model.model_fields.values():
        yield from _blocks_in(field.annotation)


def _blocks_in(annotation: Any) -> Iterator[type[Base]]:
    if isinstance(annotation, type) and issubclass(annotation, Base):
        yield from blocks(annotation)
    for argument in get_args(annotation):
        yield from _blocks_in(argument)


@pytest.mark.parametrize("resource", [DomainAdaptation, AdaptationProfile])
def test_every_field_has_a_description(resource: type[Base]) -> None:
    silent = [
        f"{block.__name__}.{name}"
        for block in blocks(resource)
        for name, field in block.model_json_schema()["properties"].items()
        if not field.get("description")
    ]
    assert silent == []


def test_a_description_is_the_docstring_under_the_field_of_the_class_or_of_its_parent() -> None:
    class Parent(Base):
        inherited: int = 0
        """Of the parent,
        in two lines."""
        changed: int = 0
        """Before."""

    class Child(Parent):
        changed: int = 1
        """After."""
        silent: int = 2

    described = {
        name: field.get("description") for name, field in Child.model_json_schema()["properties"].items()
    }
    assert described == {"inherited": "Of the parent,\nin two lines.", "changed": "After.", "silent": None}


@pytest.mark.parametrize(("written", "read"), [(8, "8"), ("8", "8"), ("500m", "500m")])
def test_cpus_are_taken_as_a_whole_number_or_a_quantity(written: object, read: str) -> None:
    assert Resources.model_validate({"cpu": written}).cpu == read


@pytest.mark.parametrize("written", [True, -8, 0.5, "8 cores"])
def test_cpus_of_another_form_are_refused(written: object) -> None:
    with pytest.raises(ValidationError):
        Resources.model_validate({"cpu": written})
