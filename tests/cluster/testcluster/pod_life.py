"""What becomes of a pod on a fake node, and the statuses by which a kubelet tells it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dapt_contract.pod.failure import Cause, ExitCode
from dapt_contract.pod.message import RunEnd, encode_message
from dapt_contract.pod.progress import Progress
from dapt_contract.stage_file import StageFile
from dapt_operator.testing.objects import Ends, Script, Stays

TRAINER = "trainer"
INDEX = "batch.kubernetes.io/job-completion-index"
STOPPED = Ends(exit_code=ExitCode.STOPPED, cause=Cause.STOPPED, message="asked to stop; state is saved")


@dataclass(frozen=True)
class Answer:
    """An answer over HTTP, as hostile as a test wants it."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    delay_seconds: float = 0.0
    is_endless: bool = False
    """Blanks follow the body until the reader hangs up."""


Reading = Progress | Answer | Callable[[], "Progress | Answer"] | None
"""What is answered at /progress: the same each time, or made anew for each question."""


@dataclass(frozen=True)
class Life:
    """What becomes of one pod, from being bound to a node on."""

    then: Ends | None = None
    """Its end; without one it runs until the script changes or somebody deletes it."""
    start_seconds: float = 0.0
    """Between bound and running."""
    run_seconds: float = 0.0
    """Between running and its end."""
    waiting: tuple[str, str] | None = None
    """Reason and message of a container that does not start, such as ErrImagePull; it waits for ever."""
    progress: Reading = None
    """Nothing listens there without one."""
    log: str = ""
    """What `kubectl logs` shows, also after the end."""
    on_stop: Ends = STOPPED
    """Its end after SIGTERM."""
    stop_seconds: float = 0.0
    """Between SIGTERM and that end; past the grace period it is killed instead."""
    words: str | None = None
    """Its termination message as it stands, instead of one of the contract's."""


@dataclass(frozen=True)
class ScriptedPod:
    """What a script may decide by."""

    manifest: Mapping[str, Any] = field(repr=False)
    stage: StageFile | None = None
    """The run's stage.json, when the pod mounts one."""

    @property
    def name(self) -> str:
        """Pod's name."""
        return self.manifest["metadata"]["name"]

    @property
    def namespace(self) -> str:
        """Pod's namespace."""
        return self.manifest["metadata"]["namespace"]

    @property
    def uid(self) -> str:
        """Pod's uid."""
        return self.manifest["metadata"]["uid"]

    @property
    def labels(self) -> Mapping[str, str]:
        """Pod's labels."""
        return self.manifest["metadata"].get("labels") or {}

    @property
    def job(self) -> str:
        """Name of its Job, "" without one."""
        return self.labels.get("batch.kubernetes.io/job-name", "")

    @property
    def index(self) -> int:
        """Completion index."""
        return int((self.manifest["metadata"].get("annotations") or {}).get(INDEX, 0))


PodScript = Callable[[ScriptedPod], Life | Ends | Stays]
"""Decides a pod's life; asked when the pod is bound, and again for every living pod when the script changes."""


def by_stage(script: Script) -> PodScript:
    """A script for the cluster in memory, for every pod of the gang; pods without a stage run on."""
    return lambda pod: Life() if pod.stage is None else script(pod.stage)


def runs_on(_: ScriptedPod) -> Life:
    """Runs until it is deleted."""
    return Life()


def life_of(outcome: Life | Ends | Stays) -> Life:
    """The shorthands of the cluster in memory, spelled out.

    Raises:
        ValueError: a script that speaks for the scheduler, which is real here.
    """
    if isinstance(outcome, Life):
        return outcome
    if isinstance(outcome, Ends):
        return Life(then=outcome)
    if outcome.pending_reason:
        raise ValueError("the scheduler is real here: give FakeNodes with less room, not a pending_reason")
    if outcome.waiting:
        reason, _, message = outcome.waiting.partition(": ")
        return Life(waiting=(reason, message))
    return Life(progress=outcome.progress)


def answer_of(reading: Reading) -> Answer:
    """A reading as it goes over the wire."""
    if callable(reading):
        reading = reading()
    if isinstance(reading, Answer):
        return reading
    if reading is None:
        return Answer(b"no reading yet", status=503, content_type="text/plain")
    return Answer(reading.model_dump_json(exclude_none=True).encode())


