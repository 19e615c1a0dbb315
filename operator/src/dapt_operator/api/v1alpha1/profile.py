"""`AdaptationProfile`: what the platform team offers. Images, hardware, storage, limits and price."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dapt_operator.api.v1alpha1.base import (
    API_VERSION,
    Base,
    FreeForm,
    Glob,
    Integer,
    Rule,
    count_set,
    exactly_one,
)
from dapt_operator.api.v1alpha1.metadata import ObjectMeta

DEFAULT_PROFILE_ANNOTATION = "dapt.dev/default"
"""A profile whose annotation of this name is "true" serves adaptations that name none."""

LOCAL_PROFILE_NAME = "local"

LongName = Annotated[str, Field(min_length=1, max_length=253)]
Port = Annotated[Integer, Field(ge=1, le=65_535)]


class Accelerator(Base):
    """What a node trains on."""

    kind: Literal["gpu", "cpu"] = "gpu"
    """gpu, or cpu: then perNode counts processes. Default gpu."""
    resource: LongName | None = None
    """Extended resource that a pod asks for. Absent: nvidia.com/gpu for kind gpu, none for kind cpu."""
    per_node: Annotated[Integer, Field(ge=1, le=64)] = 1
    """Accelerators a node (kind cpu: processes). Default 1."""
    memory_gib: Annotated[float, Field(gt=0, le=100_000)]
    """Memory of one accelerator (kind cpu: of one process), in GiB. The estimate fits the run into it."""
    peak_tflops: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Peak bf16 TFLOP/s of one accelerator without sparsity. Absent: the estimate gives tokens and memory
    but no hours."""
    price_per_hour: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    """Price of one accelerator for an hour, in your currency. Absent: no cost is shown."""


class Storage(Base):
    """The work volume of an adaptation: exactly one of claimTemplate and existingClaim."""

    RULES = (
        Rule(
            "",
            lambda storage: count_set(storage, "claim_template", "existing_claim") == 1,
            exactly_one("claimTemplate", "existingClaim"),
            "exactly one of claimTemplate and existingClaim must be given: keep one of them",
        ),
    )

    claim_template: FreeForm | None = None
    """Spec of the PersistentVolumeClaim that each adaptation gets."""
    existing_claim: LongName | None = None
    """A claim that is there already, in the namespace of the adaptation."""


class Ports(Base):
    """Ports of the pods; to be changed where pods use the host's network."""

    RULES = (
        Rule(
            "progress",
            lambda ports: ports.coordinator != ports.progress,
            "self.coordinator != self.progress",
            "progress and coordinator must be two different ports: both are served by the first pod",
        ),
    )

    coordinator: Port = 29500
    """Port of torch's rendezvous on the first pod. Default 29500: torch's own."""
    progress: Port = 9400
    """Port of /progress and /metrics. Default 9400."""


class ProfileLimits(Base):
    """What an adaptation with this profile may ask for."""

    nodes: Annotated[Integer, Field(ge=1, le=10_000)] | None = None
    """Most nodes of one adaptation. Absent: no limit."""
    gpu_hours: Annotated[float, Field(gt=0, le=100_000_000)] | None = None
    """Most accelerator-hours of one adaptation. Absent: no limit."""
    namespaces: Annotated[tuple[Glob, ...], Field(strict=False, max_length=64)] = ()
    """Namespaces that may use this profile, with wildcards. Default none given: all."""
    sources: Annotated[tuple[Glob, ...], Field(strict=False, max_length=64)] = ()
    """Sources that may be read, with wildcards. Default none given: all."""
    secret_names: Annotated[tuple[Glob, ...], Field(strict=False, max_length=64)] = ("dapt-*",)
    """Secrets that may be named in credentials, with wildcards. Default dapt-*: no Secret is mounted by
    accident."""
    priority_classes: Annotated[tuple[LongName, ...], Field(strict=False, max_length=64)] = ()
    """Values that priorityClassName may have. Default none."""


class ProfileEvaluation(Base):
    """How evaluations run beside pretraining."""

    concurrency: Annotated[Integer, Field(ge=1, le=50)] = 2
    """Evaluations of one adaptation at the same time, beside pretraining. Default 2."""


class ModelCache(Base):
    """A shared folder of base models, downloaded once."""

    existing_claim: LongName
    """A claim in the namespace of the adaptation."""


class Mlflow(Base):
    """MLflow."""

    uri: Glob
    """Address of the tracking server."""


