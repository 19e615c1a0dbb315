"""`DomainAdaptation`: what a user writes. Every block has its own class; all of them can be imported from
here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dapt_operator.api.base import API_VERSION, LABEL_PATTERN, Base, Integer, Name, Rule
from dapt_operator.api.metadata import AdaptationMeta as AdaptationMeta
from dapt_operator.api.metadata import ObjectMeta as ObjectMeta
from dapt_operator.api.spec_corpus import BadRecords as BadRecords
from dapt_operator.api.spec_corpus import Corpus as Corpus
from dapt_operator.api.spec_corpus import HeldOut as HeldOut
from dapt_operator.api.spec_corpus import Model as Model
from dapt_operator.api.spec_corpus import Packing as Packing
from dapt_operator.api.spec_corpus import Source as Source
from dapt_operator.api.spec_corpus import Tokenizer as Tokenizer
from dapt_operator.api.spec_corpus import TokenizerExtension as TokenizerExtension
from dapt_operator.api.spec_evaluation import DEFAULT_AVERAGE
from dapt_operator.api.spec_evaluation import Evaluation as Evaluation
from dapt_operator.api.spec_evaluation import Gates as Gates
from dapt_operator.api.spec_evaluation import Probes as Probes
from dapt_operator.api.spec_evaluation import ProbeSource as ProbeSource
from dapt_operator.api.spec_evaluation import Rollback as Rollback
from dapt_operator.api.spec_evaluation import Selection as Selection
from dapt_operator.api.spec_evaluation import SelectionWeights as SelectionWeights
from dapt_operator.api.spec_evaluation import Task as Task
from dapt_operator.api.spec_evaluation import TaskSide as TaskSide
from dapt_operator.api.spec_operation import Cleanup as Cleanup
from dapt_operator.api.spec_operation import CpuResources as CpuResources
from dapt_operator.api.spec_operation import Credential as Credential
from dapt_operator.api.spec_operation import GpuResources as GpuResources
from dapt_operator.api.spec_operation import Limits as Limits
from dapt_operator.api.spec_operation import Output as Output
from dapt_operator.api.spec_operation import Resources as Resources
from dapt_operator.api.spec_operation import StageResources as StageResources
from dapt_operator.api.spec_training import Budget as Budget
from dapt_operator.api.spec_training import Checkpoints as Checkpoints
from dapt_operator.api.spec_training import Distribution as Distribution
from dapt_operator.api.spec_training import Ewc as Ewc
from dapt_operator.api.spec_training import Finetuning as Finetuning
from dapt_operator.api.spec_training import FinetuningBudget as FinetuningBudget
from dapt_operator.api.spec_training import FinetuningSource as FinetuningSource
from dapt_operator.api.spec_training import Full as Full
from dapt_operator.api.spec_training import KlToBase as KlToBase
from dapt_operator.api.spec_training import L2sp as L2sp
from dapt_operator.api.spec_training import Lora as Lora
from dapt_operator.api.spec_training import Method as Method
from dapt_operator.api.spec_training import Optimizer as Optimizer
from dapt_operator.api.spec_training import Preference as Preference
from dapt_operator.api.spec_training import PreferenceSource as PreferenceSource
from dapt_operator.api.spec_training import Pretraining as Pretraining
from dapt_operator.api.spec_training import Regularization as Regularization
from dapt_operator.api.spec_training import Schedule as Schedule
from dapt_operator.api.status import DomainAdaptationStatus


def _adapters_all_the_way(spec: DomainAdaptationSpec) -> bool:
    return spec.output.form != "adapter" or (
        spec.pretraining.method.lora is not None
        and (spec.finetuning is None or spec.finetuning.method.lora is not None)
    )


def _something_to_rank_by(spec: DomainAdaptationSpec) -> bool:
    return spec.selection.weights.domain_perplexity > 0 or len(spec.evaluation.domain.tasks) > 0


class DomainAdaptationSpec(Base):
    """What is asked for."""

    RULES = (
        Rule(
            "preference",
            lambda spec: spec.preference is None or spec.finetuning is not None,
            "!has(self.preference) || has(self.finetuning)",
            "preference comes after finetuning, which is missing: add finetuning, or remove preference",
        ),
        Rule(
            "output.form",
            _adapters_all_the_way,
            "self.output.form != 'adapter' || (has(self.pretraining.method.lora)"
            " && (!has(self.finetuning) || has(self.finetuning.method.lora)))",
            "form: adapter needs method.lora in pretraining and in finetuning: use lora there, or write"
            " form: merged",
        ),
        Rule(
            "selection.averageLast",
            lambda spec: (
                spec.selection.average_last <= max(DEFAULT_AVERAGE, spec.pretraining.checkpoints.count)
            ),
            f"self.selection.averageLast <= {DEFAULT_AVERAGE}"
            " || self.selection.averageLast <= self.pretraining.checkpoints.count",
            "averageLast must not be above pretraining.checkpoints.count: there are not that many"
            " checkpoints",
        ),
        Rule(
            "selection.weights",
            _something_to_rank_by,
            "self.selection.weights.domainPerplexity > 0.0 || self.evaluation.domain.tasks.size() > 0",
            "domainPerplexity 0 ranks candidates by domain tasks alone, and evaluation.domain.tasks is empty:"
            " add a task, or give domainPerplexity a weight",
        ),
    )

    profile: Name | None = None
    """Name of the AdaptationProfile. Absent: the one marked default."""
    suspend: bool = False
    """Stop running Jobs (they save first) and start no new ones. Default false."""
    queue: Annotated[str, Field(pattern=LABEL_PATTERN, min_length=1, max_length=63)] | None = None
    """Kueue LocalQueue; takes effect at the next Job. Absent: no queue."""
    priority_class_name: Name | None = None
    """PriorityClass of the pods, one of the profile's limits.priorityClasses. Absent: the cluster's default.
    """
    seed: Annotated[Integer, Field(ge=0, le=4_294_967_295)] = 17
    """Seed of everything random: order of data, initialization, few-shot examples. Default 17: a fixed one,
    so that a run can be repeated."""
    model: Model
    """The base model."""
    corpus: Corpus
    """The text that is trained on and measured on."""
    pretraining: Pretraining = Pretraining()
    """Continued pre-training."""
    evaluation: Evaluation = Evaluation()
    """What is measured besides the perplexities."""
    gates: Gates = Gates()
    """What a candidate must show."""
    selection: Selection = Selection()
    """Which candidate is taken."""
    finetuning: Finetuning | None = None
    """Supervised fine-tuning. Absent: none, and the result is marked as not for deployment."""
    preference: Preference | None = None
    """Preference optimization. Absent: none."""
    output: Output
    """Where the finished model goes."""
    credentials: Annotated[tuple[Credential, ...], Field(strict=False, max_length=16)] = ()
    """Secrets of this namespace. Default none."""
    resources: Resources
    """What pretraining gets."""
    stage_resources: StageResources = StageResources()
    """Resources of the other stages."""
    limits: Limits = Limits()
    """Upper bounds of the cost."""
    cleanup: Cleanup | None = None
    """What is removed after the end. Absent: everything is kept."""


class DomainAdaptation(Base):
    """A language model to be adapted to a domain."""

    api_version: Literal["dapt.dev/v1alpha1"] = API_VERSION
    """Version of the resource."""
    kind: Literal["DomainAdaptation"] = "DomainAdaptation"
    """Kind of the resource."""
    metadata: AdaptationMeta
    """Name, namespace, labels and annotations."""
    spec: DomainAdaptationSpec
    """What is asked for."""
    status: DomainAdaptationStatus | None = None
    """What is known about it; written by the operator alone."""
