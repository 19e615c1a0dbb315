"""Defines `AdaptationProfile`: what the platform team offers as image, hardware, storage, limits and price."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from dapt_operator.api.quantity import parse_quantity
from dapt_operator.api.v1alpha1.base import (
    API_VERSION,
    IMAGE_PATTERN,
    MAX_IMAGE,
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
    """The accelerators of a node."""

    kind: Literal["gpu", "cpu"] = "gpu"
    """Kind of accelerator: gpu, or cpu, where perNode counts processes. Default gpu."""
    resource: LongName | None = None
    """Extended resource that a pod requests. Absent: nvidia.com/gpu for kind gpu, none for kind cpu."""
    per_node: Annotated[Integer, Field(ge=1, le=64)] = 1
    """Accelerators per node (kind cpu: processes). Default 1."""
    memory_gib: Annotated[float, Field(gt=0, le=100_000)]
    """Memory of one accelerator (kind cpu: of one process), in GiB. The estimate sizes the run to fit into it."""
    peak_tflops: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Peak bf16 TFLOP/s of one accelerator without sparsity. Absent: the estimate gives tokens and memory
    but no hours."""
    price_per_hour: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    """Price of one accelerator per hour, in your currency. Absent: no cost is shown."""


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
    """Name of an existing PersistentVolumeClaim in the namespace of the adaptation."""

    @property
    def access_modes(self) -> tuple[str, ...]:
        """Access modes of the claim template; empty for an existing claim, of which nothing is known."""
        template: Mapping[str, Any] = self.claim_template or {}
        return tuple(str(mode) for mode in template.get("accessModes") or ())

    @property
    def requested_bytes(self) -> float | None:
        """Size that the claim template asks for; None where it is not known, as of an existing claim."""
        template: Mapping[str, Any] = self.claim_template or {}
        resources = template.get("resources")
        requests = resources.get("requests") if isinstance(resources, Mapping) else None
        storage = requests.get("storage") if isinstance(requests, Mapping) else None
        try:
            return None if storage is None else parse_quantity(str(storage))
        except ValueError:
            return None  # the cluster refuses the claim, in words of its own

    @property
    def is_shared(self) -> bool:
        """Whether pods on several nodes can mount the work volume; an existing claim is taken to be shared."""
        return not self.access_modes or "ReadWriteMany" in self.access_modes


class Ports(Base):
    """Ports of the pods. Change them where pods use the host's network."""

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
    """What an adaptation with this profile may request."""

    nodes: Annotated[Integer, Field(ge=1, le=10_000)] | None = None
    """Largest number of nodes of one adaptation. Absent: no limit."""
    gpu_hours: Annotated[float, Field(gt=0, le=100_000_000)] | None = None
    """Largest number of accelerator-hours of one adaptation. Absent: no limit."""
    namespaces: Annotated[tuple[Glob, ...], Field(strict=False, max_length=64)] = ()
    """Namespaces that may use this profile, with wildcards. Default empty: all may."""
    sources: Annotated[tuple[Glob, ...], Field(strict=False, max_length=64)] = ()
    """Sources that may be read, with wildcards. Where there are any, harness://TASK allows a task of
    lm-evaluation-harness with the data sets that it names; hf://datasets/* allows all tasks. Default empty: all may."""
    destinations: Annotated[tuple[Glob, ...], Field(strict=False, max_length=64)] = ()
    """Destinations that may be written, with wildcards. Default empty: all may."""
    secret_names: Annotated[tuple[Glob, ...], Field(strict=False, max_length=64)] = ("dapt-*",)
    """Secrets that may be named in credentials, with wildcards. Default dapt-*: no Secret is mounted by
    accident."""
    priority_classes: Annotated[tuple[LongName, ...], Field(strict=False, max_length=64)] = ()
    """Values that priorityClassName may have. Default none."""


class ProfileEvaluation(Base):
    """How evaluations run in parallel with pretraining."""

    concurrency: Annotated[Integer, Field(ge=1, le=50)] = 2
    """Evaluations of one adaptation that run at the same time, in parallel with pretraining. Default 2."""


class ModelCache(Base):
    """A shared folder of base models, downloaded once."""

    existing_claim: LongName
    """Name of a PersistentVolumeClaim in the namespace of the adaptation."""


class Mlflow(Base):
    """An MLflow tracking server."""

    uri: Glob
    """Address of the tracking server."""


class Wandb(Base):
    """A Weights & Biases project."""

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
    """How often a failed stage runs again, by cause. Bad configuration or data is never retried; a stop that
    spec.suspend requests is free."""

    infrastructure: Annotated[Integer, Field(ge=0, le=100)] = 5
    """Retries after lost nodes, network faults and the like. Default 5; three failures in a row without a new
    optimizer step end them earlier."""
    out_of_memory: Annotated[Integer, Field(ge=0, le=10)] = 1
    """Retries after running out of memory, with half the micro-batch. Default 1."""
    hang: Annotated[Integer, Field(ge=0, le=100)] = 2
    """Retries after a hang, that is no heartbeat within the limit. Default 2."""
    disruption: Annotated[Integer, Field(ge=0, le=1000)] = 10
    """Restarts after evictions, preemptions, drained nodes and deleted Jobs that may follow each other without a new
    optimizer step. Default 10. The first comes at once, the next ones after 10 s, 20 s and so on up to 5 minutes; a new
    step begins the count again."""


