"""Defines where the result goes and what a run may use: output, credentials, resources, limits and cleanup."""

import re
from typing import Annotated, Literal

from pydantic import Field

from dapt_operator.api.names import SIGNING_SECRET_PATTERN
from dapt_operator.api.v1alpha1.base import (
    LANGUAGE_PATTERN,
    LICENSE_PATTERN,
    Base,
    Cpus,
    Integer,
    Quantity,
    Rule,
    SecretName,
)
from dapt_operator.api.v1alpha1.texts.addresses import DestinationUri

Language = Annotated[str, Field(pattern=LANGUAGE_PATTERN, max_length=12)]


class Output(Base):
    """Where the finished model goes."""

    destination: DestinationUri
    """s3://, gs://, pvc://claim/folder, hf://org/name or file:// (local runs). Refused when it is not empty,
    unless its manifest carries the digest of the same run."""
    form: Literal["merged", "adapter"] = "merged"
    """merged: one model; adapter: one PEFT adapter on the base model, also of a blend (LoRA in every stage).
    Default merged: it loads everywhere."""
    model_card: bool = True
    """Write a model card made of the run's facts. Default true."""
    license: Annotated[str, Field(pattern=LICENSE_PATTERN, max_length=64)] | None = None
    """Licence of the published model, for its card: an id of the hub or of SPDX, such as apache-2.0 or llama3.1.
    Absent: the base model's own, where its card names one."""
    language: Annotated[tuple[Language, ...], Field(strict=False, min_length=1, max_length=16)] | None = None
    """Languages of the published model, for its card, as codes of ISO 639 such as [en, de], or multilingual.
    Absent: the base model's own, where its card names them."""


class Credential(Base):
    """One Secret of this namespace. Its entries of the names in docs/security.md, such as HF_TOKEN or
    AWS_ACCESS_KEY_ID, become environment variables; all others are ignored."""

    RULES = (
        Rule(
            "secretName",
            lambda credential: not re.match(SIGNING_SECRET_PATTERN, credential.secret_name),
            f"!self.secretName.matches('{SIGNING_SECRET_PATTERN}')",
            "a Secret of this name holds the key that signs checkpoints, which is no credential: name the Secret with"
            " your token or key",
        ),
    )

    secret_name: SecretName
    """Name of the Secret; it must match the profile's limits.secretNames."""
    use: Literal["read", "write"]
    """read: only the stages that read sources see it (prepare, tuning_data); write: only those that write the
    destination (destination, publish)."""


class Resources(Base):
    """Resources of pretraining, within the profile's limits."""

    nodes: Annotated[Integer, Field(ge=1, le=10_000)] = 1
    """Nodes, one pod on each. Default 1: more nodes need a volume that many nodes can mount."""
    gpus_per_node: Annotated[Integer, Field(ge=1, le=64)] | None = None
    """Accelerators per node (with a profile of kind cpu: processes). Absent: the profile's
    accelerator.perNode."""
    cpu: Cpus | None = None
    """CPUs per pod. Absent: the value of the profile's pod template."""
    memory: Quantity | None = None
    """Memory per pod. Absent: the value of the profile's pod template."""


class CpuResources(Base):
    """Resources of a stage without accelerators. Memory that nothing sets is limited to 32Gi in prepare and 16Gi in
    publish."""

    cpu: Cpus | None = None
    """CPUs of the pod. Absent: the value of `resources`."""
    memory: Quantity | None = None
    """Memory of the pod. Absent: the value of `resources`."""


class PrepareResources(CpuResources):
    """Resources of prepare, which may read the corpus in several pods. Each of them has these resources."""

    nodes: Annotated[Integer, Field(ge=1, le=1000)] | None = None
    """Pods that read and tokenize the corpus together; the data is the same for any number. They meet at the work
    volume, which many nodes must be able to mount. Absent: 1."""


class GpuResources(CpuResources):
    """Resources of a stage with accelerators."""

    nodes: Annotated[Integer, Field(ge=1, le=10_000)] | None = None
    """Nodes, one pod on each. Absent: 1 where gpus is given. Else training stages have as many as pretraining, as long
    as their data fills a batch over all of them, and measuring stages as few as one copy of the model needs."""
    gpus: Annotated[Integer, Field(ge=1, le=64)] | None = None
    """Accelerators on each node (with a profile of kind cpu: processes). Absent: those of pretraining for training
    stages, and for measuring stages as few as one copy of the model needs by the estimate, often 1."""


class MeasuringResources(GpuResources):
    """Resources of a stage that measures models. What is left of its accelerators holds further copies."""

    RULES = (
        Rule(
            "gpusPerModel",
            lambda own: own.divides_gpus,
            "!has(self.gpusPerModel) || !has(self.gpus) || (self.gpus * (has(self.nodes) ? self.nodes : 1))"
            " % self.gpusPerModel == 0",
            "nodes x gpus must be a multiple of gpusPerModel: each copy of the model takes that many accelerators",
        ),
    )

    gpus_per_model: Annotated[Integer, Field(ge=1, le=1024)] | None = None
    """Accelerators that share one copy of the model: by tensor parallelism on one node where it divides the attention
    heads, else by ZeRO 3. Absent: the smallest number that the model fits in by the estimate."""

    @property
    def divides_gpus(self) -> bool:
        """Whether the accelerators that are given hold whole copies of the model."""
        return (
            not self.gpus_per_model
            or not self.gpus
            or (self.nodes or 1) * self.gpus % self.gpus_per_model == 0
        )


class StageResources(Base):
    """Resources of the other stages, by stage. prepare and publish take no GPU."""

    prepare: PrepareResources | None = None
    """Resources for reading, deduplicating, tokenizing and packing."""
    baseline: MeasuringResources | None = None
    """Resources for measuring the base model."""
    evaluate: MeasuringResources | None = None
    """Resources for measuring a candidate, and for blend."""
    finetune: GpuResources | None = None
    """Resources for supervised fine-tuning."""
    align: GpuResources | None = None
    """Resources for preference optimization."""
    verify: MeasuringResources | None = None
    """Resources for measuring the finished model."""
    publish: CpuResources | None = None
    """Resources for writing the result to its destination."""


class Limits(Base):
    """Upper bounds of what the adaptation may cost."""

    gpu_hours: Annotated[float, Field(gt=0, le=100_000_000)] | None = None
    """Accelerator-hours over all stages, attempts and evaluations. Absent: only the profile's limit applies."""


class Cleanup(Base):
    """What is removed of the adaptation's objects, and when; the resource itself never is."""

    finished_runs: Literal["Delete", "Retain"] = "Delete"
    """Whether the Job and the ConfigMap of a run are removed once the status has its result. Default Delete: all but
    the last run that failed. Retain: they stay until afterSeconds after the end, for whoever reads the logs of their
    pods. The files of a local run stay in any case."""
    after_seconds: Annotated[Integer, Field(ge=0, le=315_360_000)] | None = None
    """Seconds after the end until the Jobs and ConfigMaps that are left and the Service are removed. Absent: they are
    kept."""
    volume: Literal["Retain", "Delete"] = "Retain"
    """Whether the work volume is removed with them. Default Retain: checkpoints are expensive."""
