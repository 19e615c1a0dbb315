"""What one pod of a gang says: how far it is, how it ended and why, whether it still lives.

What comes from pods is untrusted: a message that is missing, too long, malformed or of another run is a lost message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from dapt_contract.envelope import ContractError
from dapt_contract.failure import PRECEDENCE, Cause, ExitCode, cause_of_exit_code
from dapt_contract.message import StageMessage, decode_message
from dapt_contract.run_identity import RunIdentity
from dapt_operator.launchers.observe.pod_waiting import hindrance_of, sentence_of, waiting_sentence
from dapt_operator.launchers.render.environment import COMPLETION_INDEX
from dapt_operator.launchers.render.pod import CONTAINER
from dapt_operator.stage_run import Hindrance, Manifest

MAX_SENTENCE = 4000
LAST_WORDS_SECONDS = 5
"""A pod past its grace period is given up after this much longer: a kubelet that answers reports its end by then."""
PATIENCE_SECONDS = 5
"""How long peers of a pod that only felt another's failure (or was taken away) may take to tell theirs."""
GONE = "the pod was deleted and its node did not say within its grace period how it ended"
_NEVER_RAN = ("StartError", "ContainerCannotRun")


@dataclass(frozen=True)
class Pod:
    """What one pod says."""

    name: str
    index: int
    phase: str
    alive: bool
    """Whether its processes may be there: neither ended nor past the grace period of its deletion."""
    exit_code: int | None = None
    cause: Cause | None = None
    """Set when failed."""
    sentence: str = ""
    effect: bool = False
    """It failed because a peer did, or because somebody deleted it: not a cause where there is another."""
    disrupted: bool = False
    message: StageMessage | None = None
    why_lost: str = "the pod is gone"
    waiting: str = ""
    hindrance: Hindrance | None = None
    running: bool = False
    created: datetime | None = None
    started: datetime | None = None
    finished: datetime | None = None

    @property
    def failed(self) -> bool:
        """Whether it ended without success."""
        return self.phase == "Failed"

    @property
    def first_hand(self) -> bool:
        """Whether it failed by itself: then its peers wait for it in vain."""
        return self.failed and not self.effect and not self.disrupted and self.cause is not Cause.STOPPED