class Wandb(Base):
    """Weights & Biases."""

    project: LongName
    """Name of the project."""


class Tensorboard(Base):
    """TensorBoard files on the work volume."""


class Tracking(Base):
    """Where curves are sent besides Prometheus."""

    mlflow: Mlflow | None = None
    """MLflow. Absent: not used."""
    wandb: Wandb | None = None
    """Weights & Biases. Absent: not used."""
    tensorboard: Tensorboard | None = None
    """TensorBoard. Absent: not used."""


class Retries(Base):
    """How often a stage is tried again, by cause. Bad configuration or data is never tried again; a
    disruption is free."""

    infrastructure: Annotated[Integer, Field(ge=0, le=100)] = 5
    """Lost nodes, network faults and the like. Default 5; never three times without a step gained."""
    out_of_memory: Annotated[Integer, Field(ge=0, le=10)] = 1
    """Out of memory, tried with half the micro-batch. Default 1."""
    hang: Annotated[Integer, Field(ge=0, le=100)] = 2
    """No heartbeat within the limit. Default 2."""


class AdaptationProfileSpec(Base):
    """What the platform offers."""

    trainer_image: Annotated[str, Field(min_length=1, max_length=512)]
    """Image of all stages."""
    launcher: Literal["IndexedJob", "JobSet"] = "IndexedJob"
    """How a gang of pods is started. Default IndexedJob: it needs nothing installed."""
    accelerator: Accelerator
    """What a node trains on."""
    storage: Storage
    """The work volume."""
    pod_template: FreeForm | None = None
    """Pod template that every pod starts from: node selector, tolerations, volumes, environment, service
    account. The operator owns command, ports, probes and the security context's defaults. Absent: empty."""
    ports: Ports = Ports()
    """Ports of the pods."""
    limits: ProfileLimits = ProfileLimits()
    """What an adaptation may ask for."""
    evaluation: ProfileEvaluation = ProfileEvaluation()
    """How evaluations run."""
    model_cache: ModelCache | None = None
    """Shared folder of base models. Absent: each adaptation downloads its own."""
    tracking: Tracking | None = None
    """Where curves are sent. Absent: nowhere."""
    retries: Retries = Retries()
    """How often a stage is tried again."""
    startup_timeout_seconds: Annotated[Integer, Field(ge=1, le=86_400)] = 900
    """Seconds from a pod's start to its first heartbeat with a step, before it counts as hung. Default 900:
    loading and compiling a large model takes minutes."""
    pending_timeout_seconds: Annotated[Integer, Field(ge=1, le=31_536_000)] | None = None
    """Seconds that pods may wait for a node before a person is called. Absent: for ever, since autoscalers
    and queues exist."""
    termination_grace_period_seconds: Annotated[Integer, Field(ge=1, le=86_400)] | None = None
    """Seconds between SIGTERM and SIGKILL. Absent: from the estimated time of a save."""


class AdaptationProfile(Base):
    """A kind of hardware with its image, storage, limits and price."""

    api_version: Literal["dapt.dev/v1alpha1"] = API_VERSION
    """Version of the resource."""
    kind: Literal["AdaptationProfile"] = "AdaptationProfile"
    """Kind of the resource."""
    metadata: ObjectMeta
    """Name, labels and annotations."""
    spec: AdaptationProfileSpec
    """What the platform offers."""

    @property
    def is_default(self) -> bool:
        """Whether adaptations that name no profile get this one."""
        return self.metadata.annotations.get(DEFAULT_PROFILE_ANNOTATION) == "true"


def local_profile(accelerators: int, memory_gib: float, kind: Literal["cpu", "gpu"]) -> AdaptationProfile:
    """The built-in profile `local` of `dapt run`.

    accelerators: GPUs, or for kind cpu processes, of this machine. memory_gib: memory of one of them, in GiB.
    """
    return AdaptationProfile(
        metadata=ObjectMeta(name=LOCAL_PROFILE_NAME),
        spec=AdaptationProfileSpec(
            trainer_image="local",
            accelerator=Accelerator(
                kind=kind,
                resource="nvidia.com/gpu" if kind == "gpu" else None,
                per_node=accelerators,
                memory_gib=memory_gib,
            ),
            evaluation=ProfileEvaluation(concurrency=1),
            storage=Storage(
                claim_template={
                    "accessModes": ["ReadWriteMany"],
                    "resources": {"requests": {"storage": "100Gi"}},
                }
            ),
        ),
    )
