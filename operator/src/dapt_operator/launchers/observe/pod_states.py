"""Reads one pod of a gang: how far it is, how and why it ended, whether it is still alive.

The trainer's container decides, and not the pod's phase: see `containers`. Input from pods is untrusted: a message that
is missing, too long, malformed or of another run counts as lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from dapt_contract.envelope import ContractError
from dapt_contract.pod.environment import COMPLETION_INDEX
from dapt_contract.pod.failure import PRECEDENCE, Cause, ExitCode, cause_of_exit_code
from dapt_contract.pod.message import StageMessage, decode_message
from dapt_contract.run_identity import RunIdentity
from dapt_contract.sentences import shortened
from dapt_operator.launchers.observe.containers import (
    exit_code_of,
    failed_init_sentence,
    has_ended,
    is_over,
    parse_time,
    phase_of,
    trainer_state,
)
from dapt_operator.launchers.observe.pod_waiting import hindrance_of, sentence_of, waiting_sentence
from dapt_operator.stage_run import MAX_MESSAGE_CHARACTERS, Hindrance, Manifest

LATE_REPORT_SECONDS: Final = 5
"""A pod past its grace period counts as gone after this much longer; a kubelet that answers has reported its end by
then."""
LOST_NODE_SECONDS: Final = 10
"""A pod that was evicted from a lost node counts as gone after this long, whatever its grace period is."""
TAINTED: Final = "DeletionByTaintManager"
"""Reason of an eviction by a taint of the node."""
PEER_REPORT_SECONDS: Final = 5
"""Time for the peers of a pod that was deleted, or that failed because of a peer, to report their own causes."""
AGREED_REPORT_SECONDS: Final = 60
"""Time for the peers of a pod that ended by a decision of all ranks to end as well: rank 0 writes the report first."""
_AGREED: Final = (Cause.FORGETTING_LIMIT, Cause.DIVERGED)
GONE: Final = "the pod was deleted and its node did not report within the grace period how it ended"
_NEVER_RAN: Final = ("StartError", "ContainerCannotRun")
_MAX_INDEX_DIGITS: Final = 6
_CACHED_MESSAGES: Final = 512
"""Of 4 KB at most."""


@dataclass(frozen=True)
class Pod:
    """State of one pod."""

    name: str
    index: int
    phase: str
    """Phase that the trainer alone would give it."""
    is_alive: bool
    """Whether a process of the trainer may exist: it has not ended, and the grace period of its deletion is not
    over."""
    is_lingering: bool = False
    """Whether its trainer has ended and another container of it has not."""
    exit_code: int | None = None
    cause: Cause | None = None
    """Set when the pod failed."""
    sentence: str = ""
    is_effect: bool = False
    """Whether it failed because a peer did, or because it was deleted; not a cause where there is another."""
    is_deleted: bool = False
    """Whether somebody has deleted it; it exists until its node reports its end, or until it counts as gone."""
    is_disrupted: bool = False
    message: StageMessage | None = None
    why_lost: str = "the pod is gone"
    """Why there is no `message`."""
    waiting: str = ""
    """Why the pod does not start, as `Reason: message`."""
    hindrance: Hindrance | None = None
    is_running: bool = False
    created: datetime | None = None
    started: datetime | None = None
    finished: datetime | None = None

    @property
    def has_failed(self) -> bool:
        """Whether it ended without success."""
        return self.phase == "Failed"

    @property
    def has_failed_by_itself(self) -> bool:
        """Whether neither a peer nor a deletion explains its failure. Its peers then wait for it in vain."""
        return (
            self.has_failed and not self.is_effect and not self.is_disrupted and self.cause != Cause.STOPPED
        )


def read_pod(pod: Manifest, identity: RunIdentity, kind: str, now: datetime, event: str = "") -> Pod:
    """Read a pod of a run.

    Args:
        pod: as the cluster holds it.
        identity: of the run.
        kind: of its stage.
        now: aware, UTC.
        event: what Events report about a pod that does not start; empty when they were not read.
    """
    metadata, status = pod["metadata"], pod.get("status") or {}
    state = trainer_state(status)
    disruption = _true_condition(status, "DisruptionTarget")
    phase = phase_of(status)
    read = Pod(
        name=str(metadata.get("name", "")),
        index=_index(metadata),
        phase=phase,
        is_alive=not has_ended(pod),
        is_lingering=has_ended(pod) and not is_over(pod),
        is_deleted=bool(metadata.get("deletionTimestamp")),
        is_disrupted=disruption is not None,
        created=parse_time(metadata.get("creationTimestamp")),
    )
    if not read.is_alive:
        return _read_ended(read, pod, state.get("terminated"), disruption, identity, kind)
    started = parse_time((state.get("running") or {}).get("startedAt"))
    gone = _gone_since(metadata, status, disruption, now)
    if gone is not None:
        return replace(
            read,
            phase="Failed",
            is_alive=False,
            cause=Cause.DISRUPTION if disruption else Cause.INFRASTRUCTURE,
            sentence=shortened(sentence_of(disruption or {}) or GONE, MAX_MESSAGE_CHARACTERS),
            is_effect=disruption is None,
            started=started,
            finished=gone,
        )
    if phase == "Running":
        # What its other containers wait for does not concern the trainer.
        return replace(read, is_running=True, started=started)
    return replace(
        read,
        waiting=shortened(waiting_sentence(status, event), MAX_MESSAGE_CHARACTERS),
        hindrance=hindrance_of(status),
    )


def _read_ended(
    read: Pod,
    pod: Manifest,
    ended: Manifest | None,
    disruption: Manifest | None,
    identity: RunIdentity,
    kind: str,
) -> Pod:
    """Add cause, sentence and message to `read`; `ended` is the terminated state of the trainer's container."""
    is_deleted = bool(pod["metadata"].get("deletionTimestamp"))
    # 1. Without a container state only the pod's own conditions can explain the end.
    if ended is None:
        lost = Cause.DISRUPTION if disruption else Cause.INFRASTRUCTURE
        status = pod.get("status") or {}
        sentence = sentence_of(disruption or {}) or sentence_of(status) or failed_init_sentence(status)
        return replace(
            read,
            cause=lost if read.has_failed else None,
            sentence=shortened(
                sentence or "the pod ended before its container started", MAX_MESSAGE_CHARACTERS
            ),
            is_effect=is_deleted and read.has_failed and disruption is None,
            finished=parse_time((disruption or {}).get("lastTransitionTime")),
        )
    code = exit_code_of(ended)
    finished = parse_time(ended.get("finishedAt"))
    # 2. The runtime could not start the container: no process of ours ran, so there is no message to look for.
    if ended.get("reason") in _NEVER_RAN:
        return replace(
            read,
            exit_code=code,
            cause=Cause.INFRASTRUCTURE,
            sentence=shortened(sentence_of(ended), MAX_MESSAGE_CHARACTERS),
            finished=finished,
        )
    # 3. The container ran. Its exit code gives a cause, its message a more precise one.
    message, why_lost = _decode(str(ended.get("message") or ""), identity, kind)
    cause = cause_of_exit_code(code, oom_killed=ended.get("reason") == "OOMKilled")
    if message is not None and message.cause is not None and message.exit_code == code and code != 0:
        # Out of memory is certain from the exit code or the kubelet, so a message does not overrule it.
        cause = message.cause if cause is not Cause.OUT_OF_MEMORY else cause
    # A disruption explains an end, except one that would have come without it.
    if disruption and cause not in (None, *PRECEDENCE[:4]):
        cause = Cause.DISRUPTION
    sentence = message.message if message else ""
    if read.has_failed and not sentence:
        detail = f" ({why_lost})" if why_lost else ""
        sentence = sentence_of(disruption or {}) or f"the container ended with exit code {code}{detail}"
    # A deleted pod without a message was killed by whoever deleted it, the Job controller or this operator, because
    # a peer had ended.
    is_killed = is_deleted and message is None and cause is Cause.INFRASTRUCTURE
    return replace(
        read,
        exit_code=code,
        cause=cause,
        sentence=shortened(sentence, MAX_MESSAGE_CHARACTERS),
        is_effect=is_killed or (message is not None and message.effect),
        message=message,
        why_lost=why_lost,
        started=parse_time(ended.get("startedAt")),
        finished=finished,
    )


