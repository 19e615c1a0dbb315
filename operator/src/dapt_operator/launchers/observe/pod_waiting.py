"""Reads why a pod does not start from messages of kubelet and scheduler, and which of them require user action.

The patterns match the messages of Kubernetes 1.31 to 1.36. A message that matches none remains a waiting reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from dapt_contract.sentences import shortened
from dapt_operator.api.v1alpha1.conditions import CLAIM_NOT_FOUND, IMAGE_NOT_PULLED, REFUSED, SECRET_NOT_FOUND
from dapt_operator.stage_run import Hindrance, Manifest

_STARTING: Final = ("ContainerCreating", "PodInitializing")
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
_POD_NAME: Final = re.compile(r'pods "[^"]{1,253}" is')
_MAX_REASON_CHARACTERS: Final = 300


def waiting_sentence(status: Manifest, state: Manifest) -> str:
    """Return the kubelet's reason, else the scheduler's, as `Reason: message`; empty for a pod that is starting."""
    waiting = state.get("waiting") or {}
    # The kubelet knows more than the scheduler: it has got the pod already.
    if waiting.get("reason") and waiting["reason"] not in _STARTING:
        return sentence_of(waiting)
    unscheduled = _unscheduled(status)
    return sentence_of(waiting if unscheduled is None else unscheduled)


def sentence_of(item: Manifest) -> str:
    """Return `Reason: message` of a container state or a condition, or the one of the two that it has."""
    reason, message = str(item.get("reason") or ""), str(item.get("message") or "")
    return f"{reason}: {message}" if reason and message else reason or message


def refusal_of(message: str) -> Hindrance | str:
    """Return what keeps a Job from getting its pods: a waiting reason for a full quota, else a hindrance.

    A quota becomes free without user action; a policy or a missing right does not.

    Args:
        message: of the Job controller.
    """
    # The message names the pod, whose random suffix differs in each attempt of the controller: the condition would
    # change, and be written, each time.
    reason = _POD_NAME.sub("its pods are", message.removeprefix("Error creating: "))
    reason = shortened(reason, _MAX_REASON_CHARACTERS)
    if "exceeded quota" in reason:
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
    hindrances = (_hindrance_of_container(container) for container in status.get("containerStatuses") or [])
    return next((hindrance for hindrance in hindrances if hindrance is not None), None)


def _unscheduled(status: Manifest) -> Manifest | None:
    """Return the condition of a pod that the scheduler could not place."""
    conditions: Iterable[Manifest] = status.get("conditions") or []
    return next(
        (item for item in conditions if item.get("type") == "PodScheduled" and item.get("status") == "False"),
        None,
    )


def _hindrance_of_container(container: Manifest) -> Hindrance | None:
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
        return Hindrance(
            IMAGE_NOT_PULLED,
            f"image {image} cannot be pulled ({reason}: {shortened(message, _MAX_REASON_CHARACTERS)}): correct the"
            " profile's trainerImage, or give its service account access to the registry",
        )
    return None
