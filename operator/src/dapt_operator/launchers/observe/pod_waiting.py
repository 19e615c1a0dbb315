"""Why a pod does not start: the words of kubelet and scheduler, and those of them that wait for a person.

The sentences are those of Kubernetes 1.31 to 1.36; what is not recognized stays a waiting reason and nothing more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dapt_operator.api.v1alpha1.conditions import CLAIM_NOT_FOUND, IMAGE_NOT_PULLED, REFUSED, SECRET_NOT_FOUND
from dapt_operator.stage_run import Hindrance

_STARTING = ("ContainerCreating", "PodInitializing")
_IMAGE_REASONS = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
)
_SECRET = re.compile(r'secret "([^"]{1,253})" not found')
_SECRET_KEY = re.compile(r"couldn't find key (\S{1,253}) in Secret \S{0,64}/(\S{1,253})")
_CLAIM = re.compile(r'persistentvolumeclaim "([^"]{1,253})" not found')
_POD_NAME = re.compile(r'pods "[^"]{1,253}" is')
_SHOWN = 300


def waiting_sentence(status: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """The kubelet's reason, else the scheduler's, as `Reason: sentence`; empty when it just starts."""
    waiting = state.get("waiting") or {}
    if waiting.get("reason") and waiting["reason"] not in _STARTING:
        return sentence_of(waiting)
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return sentence_of(condition)
    return sentence_of(waiting)


def sentence_of(item: Mapping[str, Any]) -> str:
    """`Reason: message` of a container state or a condition, as far as it has them."""
    reason, message = str(item.get("reason") or ""), str(item.get("message") or "")
    return f"{reason}: {message}" if reason and message else reason or message


def refusal_of(said: str) -> Hindrance | str:
    """What keeps a Job from getting its pods: a full quota is waited out, anything else waits for a person.

    Args:
        said: the Job controller's sentence; the names of the pods in it change at each of its tries.
    """
    said = _POD_NAME.sub("its pods are", said.removeprefix("Error creating: "))[:_SHOWN]
    if "exceeded quota" in said:
        return f"PodsRefused: {said}"
    return Hindrance(REFUSED, f"{said}; once its pods are allowed, this goes on by itself")


def hindrance_of(status: Mapping[str, Any]) -> Hindrance | None:
    """What a person must do before this pod can start; None when nothing is known to hinder it."""
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            claim = _CLAIM.search(str(condition.get("message") or ""))
            if claim:
                return Hindrance(
                    CLAIM_NOT_FOUND,
                    f"there is no PersistentVolumeClaim {claim[1]} in this namespace: create it, or name another",
                )
    for container in status.get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting") or {}
        found = _of_container(str(waiting.get("reason") or ""), str(waiting.get("message") or ""), container)
        if found is not None:
            return found
    return None


def _of_container(reason: str, message: str, container: Mapping[str, Any]) -> Hindrance | None:
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
            f"image {image} cannot be pulled ({reason}: {message[:_SHOWN]}): correct the profile's trainerImage, or"
            " give its service account access to the registry",
        )
    return None