class NodeLoss(Base):
    """How soon a run leaves a node that has failed. Kubernetes takes 40 to 50 s before that to notice it."""

    unreachable_seconds: Annotated[Integer, Field(ge=0, le=3600)] = 5
    """Seconds that pods stay on a node that no longer answers, before they are evicted and the run starts again
    elsewhere. Default 5."""
    not_ready_seconds: Annotated[Integer, Field(ge=0, le=3600)] = 30
    """Seconds that pods stay on a node that answers and is not ready. Default 30: it may recover, and its processes
    may go on until then."""


class ProfilePreflight(Base):
    """What stages with a model measure before they load it, and what they accept. A value outside a bound fails the
    run as Infrastructure, naming the node; bounds that are absent are measured and not judged."""

    enabled: bool = True
    """Whether anything is measured. Default true: less than a minute on GPUs, less than a second on CPU. Missing GPUs
    fail a run in any case."""
    min_all_reduce_gib_per_second: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Least bus bandwidth of an all-reduce over all ranks, in GiB/s, as nccl-tests reports it. Absent: any."""
    min_point_to_point_gib_per_second: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Least bandwidth of every link between two nodes (on one node: two ranks), in GiB/s, while all are in use.
    Absent: any."""
    min_shared_memory_mib: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Least size of /dev/shm, in MiB. Absent: any; below 64 MiB a GPU it is a warning."""
    min_write_mib_per_second: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Least speed at which each node writes to the work volume, in MiB/s. Absent: any."""
    min_read_mib_per_second: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Least speed at which each node reads from the work volume, in MiB/s. Absent: any."""
    max_clock_difference_seconds: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Largest difference between the clocks of two nodes, in seconds. Absent: any; above 5 it is a warning."""


class AdaptationProfileSpec(Base):
    """What the platform offers to adaptations."""

    trainer_image: Annotated[str, Field(pattern=IMAGE_PATTERN, min_length=1, max_length=MAX_IMAGE)]
    """Image that runs all stages."""
    launcher: Literal["IndexedJob", "JobSet"] = "IndexedJob"
    """Kind of object that starts the pods of a run. Default IndexedJob: it needs nothing else installed."""
    accelerator: Accelerator
    """The accelerators of a node."""
    storage: Storage
    """The work volume of each adaptation."""
    pod_template: FreeForm | None = None
    """Pod template that every pod starts from: node selector, tolerations, volumes, environment, service
    account. The operator owns command, ports, probes and the security context's defaults. Absent: empty."""
    platform_assigns_user_ids: bool = False
    """Whether the platform gives pods their user and group ids, as OpenShift does. Default false: pods run as user
    and group 1000. True: none are set."""
    ports: Ports = Ports()
    """Ports of the pods."""
    limits: ProfileLimits = ProfileLimits()
    """What an adaptation may request."""
    evaluation: ProfileEvaluation = ProfileEvaluation()
    """How evaluations run in parallel with pretraining."""
    model_cache: ModelCache | None = None
    """Shared folder of base models. Absent: each adaptation downloads its own."""
    tracking: Tracking | None = None
    """Where curves are sent. Absent: nowhere."""
    retries: Retries = Retries()
    """How often a failed stage runs again, by cause."""
    node_loss: NodeLoss = NodeLoss()
    """How soon a run leaves a node that has failed."""
    preflight: ProfilePreflight | None = None
    """What stages measure before they load a model, and what they accept. Absent: everything is measured, and only a
    missing GPU or a dead link fails a run."""
    startup_timeout_seconds: Annotated[Integer, Field(ge=1, le=86_400)] = 900
    """Seconds from a pod's start to its first heartbeat with a step, before it counts as hung. Default 900:
    loading and compiling a large model takes minutes."""
    volume_bytes_per_second: Annotated[Integer, Field(ge=1_000_000, le=10**12)] | None = None
    """Bytes a second that one node reads from, or writes to, the work volume at least. How long a model may take to be
    read, hashed or converted before it counts as hung, and the grace period of a stage that trains, follow from it and
    from the model's size. Absent: 250,000,000, about a quarter of what a network of 10 Gbit/s carries."""
    pending_timeout_seconds: Annotated[Integer, Field(ge=1, le=31_536_000)] | None = None
    """Seconds that pods may wait for a node before the adaptation stalls with PendingTimeout. Absent: no limit,
    since autoscalers and queues may take long."""
    termination_grace_period_seconds: Annotated[Integer, Field(ge=1, le=86_400)] | None = None
    """Seconds between SIGTERM and SIGKILL. Absent: 30, and for a stage that trains one optimizer step and one save by
    the estimate, with a margin, at most 1,800."""

    @property
    def max_parallel_evaluations(self) -> int:
        """Evaluations of one adaptation at the same time: one where a single node can mount the work volume."""
        return self.evaluation.concurrency if self.storage.is_shared else 1


class AdaptationProfile(Base):
    """A kind of hardware with its image, storage, limits and price."""

    api_version: Literal["dapt.dev/v1alpha1"] = API_VERSION
    """Version of the resource."""
    kind: Literal["AdaptationProfile"] = "AdaptationProfile"
    """Kind of the resource."""
    metadata: ObjectMeta
    """Name, labels and annotations."""
    spec: AdaptationProfileSpec
    """What the platform offers to adaptations."""

    @property
    def is_default(self) -> bool:
        """Whether adaptations that name no profile get this one."""
        return self.metadata.annotations.get(DEFAULT_PROFILE_ANNOTATION) == "true"


def local_profile(accelerators: int, memory_gib: float, kind: Literal["cpu", "gpu"]) -> AdaptationProfile:
    """Return the built-in profile `local` of `dapt run`.

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
            # Without a size: the volume is a folder, and prepare looks at the free space of its disk.
            storage=Storage(claim_template={"accessModes": ["ReadWriteMany"]}),
        ),
    )