def read_pod(pod: Manifest, identity: RunIdentity, kind: str, now: datetime) -> Pod:
    """Read a pod that belongs to the run of `identity` and `kind`; `now` is aware, UTC."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    phase = str(status.get("phase") or "Pending")
    ended = phase in ("Succeeded", "Failed")
    container: Mapping[str, Any] = next(
        (item for item in status.get("containerStatuses") or [] if item.get("name") == CONTAINER), {}
    )
    state = container.get("state") or {}
    disruption = _condition(status, "DisruptionTarget", "True")
    base: dict[str, Any] = {
        "name": str(metadata.get("name", "")),
        "index": _index(metadata),
        "phase": phase,
        "alive": not ended,
        "disrupted": disruption is not None,
        "created": parse_time(metadata.get("creationTimestamp")),
    }
    if not ended and _gone(metadata, now):
        return Pod(
            **base | {"phase": "Failed", "alive": False},
            cause=Cause.DISRUPTION if disruption else Cause.INFRASTRUCTURE,
            sentence=(sentence_of(disruption or {}) or GONE)[:MAX_SENTENCE],
            effect=disruption is None,
            started=parse_time((state.get("running") or {}).get("startedAt")),
            finished=parse_time(metadata["deletionTimestamp"]),
        )
    if not ended:
        running = state.get("running")
        return Pod(
            **base,
            waiting=waiting_sentence(status, state)[:MAX_SENTENCE],
            hindrance=hindrance_of(status),
            running=phase == "Running",
            started=parse_time((running or {}).get("startedAt")),
        )
    return _read_ended(base, metadata, status, state.get("terminated"), disruption, identity, kind)


def _read_ended(
    base: dict[str, Any],
    metadata: Mapping[str, Any],
    status: Mapping[str, Any],
    ended: Mapping[str, Any] | None,
    disruption: Mapping[str, Any] | None,
    identity: RunIdentity,
    kind: str,
) -> Pod:
    failed = base["phase"] == "Failed"
    deleted = bool(metadata.get("deletionTimestamp"))
    if ended is None:
        lost = Cause.DISRUPTION if disruption else Cause.INFRASTRUCTURE
        sentence = sentence_of(disruption or {}) or sentence_of(status)
        return Pod(
            **base,
            cause=lost if failed else None,
            sentence=(sentence or "the pod ended before its container started")[:MAX_SENTENCE],
            effect=deleted and failed and disruption is None,
            finished=parse_time((disruption or {}).get("lastTransitionTime")),
        )
    code = int(ended.get("exitCode", 1))
    times: dict[str, Any] = {
        "started": parse_time(ended.get("startedAt")),
        "finished": parse_time(ended.get("finishedAt")),
    }
    if ended.get("reason") in _NEVER_RAN:
        sentence = sentence_of(ended)[:MAX_SENTENCE]
        return Pod(
            **base, exit_code=code, cause=Cause.INFRASTRUCTURE, sentence=sentence, finished=times["finished"]
        )
    message, why = _decode(str(ended.get("message") or ""), identity, kind)
    cause = cause_of_exit_code(code, oom_killed=ended.get("reason") == "OOMKilled")
    if message is not None and message.cause is not None and message.exit_code == code and code != 0:
        cause = message.cause if cause is not Cause.OUT_OF_MEMORY else cause
    if disruption and cause not in (None, *PRECEDENCE[:4]):
        cause = Cause.DISRUPTION
    sentence = message.message if message else ""
    if failed and not sentence:
        sentence = sentence_of(disruption or {}) or f"the container ended with exit code {code} ({why})"
    # A deleted pod that says nothing was killed by whoever deleted it: the Job controller or we, after a peer's end.
    killed = deleted and message is None and cause is Cause.INFRASTRUCTURE
    return Pod(
        **base,
        exit_code=code,
        cause=cause,
        sentence=sentence[:MAX_SENTENCE],
        effect=killed or (message is not None and message.effect),
        message=message,
        why_lost=why,
        **times,
    )


def newest(pods: Iterable[Pod]) -> tuple[Pod, ...]:
    """One pod for each completion index, the one made last, in their order.

    A queue that takes its quota back and gives it again has the Job make its pods anew; what the first ones said is
    history then.
    """
    found: dict[int, Pod] = {}
    for pod in sorted(pods, key=lambda pod: (_or_long_ago(pod.created), pod.alive)):
        found[pod.index] = pod
    return tuple(found[index] for index in sorted(found))


def peers_to_end(pods: tuple[Pod, ...], now: datetime) -> tuple[str, ...]:
    """Names of the pods that are alive and wait in vain for one that failed.

    After a failure of its own one pod's peers may go at once. One that only felt a failure, or that was taken away
    without a save, gives its peers a few seconds to tell what they know. One that was asked to stop gives them
    their whole grace period: they are saving.
    """
    ends = [
        _or_long_ago(pod.finished)
        for pod in pods
        if pod.failed and not pod.first_hand and pod.exit_code != ExitCode.STOPPED
    ]
    impatient = bool(ends) and now - min(ends) >= timedelta(seconds=PATIENCE_SECONDS)
    if not impatient and not any(pod.first_hand for pod in pods):
        return ()
    return tuple(pod.name for pod in pods if pod.alive)


def _or_long_ago(time: datetime | None) -> datetime:
    """The time, or the beginning of time for a pod whose end nobody wrote down: it was long ago."""
    return time or datetime.min.replace(tzinfo=UTC)


def _gone(metadata: Mapping[str, Any], now: datetime) -> bool:
    """Whether a pod that is not reported as ended counts as gone all the same.

    `deletionTimestamp` is the end of the grace period. Past it only a node that does not answer keeps a pod; what
    still runs there is fenced off.
    """
    deadline = parse_time(metadata.get("deletionTimestamp"))
    if deadline is None:
        return False
    if metadata.get("deletionGracePeriodSeconds") == 0:
        return True
    return now >= deadline + timedelta(seconds=LAST_WORDS_SECONDS)


def _condition(status: Mapping[str, Any], kind: str, value: str) -> Mapping[str, Any] | None:
    for item in status.get("conditions") or []:
        if item.get("type") == kind and item.get("status") == value:
            found: Mapping[str, Any] = item
            return found
    return None


def _decode(text: str, identity: RunIdentity, kind: str) -> tuple[StageMessage | None, str]:
    """The message, or None and why it is lost."""
    if not text:
        return None, "no termination message"
    try:
        message = decode_message(text)
    except ContractError as error:
        return None, str(error)
    unread = not message.key and message.exit_code != 0  # the agent could not read who it is
    if (message.key != identity.key and not unread) or message.kind != kind:
        return None, "the termination message is that of another run"
    return message, ""


def _index(metadata: Mapping[str, Any]) -> int:
    annotations = metadata.get("annotations") or {}
    labels = metadata.get("labels") or {}
    text = annotations.get(COMPLETION_INDEX, labels.get(COMPLETION_INDEX, "0"))
    return int(text) if str(text).isdigit() else 0


def parse_time(value: Any) -> datetime | None:
    """Kubernetes' RFC 3339, aware; None for anything else."""
    if not value:
        return None
    try:
        time = (
            value
            if isinstance(value, datetime)
            else datetime.fromisoformat(str(value).replace("Z", "+00:00"))
        )
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
