"""Reads why a pod does not start from messages of kubelet and scheduler, and which of them require user action.

The patterns match the messages of Kubernetes 1.31 to 1.36. A message that matches none remains a waiting reason. What
differs from attempt to attempt is taken out of messages: each change would be one more write of the status.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from dapt_contract.sentences import shortened
from dapt_operator.api.v1alpha1.conditions import CLAIM_NOT_FOUND, IMAGE_NOT_PULLED, REFUSED, SECRET_NOT_FOUND
from dapt_operator.launchers.observe.containers import parse_time, trainer_state
from dapt_operator.launchers.render.pod import CONTAINER
from dapt_operator.stage_run import Hindrance, Manifest

STARTING: Final = ("", "ContainerCreating", "PodInitializing")
"""Reasons of a container that is about to start: nothing to report."""
_IMAGE_REASONS: Final = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
)
_SECRET: Final = re.compile(r'secret "([^"]{1,253})" not found')
_SECRET_KEY: Final = re.compile(r"couldn't find key (\S{1,253}) in Secret \S{0,64}/(\S{1,253})")
_CLAIM: Final = re.compile(r'persistentvolumeclaim "([^"]{1,253})" not found')
_POD_NAME: Final = re.compile(r'pods? "[^"]{1,253}" (?:is|are)\b', re.IGNORECASE)
_RESTARTING: Final = "back-off restarting failed container"
_BACK_OFF: Final = re.compile(r"back-off \S{1,20} restarting failed container\b.{0,600}")
_UNATTACHED: Final = re.compile(r", unattached volumes=\[[^\]]{0,2000}\]")
_LIMITS: Final = re.compile(r"\[((?:minimum|maximum|\S{1,63} max limit) [^\]]{1,3000})\]")
"""The list of a LimitRange, which comes in another order each time."""
_NEXT_LIMIT: Final = re.compile(r", (?=minimum |maximum |\S{1,63} max limit )")
_COMBINED: Final = "(combined from similar events): "
"""Prefix of an Event that stands for many whose messages differ."""
_RANDOM_SUFFIX: Final = re.compile(
    r"(-[0-9a-f]{8}(?:-[a-z]-0)?-\d{1,6})-[bcdfghjklmnpqrstvwxz2456789]{5}(?![a-z0-9-])"
)
"""The end of the name of a pod of ours, which is new in each attempt to create it; policies repeat the name."""
_REQUEST_ID: Final = re.compile(
    r"""\b((?:request|req|trace|correlation|activity)[ _-]?id\W{1,4})[0-9a-z][0-9a-z-]{5,63}""",
    re.IGNORECASE,
)
_SANDBOX_ID: Final = re.compile(r"(?<![:@0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
"""The id of a sandbox or container that could not be started, and no digest of an image."""
_OWN_PORT: Final = re.compile(r":\d{4,5}(?=->)")
_CURRENT_TIME: Final = re.compile(r"(current time )\d{4}-\S{1,40}")
_USED_QUOTA: Final = re.compile(r", used: [^ ]{1,2000}(?=, limited: )")
"""What of a ResourceQuota others use at the moment."""
_EXCEEDED_QUOTA: Final = re.compile(r"exceeded quota: .{1,2000}", re.DOTALL)
QUOTA_MEMORY: Final = timedelta(minutes=30)
"""How long before the newest refusal another quota's counts: the Job controller waits up to ten minutes in between."""
_PULL_BACK_OFF: Final = re.compile(
    r'^ImagePullBackOff: Back-off pulling image "[^"]{1,600}": (?=ErrImagePull: )'
)
"""Begins the sentence of a failed pull between two attempts; it ends with that of the attempt."""
_UNPLACED: Final = re.compile(r"0/\d{1,6} nodes are available: ")
_PREEMPTION: Final = re.compile(
    r"[.,]? (?:(?:no new claims to deallocate|not found), )?preemption: .*", re.DOTALL
)
_NEXT_REASON: Final = re.compile(r", (?=\d{1,6} )")
_NUM_NODES: Final = re.compile(r"^\d{1,6} ")
_UNREACHED: Final = (
    "Internal error occurred",
    "failed calling webhook",
    "context deadline exceeded",
    "context canceled",
    "etcdserver:",
    "the object has been modified",
    "i/o timeout",
    "handshake timeout",
    "request timed out",
    "Timeout: request did not complete",
    "connection refused",
    "connection reset by peer",
    "unexpected EOF",
    "try again later",
    "unable to handle the request",
)
"""Parts of a refusal that says nothing about the pods: the API server or a webhook did not answer, or two wrote one
object at the same time, such as a quota."""
_PROGRESS: Final = ("Scheduled", "SuccessfulAttachVolume", "Pulling", "Pulled", "Created", "Started")
"""Reasons of Events that outdate every warning before them."""
_RANKS: Final = ("FailedAttachVolume", "FailedMount", "FailedCreatePodSandBox")
"""Warnings about one and the same failure, the one that explains it first: without an order they would alternate."""
_MAX_REASON_CHARACTERS: Final = 300


