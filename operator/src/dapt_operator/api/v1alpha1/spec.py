"""Defines `DomainAdaptation`, the resource that users write, and the rules between its blocks."""

from typing import Annotated, Literal

from pydantic import Field

from dapt_operator.api.v1alpha1.base import API_VERSION, LABEL_PATTERN, Base, Integer, Name, Rule
from dapt_operator.api.v1alpha1.metadata import AdaptationMeta
from dapt_operator.api.v1alpha1.spec_corpus import (
    Corpus,
    Model,
)
from dapt_operator.api.v1alpha1.spec_evaluation import (
    DEFAULT_AVERAGE,
    Evaluation,
    Gates,
    Selection,
)
from dapt_operator.api.v1alpha1.spec_operation import (
    Cleanup,
    Credential,
    Limits,
    Output,
    Resources,
    StageResources,
)
from dapt_operator.api.v1alpha1.spec_training import (
    Finetuning,
    Preference,
    Pretraining,
)


def _trains_adapters_throughout(spec: "DomainAdaptationSpec") -> bool:
    return spec.output.form != "adapter" or (
        spec.pretraining.method.lora is not None
        and (spec.finetuning is None or spec.finetuning.method.lora is not None)
        and (spec.preference is None or spec.preference.method.lora is not None)
    )


def _has_something_to_rank_by(spec: "DomainAdaptationSpec") -> bool:
    return spec.selection.weights.domain_perplexity > 0 or len(spec.evaluation.domain.tasks) > 0


class DomainAdaptationSpec(Base):
    """The desired adaptation."""

    RULES = (
        Rule(
            "preference",
            lambda spec: spec.preference is None or spec.finetuning is not None,
            "!has(self.preference) || has(self.finetuning)",
            "preference comes after finetuning, which is missing: add finetuning, or remove preference",
        ),
        Rule(
            "output.form",
            _trains_adapters_throughout,
            "self.output.form != 'adapter' || (has(self.pretraining.method.lora)"
            " && (!has(self.finetuning) || has(self.finetuning.method.lora))"
            " && (!has(self.preference) || has(self.preference.method.lora)))",
            "form: adapter needs method.lora in pretraining, finetuning and preference: use lora there, or write"
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
            _has_something_to_rank_by,
            "self.selection.weights.domainPerplexity > 0.0 || self.evaluation.domain.tasks.size() > 0",
            "domainPerplexity 0 ranks candidates by domain tasks alone, and evaluation.domain.tasks is empty:"
            " add a task, or give domainPerplexity a weight",
        ),
        Rule(
            "output.form",
            lambda spec: spec.output.form != "adapter" or not spec.model.source.endswith(".gguf"),
            "self.output.form != 'adapter' || !self.model.source.endsWith('.gguf')",
            "form: adapter needs a base model that PEFT can load, and a .gguf file is converted: name the model's"
            " safetensors in model.source, or write form: merged",
        ),
    )

    profile: Name | None = None
    """Name of the AdaptationProfile. Absent: the one that is marked as default."""
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
    """The text for training and measuring."""
    pretraining: Pretraining = Pretraining()
    """Continued pre-training."""
    evaluation: Evaluation = Evaluation()
    """What is measured besides the perplexities."""
    gates: Gates = Gates()
    """Limits that a candidate must keep to be published."""
    selection: Selection = Selection()
    """How one candidate is chosen."""
    finetuning: Finetuning | None = None
    """Supervised fine-tuning. Absent: none, and the result is marked as not for deployment."""
    preference: Preference | None = None
    """Preference optimization. Absent: none."""
    output: Output
    """Where the finished model goes."""
    credentials: Annotated[tuple[Credential, ...], Field(strict=False, max_length=16)] = ()
    """Secrets of this namespace. Default none."""
    resources: Resources
    """Nodes, accelerators, CPU and memory of pretraining."""
    stage_resources: StageResources = StageResources()
    """Resources of the other stages."""
    limits: Limits = Limits()
    """Upper bounds of the cost."""
    cleanup: Cleanup | None = None
    """What is removed after the adaptation has ended. Absent: everything is kept."""


class DomainAdaptation(Base):
    """The adaptation of a language model to a domain, as users write it; `StoredAdaptation` has its status too."""

    api_version: Literal["dapt.dev/v1alpha1"] = API_VERSION
    """Version of the resource."""
    kind: Literal["DomainAdaptation"] = "DomainAdaptation"
    """Kind of the resource."""
    metadata: AdaptationMeta
    """Name, namespace, labels and annotations."""
    spec: DomainAdaptationSpec
    """The desired adaptation."""


def has_scores(spec: DomainAdaptationSpec) -> bool:
    """Return whether anything besides the perplexities is measured."""
    domain, general, probes = spec.evaluation.domain, spec.evaluation.general, spec.evaluation.probes
    return bool(domain.tasks or general.tasks or probes.domain or probes.general)


def has_blends(spec: DomainAdaptationSpec) -> bool:
    """Return whether averages of checkpoints or interpolations with the base model are candidates."""
    return spec.selection.average_last > 1 or any(share < 1.0 for share in spec.selection.interpolate)