# --- statuses ---


def now_text() -> str:
    """A time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def waiting_status(pod: ScriptedPod, reason: str, message: str) -> dict[str, Any]:
    """Bound, and its containers do not start."""
    state = {"waiting": {"reason": reason, "message": message}}
    return {
        "phase": "Pending",
        "conditions": _conditions(ready=False),
        "containerStatuses": _each(pod, state),
    }


def running_status(pod: ScriptedPod, address: str, started: str) -> dict[str, Any]:
    """All containers run."""
    return {
        "phase": "Running",
        "startTime": started,
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": _conditions(ready=True),
        "containerStatuses": _each(pod, {"running": {"startedAt": started}}, ready=True),
    }


def ended_status(pod: ScriptedPod, end: Ends, started: str, words: str | None = None) -> dict[str, Any]:
    """All containers ended; the trainer says why."""
    done = end.exit_code == 0 and not (end.disrupted or end.oom_killed)
    ended = {
        "exitCode": 137 if end.oom_killed and not end.exit_code else end.exit_code,
        "reason": "OOMKilled" if end.oom_killed else "Completed" if done else "Error",
        "startedAt": started,
        "finishedAt": now_text(),
    }
    conditions = _conditions(ready=False)
    if end.disrupted:
        conditions.append(_condition("DisruptionTarget", True, "TerminationByKubelet", "node is going away"))
    message = last_words(pod, end) if words is None else words
    return {
        "phase": "Succeeded" if done else "Failed",
        "conditions": conditions,
        "containerStatuses": [
            item
            | ({"state": {"terminated": ended | {"message": message}}} if item["name"] == TRAINER else {})
            for item in _each(pod, {"terminated": ended})
        ],
    }


def lingering_status(pod: ScriptedPod, end: Ends, started: str, words: str | None = None) -> dict[str, Any]:
    """The trainer ended and says why; the other containers run on."""
    status = ended_status(pod, end, started, words)
    others = {"running": {"startedAt": started}}
    statuses = [
        item if item["name"] == TRAINER else item | {"state": others} for item in status["containerStatuses"]
    ]
    return status | {"phase": "Running", "containerStatuses": statuses}


def killed_sidecars_status(
    pod: ScriptedPod, end: Ends, started: str, words: str | None = None
) -> dict[str, Any]:
    """The trainer ended earlier; the other containers were told to end, and that counts as a failure of the pod."""
    status = ended_status(pod, end, started, words)
    others = {
        "terminated": {"exitCode": 143, "reason": "Error", "startedAt": started, "finishedAt": now_text()}
    }
    statuses = [
        item if item["name"] == TRAINER else item | {"state": others} for item in status["containerStatuses"]
    ]
    return status | {"phase": "Failed", "containerStatuses": statuses}


def last_words(pod: ScriptedPod, end: Ends) -> str:
    """The trainer's termination message; a pod without a stage leaves the sentence alone."""
    if end.lose_message:
        return ""
    if pod.stage is None:
        return end.message
    run_end = RunEnd(end.exit_code, end.cause, end.message)
    return encode_message(pod.stage.run.key, pod.stage.kind, run_end, facts=end.facts)


def _conditions(*, ready: bool) -> list[dict[str, Any]]:
    ready_types = [(name, ready) for name in ("ContainersReady", "Ready")]
    always = [(name, True) for name in ("PodReadyToStartContainers", "Initialized")]
    return [_condition(name, value) for name, value in always + ready_types]


def _condition(type_: str, value: bool, reason: str = "", message: str = "") -> dict[str, Any]:
    return {
        "type": type_,
        "status": "True" if value else "False",
        "lastTransitionTime": now_text(),
        "reason": reason,
        "message": message,
    }


def _each(pod: ScriptedPod, state: dict[str, Any], *, ready: bool = False) -> list[dict[str, Any]]:
    return [
        {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": ready,
            "restartCount": 0,
            "started": ready,
            "state": state,
        }
        for container in pod.manifest["spec"]["containers"]
    ]
