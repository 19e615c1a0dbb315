"""Tests what a pending run waits for, from the messages of kubelet, scheduler and Kueue as they write them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dapt_operator.launchers.labels import QUEUE_LABEL
from dapt_operator.launchers.observe.pod_waiting import (
    event_sentence,
    is_unexplained,
    refusal_message,
    refusal_of,
)
from dapt_operator.launchers.observe.quota import quota_of
from dapt_operator.stage_run import Hindrance, Quota, RunPhase
from support.gang_objects import RUN, job, job_set, pod, state_of
from support.launch_builders import stage_run


def waiting(reason: str, message: str) -> dict[str, Any]:
    found = pod(0, "Pending")
    found["status"] = {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "containerStatuses": [
            {
                "name": "trainer",
                "image": "registry.example/dapt-trainer:1.4.0",
                "state": {"waiting": {"reason": reason, "message": message}},
            }
        ],
    }
    return found


def unschedulable(message: str) -> dict[str, Any]:
    found = pod(0, "Pending")
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    found["status"] = {"phase": "Pending", "conditions": [condition]}
    return found


@pytest.mark.parametrize(
    ("found", "hindrance"),
    [
        (
            waiting("CreateContainerConfigError", 'secret "dapt-s3" not found'),
            Hindrance(
                "SecretNotFound",
                "there is no Secret dapt-s3 in this namespace: create it; the pod waits for it",
            ),
        ),
        (
            waiting("CreateContainerConfigError", "couldn't find key HF_TOKEN in Secret health/dapt-hub"),
            Hindrance("SecretNotFound", "Secret dapt-hub has no key HF_TOKEN: add it; the pod waits for it"),
        ),
        (
            unschedulable(
                'persistentvolumeclaim "texts" not found. not found, preemption: 0/3 nodes are available: 3'
                " Preemption is not helpful for scheduling."
            ),
            Hindrance(
                "ClaimNotFound",
                "there is no PersistentVolumeClaim texts in this namespace: create it, or name another",
            ),
        ),
        (
            waiting(
                "ImagePullBackOff", 'Back-off pulling image "registry.example/dapt-trainer:1.4.0": not found'
            ),
            Hindrance(
                "ImageNotPulled",
                "image registry.example/dapt-trainer:1.4.0 cannot be pulled (ImagePullBackOff: Back-off pulling image"
                ' "registry.example/dapt-trainer:1.4.0": not found): correct the profile\'s trainerImage, or give its'
                " service account access to the registry",
            ),
        ),
    ],
)
def test_pending_pod_that_needs_user_action_reports_a_hindrance(
    found: dict[str, Any], hindrance: Hindrance
) -> None:
    state = state_of(found)
    assert (state.phase, state.hindrance) == (RunPhase.PENDING, hindrance)


@pytest.mark.parametrize(
    "reason", ["ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"]
)
def test_every_reason_of_an_image_is_known(reason: str) -> None:
    hindrance = state_of(waiting(reason, "x")).hindrance
    assert hindrance is not None
    assert hindrance.reason == "ImageNotPulled"


@pytest.mark.parametrize(
    "found",
    [
        unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
        waiting("ContainerCreating", ""),
        waiting("CreateContainerError", "context deadline exceeded"),
        waiting("CreateContainerConfigError", "failed to sync configmap cache"),
    ],
)
def test_pending_pod_that_may_recover_reports_no_hindrance(found: dict[str, Any]) -> None:
    assert state_of(found).hindrance is None


TAINT = "node(s) had untolerated taint {node.kubernetes.io/not-ready: }"


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (
            "0/7 nodes are available: 3 Insufficient nvidia.com/gpu, 4 Insufficient cpu. preemption: 0/7 nodes are"
            " available: 3 No preemption victims found for incoming pod, 4 Preemption is not helpful for scheduling.",
            "no nodes are available: Insufficient cpu, Insufficient nvidia.com/gpu",
        ),
        (
            "0/12 nodes are available: 10 Insufficient cpu, 2 Insufficient nvidia.com/gpu.",
            "no nodes are available: Insufficient cpu, Insufficient nvidia.com/gpu",
        ),
        (
            f"0/8 nodes are available: 1 {TAINT}, 7 Insufficient cpu. no new claims to deallocate, preemption: 0/8"
            " nodes are available: 8 Preemption is not helpful for scheduling.",
            f"no nodes are available: Insufficient cpu, {TAINT}",
        ),
        (
            "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
            "no nodes are available: pod has unbound immediate PersistentVolumeClaims",
        ),
        ("0/3 nodes are available", "0/3 nodes are available"),
        ("skip schedule deleting pod: health/a-0", "skip schedule deleting pod: health/a-0"),
    ],
)
def test_message_of_the_scheduler_is_its_reasons_without_numbers_of_nodes(
    message: str, sentence: str
) -> None:
    assert state_of(unschedulable(message)).message == f"Unschedulable: {sentence}"


def test_image_that_is_pulled_again_and_again_is_one_sentence() -> None:
    error = 'failed to resolve reference "registry.example/dapt-trainer:1.4.0": not found'
    failed = state_of(waiting("ErrImagePull", error))
    between = state_of(
        waiting(
            "ImagePullBackOff",
            f'Back-off pulling image "registry.example/dapt-trainer:1.4.0": ErrImagePull: {error}',
        )
    )
    assert failed.hindrance == between.hindrance
    assert failed.message == between.message


RECORDED = YAML(typ="safe").load(Path(__file__).with_name("kueue_sentences.yaml").read_text())
QUEUED = {QUEUE_LABEL: "team"}


def workload(message: str, status: str = "False", **spec: Any) -> dict[str, Any]:
    reason = "Pending" if status == "False" else "QuotaReserved"
    condition = {"type": "QuotaReserved", "status": status, "reason": reason, "message": message}
    return {"metadata": {"name": "job-x"}, "spec": spec, "status": {"conditions": [condition]}}


# The sentences of pkg/scheduler and pkg/controller/core of sigs.k8s.io/kueue v0.14.8.
ASSIGN = "couldn't assign flavors to pod set n: "
UNUSED = "insufficient unused quota for {} in flavor {}, {} more needed"
MAXIMUM = (
    "insufficient quota for {} in flavor {}, previously considered podsets requests (0) + current podset request (16)"
    " > maximum capacity (8)"
)


@pytest.mark.parametrize(
    ("quota", "message"),
    [
        (Quota.WAITING, ASSIGN + UNUSED.format("cpu", "default", "2")),
        (
            Quota.WAITING,
            ASSIGN + UNUSED.format("cpu", "default", "2") + ". Pending the preemption of 1 workload(s)",
        ),
        (Quota.NEVER, ASSIGN + MAXIMUM.format("nvidia.com/gpu", "h100")),
        (
            Quota.NEVER,
            ASSIGN + MAXIMUM.format("cpu", "default") + ", " + UNUSED.format("memory", "default", "1Gi"),
        ),
        (
            Quota.WAITING,
            ASSIGN + MAXIMUM.format("cpu", "small") + ", " + UNUSED.format("cpu", "large", "2"),
        ),
        (
            Quota.NEVER,
            ASSIGN + MAXIMUM.format("cpu", "small") + ", " + MAXIMUM.format("cpu", "large"),
        ),
        (Quota.NEVER, ASSIGN + "resource nvidia.com/gpu unavailable in ClusterQueue"),
        (Quota.NEVER, ASSIGN + "untolerated taint {gpu true NoSchedule <nil>} in flavor h100"),
        (
            Quota.WAITING,
            ASSIGN
            + UNUSED.format("cpu", "default", "2")
            + ", untolerated taint {gpu true NoSchedule <nil>} in flavor h100",
        ),
        (Quota.NEVER, ASSIGN + "flavor h100 doesn't match node affinity"),
        (Quota.NEVER, "LocalQueue team doesn't exist"),
        (Quota.NEVER, "ClusterQueue research doesn't exist"),
        (Quota.NEVER, "ClusterQueue research not found"),
        (Quota.NEVER, "Workload namespace doesn't match ClusterQueue selector"),
        (
            Quota.NEVER,
            "resources validation failed: podSets[0].template.spec.containers[0]: Invalid value:"
            " requests must not exceed its limits",
        ),
        (Quota.WAITING, "LocalQueue team is inactive"),
        (Quota.WAITING, "ClusterQueue research is inactive"),
        (Quota.WAITING, "LocalQueue team is stopped"),
        (Quota.WAITING, "Workload no longer fits after processing another workload"),
        (Quota.WAITING, "The workload has failed admission checks"),
        (Quota.WAITING, "words that nobody knows yet"),
        (Quota.WAITING, ""),
    ],
)
def test_quota_waiting_and_never_are_distinguished_by_the_workload_message(
    quota: Quota, message: str
) -> None:
    assert quota_of(QUEUED, suspended=True, workload=workload(message)) == (
        quota,
        message.replace(", 2 more needed", "").replace(", 1Gi more needed", ""),
    )


def test_amount_that_a_queue_lacks_is_no_part_of_the_message() -> None:
    messages = {
        quota_of(QUEUED, suspended=True, workload=workload(ASSIGN + UNUSED.format("cpu", "default", amount)))
        for amount in ("2", "500m", "1.5", "16Gi")
    }
    assert messages == {(Quota.WAITING, ASSIGN + "insufficient unused quota for cpu in flavor default")}


@pytest.mark.parametrize("recorded", RECORDED, ids=[item["name"] for item in RECORDED])
def test_recorded_kueue_messages_are_classified(recorded: dict[str, Any]) -> None:
    """`kueue_sentences.yaml` is a recording; the sentences above add what its source says besides."""
    found = workload(recorded["message"], recorded["status"], active=recorded["active"])
    quota, _ = quota_of(QUEUED, suspended=True, workload=found)
    assert quota is {"wait": Quota.WAITING, "never": Quota.NEVER}[recorded["verdict"]]


def test_reserved_quota_may_still_wait_for_checks() -> None:
    found = workload("Quota reserved in ClusterQueue research", "True")
    assert quota_of(QUEUED, suspended=True, workload=found) == (
        Quota.WAITING,
        "quota is reserved, the queue's admission checks are not done yet",
    )


def test_deactivated_workload_needs_user_action() -> None:
    assert quota_of(QUEUED, suspended=True, workload=workload("x", active=False)) == (
        Quota.NEVER,
        "Workload job-x was deactivated: set its spec.active to true again",
    )


def test_queue_without_a_workload_reports_that_kueue_may_be_missing() -> None:
    assert quota_of(QUEUED, suspended=True, workload=None) == (
        Quota.WAITING,
        "the queue has no Workload for it yet; install Kueue if the cluster does not have it",
    )


def test_a_queue_of_strict_order_that_is_silent_is_explained() -> None:
    assert quota_of(QUEUED, suspended=True, workload={"metadata": {"name": "job-x"}, "spec": {}}) == (
        Quota.WAITING,
        "the queue has not considered it yet: a queue of strict order admits the workloads before it first",
    )


def test_a_very_long_sentence_takes_no_time_and_is_cut() -> None:
    quota, message = quota_of(
        QUEUED, suspended=True, workload=workload("insufficient quota for a in flavor b," * 9999)
    )
    assert (quota, message[-9:]) == (Quota.WAITING, "flavor...")
    assert len(message) <= 1000


@pytest.mark.parametrize("make", [job, job_set], ids=["Job", "JobSet"])
def test_a_queued_gang_is_made_suspended_with_its_queues_label_and_waits(make: Any) -> None:
    run = stage_run(nodes=2, queue="team")
    found = make(run)
    assert found["spec"]["suspend"] is True
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    state = state_of(of=found, workloads={run.name: workload(ASSIGN + UNUSED.format("cpu", "default", "2"))})
    assert (state.phase, state.quota) == (RunPhase.PENDING, Quota.WAITING)
    sentence = ASSIGN + "insufficient unused quota for cpu in flavor default"
    assert state.quota_message == state.message == sentence


@pytest.mark.parametrize("make", [job, job_set], ids=["Job", "JobSet"])
def test_an_admitted_gang_has_its_quota(make: Any) -> None:
    run = stage_run(nodes=2, queue="team")
    assert state_of(of=make(run, suspend=False)).quota is Quota.GRANTED
    running = state_of(pod(0, "Running", run), of=make(run, suspend=False))
    assert (running.phase, running.quota) == (RunPhase.RUNNING, Quota.GRANTED)


@pytest.mark.parametrize("make", [job, job_set], ids=["Job", "JobSet"])
def test_without_a_queue_nothing_is_suspended(make: Any) -> None:
    found = make(RUN)
    assert "suspend" not in found["spec"]
    assert "kueue.x-k8s.io/queue-name" not in found["metadata"]["labels"]
    assert state_of(of=found).quota is None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            'Error creating: pods "a-prepare-01234567-0-x7k2p" is forbidden: exceeded quota: team, requested: pods=1,'
            " used: pods=0, limited: pods=0",
            "PodsRefused: its pods are forbidden: exceeded quota: team, requested: pods=1, limited: pods=0",
        ),
        (
            'Error creating: pods "a-0-x" is forbidden: no PriorityClass with name research was found',
            Hindrance(
                "Refused",
                "its pods are forbidden: no PriorityClass with name research was found; allow its pods, then the run"
                " starts without further action",
            ),
        ),
        (
            'Error creating: Pod "a-0-x7k2p" is invalid: spec.priority: Invalid value',
            Hindrance(
                "Refused",
                "its pods are invalid: spec.priority: Invalid value; allow its pods, then the run starts without"
                " further action",
            ),
        ),
        (
            'Error creating: Internal error occurred: failed calling webhook "proxy.example": connection refused',
            'PodsRefused: Internal error occurred: failed calling webhook "proxy.example": connection refused',
        ),
    ],
)
def test_full_quota_is_waited_out_and_other_refusals_need_user_action(said: str, told: object) -> None:
    assert refusal_of(said) == told


def test_refusal_of_a_limit_range_is_the_same_sentence_each_time() -> None:
    """The limits come in another order, and the pod has another name, in each attempt of the Job controller."""
    memory = "maximum memory usage per Container is 1Gi, but limit is 2Gi"
    ratio = "cpu max limit to request ratio per Container is 2, but provided ratio is 4.000000"
    refusals = {
        refusal_of(f'Error creating: pods "a-0-{name}" is forbidden: [{first}, {second}]')
        for name, first, second in (("x7k2p", memory, ratio), ("bq9zz", ratio, memory))
    }
    assert [refusal.message for refusal in refusals if isinstance(refusal, Hindrance)] == [
        f"its pods are forbidden: [{ratio}, {memory}]; allow its pods, then the run starts without further action"
    ]


DENIED = 'admission webhook "policies.example" denied the request: '
EXCEEDED = "exceeded quota: team, requested: requests.nvidia.com/gpu=8"
EXPIRED = "Internal error occurred: failed calling webhook: x509: certificate has expired: current time "


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (
            f"{DENIED}Pod/health/a-prepare-d082a804-0-x7k2p is blocked",
            f"Error creating: {DENIED}Pod/health/a-prepare-d082a804-0-bq9zz is blocked",
        ),
        (
            f"{DENIED}pod a-prepare-d082a804-n-0-12-x7k2p is blocked",
            f"(combined from similar events): Error creating: {DENIED}pod a-prepare-d082a804-n-0-12-bq9zz is blocked",
        ),
        (
            f"{EXPIRED}2026-01-31T12:00:00Z is after 2025",
            f"Error creating: {EXPIRED}2026-01-31T12:00:09Z is after 2025",
        ),
        (
            "Internal error occurred: read tcp 10.0.0.1:39482->10.1.0.2:443: i/o timeout",
            "Error creating: Internal error occurred: read tcp 10.0.0.1:40112->10.1.0.2:443: i/o timeout",
        ),
        (
            f"{EXCEEDED}, used: limits.cpu=60,requests.nvidia.com/gpu=4, limited: requests.nvidia.com/gpu=8",
            f"Error creating: {EXCEEDED}, used: limits.cpu=7500m,requests.nvidia.com/gpu=6, limited:"
            " requests.nvidia.com/gpu=8",
        ),
    ],
    ids=["a policy", "similar Events", "an expired certificate", "a connection", "a quota"],
)
def test_refusal_that_is_repeated_is_one_sentence(first: str, second: str) -> None:
    assert refusal_of(f"Error creating: {first}") == refusal_of(second)


@pytest.mark.parametrize(
    "message",
    [
        'Operation cannot be fulfilled on resourcequotas "gpus": the object has been modified',
        "Timeout: request did not complete within requested timeout",
        'Post "https://10.0.0.1:443/api": net/http: TLS handshake timeout',
    ],
)
def test_refusal_that_passes_by_itself_needs_no_user_action(message: str) -> None:
    assert refusal_of(f"Error creating: {message}") == f"PodsRefused: {message}"


def test_native_sidecar_that_fails_again_and_again_is_one_sentence() -> None:
    back_off = {
        "reason": "CrashLoopBackOff",
        "message": "back-off 40s restarting failed container=mesh pod=a_b(c)",
    }
    states: list[dict[str, Any]] = [{"waiting": back_off}, {"terminated": {"exitCode": 1}}, {"running": {}}]
    sentences = []
    for found in states:
        sidecar = {"name": "mesh", "state": found, "restartCount": 3, "started": False}
        trainer = {"waiting": {"reason": "PodInitializing"}}
        sentences.append(state_of(pod(0, "Pending", state=trainer, initContainerStatuses=[sidecar])).message)
    assert set(sentences) == {"CrashLoopBackOff: back-off restarting failed container (init container mesh)"}


# --- Events of a pod ---


def event(reason: str, message: str, second: int, type_: str = "Warning") -> dict[str, Any]:
    time = f"2026-01-31T12:00:{second:02d}Z"
    return {"type": type_, "reason": reason, "message": message, "lastTimestamp": time}


MOUNT = event("FailedMount", 'MountVolume.SetUp failed for volume "texts" : secret "s3" not found', 20)
ATTACH = event(
    "FailedAttachVolume", 'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) other', 10
)
SCHEDULED = event("Scheduled", "Successfully assigned health/a-0 to node-1", 1, "Normal")


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        ((), ""),
        ((SCHEDULED,), ""),
        ((MOUNT, SCHEDULED), f"FailedMount: {MOUNT['message']}"),
        ((SCHEDULED, ATTACH, MOUNT), f"FailedAttachVolume: {ATTACH['message']}"),
        ((MOUNT, ATTACH, event("SuccessfulAttachVolume", "AttachVolume.Attach succeeded", 15, "Normal")),
         f"FailedMount: {MOUNT['message']}"),
        ((MOUNT, event("Pulling", 'Pulling image "dapt:1"', 30, "Normal")), 'Pulling: Pulling image "dapt:1"'),
        ((MOUNT, event("Started", "Started container", 30, "Normal")), ""),
        ((event("FailedScheduling", "0/3 nodes", 1), SCHEDULED), ""),
        (
            (event("FailedMount", "Unable to attach or mount volumes: unmounted volumes=[work], unattached"
                   " volumes=[work scratch stage]: timed out waiting for the condition", 5),),
            "FailedMount: Unable to attach or mount volumes: unmounted volumes=[work]: timed out waiting for the"
            " condition",
        ),
        ((event("NodeNotReady", "Node is not ready", 5) | {"lastTimestamp": None, "eventTime": "odd"},),
         "NodeNotReady: Node is not ready"),
    ],
)  # fmt: skip
def test_events_of_a_pod_say_what_is_in_its_way_now(
    events: tuple[dict[str, Any], ...], sentence: str
) -> None:
    assert event_sentence(events) == sentence


@pytest.mark.parametrize(
    ("message", "first", "second"),
    [
        ('failed to set up network for sandbox "{}": no address is left', "6e" * 32, "7f" * 32),
        ("AttachVolume.Attach failed: api error, RequestID: {}, api error: busy", "8f3c-11aa", "0b1d-22bb"),
    ],
)
def test_event_that_is_repeated_with_another_id_is_one_sentence(
    message: str, first: str, second: str
) -> None:
    sentences = {
        event_sentence((event("FailedCreatePodSandBox", message.format(identifier), 5),))
        for identifier in (first, second)
    }
    assert sentences == {f"FailedCreatePodSandBox: {message.format('...')}"}


def test_event_keeps_the_names_of_volumes_and_images() -> None:
    message = f"volume pvc-3b1c9f0a-1111-2222-3333-444455556666 and image dapt@sha256:{'ab' * 32} on node pool-1-x7k2p"
    assert event_sentence((event("FailedMount", message, 5),)) == f"FailedMount: {message}"


def test_pod_without_a_reason_in_its_status_waits_for_what_its_events_report() -> None:
    found = waiting("ContainerCreating", "")
    state = state_of(found, pod_events={found["metadata"]["name"]: f"FailedMount: {MOUNT['message']}"})
    assert (state.phase, state.waiting_reason) == (RunPhase.PENDING, "FailedMount")
    assert state.message == 'FailedMount: MountVolume.SetUp failed for volume "texts" : secret "s3" not found'


def test_only_a_pod_on_a_node_without_a_reason_is_unexplained() -> None:
    def on_a_node(found: dict[str, Any], **metadata: str) -> dict[str, Any]:
        return found | {"spec": {"nodeName": "node-1"}, "metadata": found["metadata"] | metadata}

    creating = waiting("ContainerCreating", "")
    assert is_unexplained(on_a_node(creating))
    assert is_unexplained(on_a_node(pod(0, "Pending")))
    assert not is_unexplained(creating), "the scheduler's condition explains it"
    assert not is_unexplained(on_a_node(creating, deletionTimestamp="2026-01-31T12:00:00Z"))
    assert not is_unexplained(on_a_node(waiting("ErrImagePull", "not found")))
    assert not is_unexplained(on_a_node(pod(0, "Running", state={"running": {}})))


# --- a gang that is partly running ---

RUNS = {"running": {"startedAt": "2026-01-31T12:00:05Z"}}


def late(found: dict[str, Any]) -> dict[str, Any]:
    """The second pod of the gang, which was created at 12:30."""
    other = pod(1, "Pending")
    return other | {
        "status": found["status"],
        "metadata": other["metadata"] | {"creationTimestamp": "2026-01-31T12:30:00Z"},
    }


def test_gang_of_which_one_pod_waits_reports_why() -> None:
    state = state_of(pod(0, "Running", state=RUNS), late(unschedulable("0/3 nodes are available")))
    assert (state.phase, state.is_partly_running, state.is_waiting) == (RunPhase.RUNNING, True, True)
    assert (state.waiting_reason, state.message) == (
        "Unschedulable",
        "1 of 2 pods: Unschedulable: 0/3 nodes are available",
    )
    assert state.waiting_since == datetime(2026, 1, 31, 12, 30, tzinfo=UTC)
    hindered = state_of(pod(0, "Running", state=RUNS), late(waiting("ErrImagePull", "x")))
    assert hindered.hindrance is not None


def test_gang_whose_second_pod_is_refused_reports_the_refusal() -> None:
    refusal = 'Error creating: pods "a-1-x" is forbidden: exceeded quota: team'
    state = state_of(pod(0, "Running", state=RUNS), refusals={RUN.name: refusal})
    assert state.message == "1 of 2 pods: PodsRefused: its pods are forbidden: exceeded quota: team"
    assert state.waiting_since == state.created
    both = state_of(*(pod(index, "Running", state=RUNS) for index in (0, 1)), refusals={RUN.name: refusal})
    assert (both.is_partly_running, both.message) == (False, ""), "an Event outlives its cause"


def test_gang_that_is_just_starting_reports_nothing() -> None:
    state = state_of(pod(0, "Running", state=RUNS), late(waiting("ContainerCreating", "")))
    assert (state.is_partly_running, state.message) == (True, "")


def full_quota(name: str, minute: int) -> dict[str, Any]:
    pod = f"clinical-publish-0123abcd-0-{'bcdfg' if minute % 2 else 'hjklm'}"
    return {
        "lastTimestamp": f"2026-01-31T12:{minute:02}:00Z",
        "message": f'Error creating: pods "{pod}" is forbidden: exceeded quota: {name}, requested: cpu=8,'
        f" used: cpu={minute}, limited: cpu=16",
    }


def test_full_quotas_are_all_named_in_a_fixed_order() -> None:
    """The API server names one of them, another one each time."""
    other = {"lastTimestamp": "2026-01-31T12:01:00Z", "message": "Error creating: no such service account"}
    stale = full_quota("gone", 1)
    events = (full_quota("team", 40), full_quota("queue", 41), full_quota("team", 42), other, stale)
    sentences = {refusal_of(refusal_message(items)) for items in (events, events[::-1], events[1:3])}
    assert sentences == {
        "PodsRefused: its pods are forbidden: exceeded quota: queue, requested: cpu=8, limited: cpu=16; exceeded quota:"
        " team, requested: cpu=8, limited: cpu=16"
    }
    assert refusal_message((other, stale)[:1]) == "Error creating: no such service account"
    assert refusal_message(({"message": "exceeded quota: a"},)) == "exceeded quota: a"
    assert refusal_message(()) == ""