def waiting_sentence(status: Manifest, event: str = "") -> str:
    """Return why the trainer of a pod has not started, as `Reason: message`; empty for a pod that is starting.

    Args:
        status: of the pod.
        event: what Events report about the pod; empty when they were not read.
    """
    # The kubelet knows more than the scheduler: it has got the pod already.
    waiting = trainer_state(status).get("waiting") or {}
    if waiting.get("reason", "") not in STARTING:
        return stable(sentence_of(waiting))
    # Init containers run before the trainer; other containers beside it, so that theirs come last.
    for container, kind in _other_containers(status):
        blocked = (container.get("state") or {}).get("waiting") or {}
        if blocked.get("reason", "") not in STARTING:
            return f"{stable(sentence_of(blocked))} ({kind} {_name(container)})"
        if _is_restarted(container):
            # Between two waits it runs for a moment, or has just failed: the same sentence, since nothing has changed.
            return f"CrashLoopBackOff: {_RESTARTING} ({kind} {_name(container)})"
    unscheduled = _unscheduled(status)
    if unscheduled is not None:
        return _placement_sentence(unscheduled)
    return event or sentence_of(waiting) + _running_init(status)


def is_unexplained(pod: Manifest) -> bool:
    """Whether a pod is on its node, its trainer has not started, and its status does not say why."""
    status = pod.get("status") or {}
    state = trainer_state(status)
    has_started = "running" in state or "terminated" in state
    is_on_a_node = bool((pod.get("spec") or {}).get("nodeName"))
    if has_started or not is_on_a_node or pod["metadata"].get("deletionTimestamp"):
        return False
    return waiting_sentence(status).partition(":")[0] in STARTING and hindrance_of(status) is None


def sentence_of(item: Manifest) -> str:
    """Return `Reason: message` of a container state or a condition, or the one of the two that it has."""
    reason, message = str(item.get("reason") or ""), str(item.get("message") or "")
    return f"{reason}: {message}" if reason and message else reason or message


def stable(message: str) -> str:
    """Return a message without the parts that differ each time it is reported."""
    message = _UNATTACHED.sub("", _POD_NAME.sub("its pods are", message))
    message = _BACK_OFF.sub(_RESTARTING, message)
    message = _RANDOM_SUFFIX.sub(r"\1", message.replace(_COMBINED, ""))
    message = _SANDBOX_ID.sub("...", _REQUEST_ID.sub(r"\1...", message))
    message = _CURRENT_TIME.sub(r"\1...", _OWN_PORT.sub("", message))
    message = _PULL_BACK_OFF.sub("", _USED_QUOTA.sub("", message))
    return _LIMITS.sub(lambda found: f"[{', '.join(sorted(_NEXT_LIMIT.split(found[1])))}]", message)