def newest_by_index(pods: Iterable[Pod]) -> tuple[Pod, ...]:
    """Return the pod that was created last for each completion index, in the order of the indexes.

    A queue that takes its quota back and grants it again makes the Job create its pods again; reports of the first
    ones are out of date.
    """
    newest: dict[int, Pod] = {}
    # The last one of an index stays. Times of creation are whole seconds; of two equal ones the living pod is the
    # newer.
    for pod in sorted(pods, key=lambda pod: (_or_long_ago(pod.created), pod.is_alive)):
        newest[pod.index] = pod
    return tuple(newest[index] for index in sorted(newest))


def peers_to_end(pods: tuple[Pod, ...], now: datetime) -> tuple[str, ...]:
    """Return the names of the pods that are alive and wait in vain for one that failed.

    The peers of a pod that failed by itself may be killed at once. A pod that failed because of a peer, or that was
    taken away without a save, leaves its peers a few seconds to report their causes, and one that ended by a decision
    of all ranks leaves them longer to report theirs. A pod that stopped on request leaves them their whole grace
    period: they are saving.
    """
    waits = (_wait_for_reports(pod) for pod in pods)
    ends = [
        (_or_long_ago(pod.finished), wait) for pod, wait in zip(pods, waits, strict=True) if wait is not None
    ]
    if not any(wait == 0 or now - end >= timedelta(seconds=wait) for end, wait in ends):
        return ()
    return tuple(pod.name for pod in pods if pod.is_alive)


