"""A stage that could run now: its configuration, its resources, and what several stages need for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from dapt_contract.base import Contract
from dapt_contract.layout import MODEL as BASE_MODEL
from dapt_contract.layout import stage_folder
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.prepare import PrepareFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.run_record import StageKey
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec, has_blends, has_scores
from dapt_operator.api.v1alpha1.spec_operation import CpuResources, GpuResources
from dapt_operator.plan.sizing.resolve import RankLayout
from dapt_operator.stage_run import RunResources

BASE_REFERENCE: Final = ModelReference(weights=BASE_MODEL)
BASELINE_LINEAGE: Final = stage_folder("baseline")
CLAIM_SCHEME: Final = "pvc://"


@dataclass(frozen=True)
class StageInputs:
    """What every stage after prepare is planned from."""

    spec: DomainAdaptationSpec
    profile: AdaptationProfileSpec
    prepared: PrepareFacts


@dataclass(frozen=True)
class StagePlan:
    """A stage that could run now."""

    kind: str
    config: Contract
    resources: RunResources
    attempt: int = 1
    """Attempt of pretraining that it belongs to; 1 for what comes before the first."""
    candidate: str | None = None
    """Candidate that it is about, or the name of a further round of blends."""
    secret_names: tuple[str, ...] = ()
    signs_checkpoints: bool = False
    claims: tuple[str, ...] = ()

    @property
    def stage_key(self) -> StageKey:
        """Return the key of the work; a stage is named by its kind in the identity of its runs."""
        return StageKey(self.kind, self.attempt, self.candidate)


def stage_kinds(spec: DomainAdaptationSpec) -> tuple[str, ...]:
    """Return the stages of an adaptation in their order."""
    blended = ("blend",) if has_blends(spec) else ()
    evaluated = ("evaluate",) if has_scores(spec) else ()
    tuned = ("finetune",) if spec.finetuning is not None else ()
    aligned = ("align",) if spec.preference is not None else ()
    return ("prepare", "baseline", "pretrain", *blended, *evaluated, *tuned, *aligned, "verify", "publish")


def rank_resources(layout: RankLayout, spec: DomainAdaptationSpec, own: CpuResources | None) -> RunResources:
    """Return what the pods of these ranks ask for; CPU and memory of pretraining unless the stage has its own."""
    return RunResources(
        nodes=layout.nodes,
        processes_per_node=layout.processes_per_node,
        accelerators_per_node=layout.accelerators_per_node,
        cpu=(own.cpu if own else None) or spec.resources.cpu,
        memory=(own.memory if own else None) or spec.resources.memory,
    )


def measuring_resources(
    spec: DomainAdaptationSpec, profile: AdaptationProfileSpec, own: GpuResources | None
) -> RunResources:
    """Return what a measuring stage asks for: one process, or as many as `stageResources` says."""
    processes = (own.gpus if own else None) or 1
    layout = RankLayout(1, processes, processes if profile.accelerator.kind == "gpu" else 0)
    return rank_resources(layout, spec, own)


def cpu_resources(spec: DomainAdaptationSpec, own: CpuResources | None) -> RunResources:
    """Return what a stage of one process without an accelerator asks for."""
    return rank_resources(RankLayout(1, 1, 0), spec, own)


def claims(uris: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the claims that `pvc://CLAIM/PATH` URIs lie on, each once, in the order of the manifest."""
    names = (uri.removeprefix(CLAIM_SCHEME).partition("/")[0] for uri in uris if uri.startswith(CLAIM_SCHEME))
    return tuple(dict.fromkeys(names))