def _placement_sentence(condition: Manifest) -> str:
    """Return why the scheduler cannot place a pod, as `Reason: message`, with its reasons in a fixed order.

    The scheduler counts the nodes that each reason holds on. These numbers, and the order of the reasons with them,
    change with every pod that comes or goes anywhere. What it says of preemption repeats them.
    """
    message = _PREEMPTION.sub("", str(condition.get("message") or ""))
    unplaced = _UNPLACED.match(message)
    if unplaced:
        reasons = _NEXT_REASON.split(message[unplaced.end() :].rstrip("."))
        message = f"no nodes are available: {', '.join(sorted({_NUM_NODES.sub('', one) for one in reasons}))}"
    return sentence_of({**condition, "message": message})


def event_sentence(events: Iterable[Manifest]) -> str:
    """Return what the Events of a pod say of its start, as `Reason: message`; empty when nothing is in its way.

    Args:
        events: of one pod, in any order. They outlive their cause: of a warning that was followed by progress nothing
            is left to report.
    """
    # Times are whole seconds: of two equal ones the step comes first, since a failure follows it.
    by_time = sorted(
        # What the scheduler has to say is in the pod's conditions.
        (event for event in events if event.get("reason") != "FailedScheduling"),
        key=lambda event: (_last_time(event), event.get("reason") not in _PROGRESS),
    )
    steps = [number for number, event in enumerate(by_time) if event.get("reason") in _PROGRESS]
    since = steps[-1] if steps else 0
    warnings = [event for event in by_time[since:] if event.get("type") == "Warning"]
    if warnings:
        explaining = min(reversed(warnings), key=lambda event: _rank(str(event.get("reason"))))
        return shortened(stable(sentence_of(explaining)), _MAX_REASON_CHARACTERS)
    # A large image is pulled for minutes, and nothing else says so.
    if steps and by_time[since].get("reason") == "Pulling":
        return shortened(sentence_of(by_time[since]), _MAX_REASON_CHARACTERS)
    return ""


def refusal_message(events: Sequence[Manifest]) -> str:
    """Return the newest refusal of a Job's pods; empty when there is none.

    Of several quotas that are full the API server names one, another one each time: all of them are named, in a fixed
    order.

    Args:
        events: about one Job or JobSet, in any order. An older one may be about a cause that was removed since.
    """
    newest = max(events, key=_last_time, default=None)
    if newest is None:
        return ""
    message = str(newest.get("message") or "")
    named = _EXCEEDED_QUOTA.search(message)
    if named is None:
        return message
    found = (
        _EXCEEDED_QUOTA.search(stable(str(event.get("message") or "")))
        for event in events
        if _last_time(newest) - _last_time(event) <= QUOTA_MEMORY
    )
    return message[: named.start()] + "; ".join(sorted({quota[0] for quota in found if quota is not None}))


def refusal_of(message: str) -> Hindrance | str:
    """Return what keeps a Job from getting its pods: a waiting reason for a full quota, else a hindrance.

    A quota becomes free without user action, and a webhook that does not answer comes back; a policy or a missing right
    does not change by itself.

    Args:
        message: of the Job controller.
    """
    # The message names the pod, whose random suffix differs in each attempt of the controller: the condition would
    # change, and be written, each time.
    reason = shortened(stable(message).removeprefix("Error creating: "), _MAX_REASON_CHARACTERS)
    if "exceeded quota" in reason or any(part in reason for part in _UNREACHED):
        return f"PodsRefused: {reason}"
    return Hindrance(REFUSED, f"{reason}; allow its pods, then the run starts without further action")