def _wait_for_reports(pod: Pod) -> float | None:
    """Return for how many seconds after its end a pod's peers may still report; None when it ends no peer."""
    if not pod.has_failed:
        return None
    if pod.has_failed_by_itself:
        return AGREED_REPORT_SECONDS if pod.cause in _AGREED else 0
    return None if pod.exit_code == ExitCode.STOPPED else PEER_REPORT_SECONDS


def _or_long_ago(time: datetime | None) -> datetime:
    """Return the time, or the smallest one for a pod whose time was not recorded."""
    return time or datetime.min.replace(tzinfo=UTC)


def _gone_since(
    metadata: Manifest, status: Manifest, disruption: Manifest | None, now: datetime
) -> datetime | None:
    """Return when a pod was gone that is not reported as ended; None while its end may still be reported.

    `deletionTimestamp` is the end of the grace period. Only a node that does not answer keeps a pod past it; processes
    that still run there are fenced off.
    """
    deadline = parse_time(metadata.get("deletionTimestamp"))
    if deadline is None:
        return None
    # Deleted by force: the API server does not wait for the node, so no report of the end will come.
    if metadata.get("deletionGracePeriodSeconds") == 0:
        return deadline
    # The grace period is the node's time to save, and a lost node saves nothing: waiting for it would cost minutes.
    evicted = parse_time((disruption or {}).get("lastTransitionTime"))
    if (
        evicted is not None
        and _is_node_lost(status, disruption)
        and now >= evicted + timedelta(seconds=LOST_NODE_SECONDS)
    ):
        return min(evicted, deadline)
    return deadline if now >= deadline + timedelta(seconds=LATE_REPORT_SECONDS) else None


def _is_node_lost(status: Manifest, disruption: Manifest | None) -> bool:
    """Whether a pod was evicted because its node is unreachable or not ready.

    Any NoExecute taint evicts with this reason, that of an announced maintenance too, whose node saves and reports. Of
    a node that failed the node controller has marked the pods as not ready as well.
    """
    ready = [item for item in status.get("conditions") or [] if item.get("type") == "Ready"]
    return (disruption or {}).get("reason") == TAINTED and any(
        item.get("status") == "False" for item in ready
    )


def _true_condition(status: Manifest, kind: str) -> Manifest | None:
    conditions: Iterable[Manifest] = status.get("conditions") or []
    return next(
        (item for item in conditions if item.get("type") == kind and item.get("status") == "True"), None
    )


def _decode(text: str, identity: RunIdentity, kind: str) -> tuple[StageMessage | None, str]:
    """Return the message, or None and why it is lost."""
    if not text:
        return None, "no termination message"
    try:
        message = _decoded(text)
    except ContractError as error:
        return None, str(error)
    # The agent reports without a key when it failed before it could read which run it is.
    has_no_key = not message.key and message.exit_code != 0
    if (message.key != identity.key and not has_no_key) or message.kind != kind:
        return None, "the termination message is that of another run"
    return message, ""


# Of a run that has ended the text is the same at every reconcile, and reading it is most of what observing costs.
@lru_cache(maxsize=_CACHED_MESSAGES)
def _decoded(text: str) -> StageMessage:
    return decode_message(text)


def _index(metadata: Manifest) -> int:
    annotations = metadata.get("annotations") or {}
    labels = metadata.get("labels") or {}
    text = str(annotations.get(COMPLETION_INDEX, labels.get(COMPLETION_INDEX, "0")))
    return int(text) if text.isdecimal() and len(text) <= _MAX_INDEX_DIGITS else 0
