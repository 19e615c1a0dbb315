"""A stage that could run now: its configuration, its resources, and what several stages need for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from dapt_contract.base import Contract
from dapt_contract.layout import MODEL as BASE_MODEL
from dapt_contract.layout import stage_folder
from dapt_contract.stages.common import ModelReference, ModelSpread
from dapt_contract.stages.prepare import PrepareFacts
from dapt_contract.stages.tuning_data import TuningDataConfig, TuningDataFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec, has_blends, has_scores
from dapt_operator.api.v1alpha1.spec_operation import CpuResources
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord, StageKey
from dapt_operator.plan.sizing.grown_tokenizer import grown_model
from dapt_operator.plan.sizing.model_fit.measuring import (
    MeasuringRequest,
    MeasuringStage,
    choose_measuring,
    measuring_stages,
)
from dapt_operator.plan.sizing.resolve import RankLayout, RefusedError, layout_of
from dapt_operator.remembered import remembered
from dapt_operator.stage_run import RunResources, connected_nodes

BASE_REFERENCE: Final = ModelReference(weights=BASE_MODEL)
BASELINE_LINEAGE: Final = stage_folder("baseline")
_CACHED_RANKS: Final = 256


@dataclass(frozen=True)
class TuningData:
    """The data that fine-tuning or preference tuning learns from, or will once it is prepared."""

    folder: str
    """Relative to the work volume."""
    digest: str | None = None
    """None: prepared by a version that gave the data no digest."""
    facts: TuningDataFacts | None = None
    """What it holds; None while it is not prepared, and where that version prepared it."""
    unread: TuningDataConfig | None = None
    """How it is read, while it is not prepared."""

    @property
    def content_digest(self) -> str | None:
        """Return the first digits of the SHA-256 of the prepared records; None where they are not known."""
        return self.facts.shown_digest if self.facts is not None else None


@dataclass(frozen=True)
class StageInputs:
    """What every stage after prepare is planned from."""

    spec: DomainAdaptationSpec
    profile: AdaptationProfileSpec
    prepared: PrepareFacts
    instructions: TuningData | None = field(default=None, kw_only=True)
    """Examples of fine-tuning; None where the spec has none."""
    preferences: TuningData | None = field(default=None, kw_only=True)
    """Pairs of preference tuning; None where the spec has none."""


@dataclass(frozen=True)
class StageRefusal:
    """Why a stage cannot run as the spec and the profile are."""

    reason: str
    message: str


@dataclass(frozen=True)
class StagePlan:
    """A stage that could run now."""

    kind: str
    config: Contract
    resources: RunResources
    attempt: int = 1
    """Attempt of pretraining that it belongs to; 1 for what comes before the first."""
    candidate: str | None = None
    """Candidate that it is about, or the name of a further round of blends, of tuning data or of a destination."""
    inputs_digest: str | None = None
    """Digest of what it works on; see `RunRecord.expects`."""
    follows_inputs: bool = False
    """Whether work on other inputs does not count: it ends, and is done again."""
    secret_names: tuple[str, ...] = ()
    signs_checkpoints: bool = False
    signs_results: bool = False
    """Whether it signs what it measured, and believes what others have measured only where it is signed."""
    claims: tuple[str, ...] = ()
    refusal: StageRefusal | None = None
    """Why no run of it may start; one that has started continues."""

    @property
    def stage_key(self) -> StageKey:
        """Return the key of the work; a stage is named by its kind in the identity of its runs."""
        return StageKey(self.kind, self.attempt, self.candidate)

    @property
    def connected_nodes(self) -> int:
        """Return how many of its pods find each other by name."""
        return connected_nodes(self.kind, self.resources)

    def is_outdated(self, record: RunRecord) -> bool:
        """Return whether the newest run of this work was given other inputs than there are now."""
        return self.follows_inputs and record.expects not in (None, self.inputs_digest)


ON_DEMAND: Final = ("tuning_data",)
"""Stages that run only where an input was edited after prepare had read it."""


def stage_kinds(spec: DomainAdaptationSpec) -> tuple[str, ...]:
    """Return the stages of an adaptation in their order, without those that only an edit asks for."""
    blended = ("blend",) if has_blends(spec) else ()
    evaluated = ("evaluate",) if has_scores(spec) else ()
    tuned = ("finetune",) if spec.finetuning is not None else ()
    aligned = ("align",) if spec.preference is not None else ()
    optional = (*blended, *evaluated, *tuned, *aligned)
    return ("destination", "prepare", "baseline", "pretrain", *optional, "verify", "publish")


def rank_resources(layout: RankLayout, spec: DomainAdaptationSpec, own: CpuResources | None) -> RunResources:
    """Return what the pods of these ranks ask for; CPU and memory of pretraining unless the stage has its own."""
    return RunResources(
        nodes=layout.nodes,
        processes_per_node=layout.processes_per_node,
        accelerators_per_node=layout.accelerators_per_node,
        cpu=(own.cpu if own else None) or spec.resources.cpu,
        memory=(own.memory if own else None) or spec.resources.memory,
    )


@dataclass(frozen=True)
class MeasuringRanks:
    """What a measuring stage asks for, and how its ranks divide a model."""

    resources: RunResources
    spread: ModelSpread
    refusal: StageRefusal | None = None


def measuring_ranks(inputs: StageInputs, stage: MeasuringStage) -> MeasuringRanks:
    """Return the fewest ranks that hold one copy of the model, or those of `stageResources`."""
    return _measuring_ranks(inputs.spec, inputs.profile, inputs.prepared, stage)


def refusal_of_any_measuring_stage(inputs: StageInputs) -> StageRefusal | None:
    """Return why a stage that measures cannot run, so that the first of them is refused before training is paid for."""
    refusals = (measuring_ranks(inputs, stage).refusal for stage in measuring_stages(inputs.spec))
    return next((refusal for refusal in refusals if refusal is not None), None)


# Every reconcile plans the same stages of the same values.
@remembered(_CACHED_RANKS)
def _measuring_ranks(
    spec: DomainAdaptationSpec, profile: AdaptationProfileSpec, prepared: PrepareFacts, stage: MeasuringStage
) -> MeasuringRanks:
    request = MeasuringRequest(
        spec,
        profile,
        grown_model(prepared.model, spec, prepared.tokenizer),
        prepared.sequence_length_tokens,
        stage,
    )
    try:
        plan = choose_measuring(request)
    except RefusedError as refused:
        # A value, not an error: what has run already is not refused by an edit, nor by a later version's estimate.
        layout = layout_of(1, 1, profile)
        refusal = StageRefusal(refused.reason, refused.message)
        return MeasuringRanks(rank_resources(layout, spec, request.own), ModelSpread(), refusal)
    return MeasuringRanks(rank_resources(plan.layout, spec, request.own), plan.spread)


def cpu_resources(spec: DomainAdaptationSpec, own: CpuResources | None) -> RunResources:
    """Return what a stage of one process without an accelerator asks for."""
    return rank_resources(RankLayout(1, 1, 0), spec, own)


def secret_names(spec: DomainAdaptationSpec, use: Literal["read", "write"]) -> tuple[str, ...]:
    """Return the names of the Secrets with the credentials for reading sources, or for writing the destination."""
    return tuple(credential.secret_name for credential in spec.credentials if credential.use == use)