def hindrance_of(status: Manifest) -> Hindrance | None:
    """Return what a user must fix before this pod can start; None when no such problem is recognized."""
    # A claim that is missing is reported by the scheduler, before any kubelet has the pod.
    claim = _CLAIM.search(str((_unscheduled(status) or {}).get("message") or ""))
    if claim:
        return Hindrance(
            CLAIM_NOT_FOUND,
            f"there is no PersistentVolumeClaim {claim[1]} in this namespace: create it, or name another",
        )
    trainers = (item for item in status.get("containerStatuses") or [] if item.get("name") == CONTAINER)
    hindrances = (
        *(_hindrance_of_container(container) for container in trainers),
        *(_hindrance_of_container(container, kind) for container, kind in _other_containers(status)),
    )
    return next((hindrance for hindrance in hindrances if hindrance is not None), None)


def _other_containers(status: Manifest) -> Iterator[tuple[Manifest, str]]:
    """Yield the status of each container except the trainer's, with what kind of container it is."""
    for container in status.get("initContainerStatuses") or []:
        yield container, "init container"
    for container in status.get("containerStatuses") or []:
        if container.get("name") != CONTAINER:
            yield container, "sidecar"


def _running_init(status: Manifest) -> str:
    """Return which init container the others wait for, to be appended to a reason; empty when none runs."""
    for container in status.get("initContainerStatuses") or []:
        # A native sidecar runs as long as the pod: it is waited for only until it has started.
        if "running" in (container.get("state") or {}) and not container.get("started"):
            return f": init container {_name(container)} runs"
    return ""


def _is_restarted(container: Manifest) -> bool:
    """Whether a container that others wait for, a native sidecar, has failed to start and was started again."""
    state = container.get("state") or {}
    has_been_restarted = bool(container.get("restartCount")) and not container.get("started")
    return has_been_restarted and ("running" in state or "terminated" in state)


def _name(container: Manifest) -> str:
    return str(container.get("name") or "")[:63]


def _rank(reason: str) -> int:
    return _RANKS.index(reason) if reason in _RANKS else len(_RANKS)


def _last_time(event: Manifest) -> datetime:
    """Return when an Event was last reported; the smallest time for one without a time."""
    times = (
        event.get("lastTimestamp"),
        (event.get("series") or {}).get("lastObservedTime"),
        event.get("eventTime"),
    )
    parsed = (parse_time(time) for time in (*times, (event.get("metadata") or {}).get("creationTimestamp")))
    return next((time for time in parsed if time is not None), datetime.min.replace(tzinfo=UTC))


def _unscheduled(status: Manifest) -> Manifest | None:
    """Return the condition of a pod that the scheduler could not place."""
    conditions: Sequence[Manifest] = status.get("conditions") or []
    return next(
        (item for item in conditions if item.get("type") == "PodScheduled" and item.get("status") == "False"),
        None,
    )


def _hindrance_of_container(container: Manifest, kind: str = "") -> Hindrance | None:
    """Return what keeps one container from starting; `kind`: empty for the trainer."""
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason, message = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
    if reason == "CreateContainerConfigError":
        secret = _SECRET.search(message)
        if secret:
            return Hindrance(
                SECRET_NOT_FOUND,
                f"there is no Secret {secret[1]} in this namespace: create it; the pod waits for it",
            )
        key = _SECRET_KEY.search(message)
        if key:
            return Hindrance(
                SECRET_NOT_FOUND, f"Secret {key[2]} has no key {key[1]}: add it; the pod waits for it"
            )
    if reason in _IMAGE_REASONS:
        image = str(container.get("image") or "of the profile")
        why = f"({shortened(stable(sentence_of(waiting)), _MAX_REASON_CHARACTERS)})"
        if kind:
            return Hindrance(
                IMAGE_NOT_PULLED,
                f"image {image} of {kind} {_name(container)} cannot be pulled {why}: correct it where it is set, the"
                " profile's podTemplate or the webhook that adds the container",
            )
        return Hindrance(
            IMAGE_NOT_PULLED,
            f"image {image} cannot be pulled {why}: correct the profile's trainerImage, or give its service account"
            " access to the registry",
        )
    return None
