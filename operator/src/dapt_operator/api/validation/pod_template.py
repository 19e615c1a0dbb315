"""Checks a profile's `podTemplate`, which the API server passes on unread, and finds every problem with its path.

A pod that Kubernetes refuses would only show as a Job without pods, so what can be checked beforehand is checked here.
`usable` returns the part of any template, however wrong, that a pod can be made of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Final

from dapt_operator.api.quantity import is_quantity
from dapt_operator.api.v1alpha1.base import IMAGE_PATTERN, MAX_IMAGE, PATTERNS
from dapt_operator.api.validation import pod_fields
from dapt_operator.api.validation.pod_fields import TRAINER, Owner, PodField, Shape
from dapt_operator.api.validation.yaml_source import Path

TemplateProblem = tuple[Path, Any, str]
"""Path below `podTemplate`, the value there (None where the field itself is the fault), and what is wrong."""

CONTAINER_LISTS: Final = ("containers", "initContainers")
"""Fields of a pod that hold containers."""
_PART: Final = {"metadata": pod_fields.METADATA, "spec": pod_fields.POD}


def problems(template: Any) -> Iterator[TemplateProblem]:
    """Yield everything that is wrong with a template, outer fields first. Never raises, whatever it is given."""
    if not isinstance(template, Mapping):
        yield (), template, "must be a block with metadata and spec, as in a Kubernetes pod template"
        return
    for name, value in template.items():
        if name not in _PART:
            yield (name,), None, f"unknown field; a pod template has {' and '.join(_PART)}"
        elif not isinstance(value, Mapping):
            yield (name,), value, f"must be {Shape.BLOCK}"
        else:
            yield from _fields(value, _PART[name], (name,))
    yield from _label_problems(template)
    yield from _spec_problems(template)


def usable(template: Any) -> dict[str, Any]:
    """Return the metadata and spec that the profile owns and that have the right shape; containers have names."""
    if not isinstance(template, Mapping):
        return {"metadata": {}, "spec": {}}
    parts = {name: _usable(template.get(name), fields) for name, fields in _PART.items()}
    for name in CONTAINER_LISTS:
        parts["spec"][name] = [
            item for item in parts["spec"].get(name, []) if isinstance(item.get("name"), str)
        ]
    return parts


def usable_trainer(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a usable spec has for the container that runs the stage."""
    trainer: Mapping[str, Any] = next(
        (item for item in spec.get("containers", []) if item["name"] == TRAINER), {}
    )
    return _usable(trainer, pod_fields.CONTAINER)


def _usable(value: Any, fields: Mapping[str, PodField]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {}
    return {
        name: item
        for name, item in value.items()
        if name in fields
        and fields[name].owner is not Owner.OPERATOR
        and _has_shape(item, fields[name].shape)
    }


def _fields(
    value: Mapping[str, Any], fields: Mapping[str, PodField], path: Path
) -> Iterator[TemplateProblem]:
    for name, item in value.items():
        field = fields.get(name)
        if field is None:
            if path == ("metadata",):
                yield (
                    (*path, name),
                    None,
                    "the Job controller sets this field; write only labels and annotations",
                )
                continue
            near = get_close_matches(str(name), fields, n=1)
            hint = f"; nearest known name is {near[0]!r}" if near else ""
            yield (*path, name), None, f"unknown field{hint}; rename or remove it"
        elif field.owner is Owner.OPERATOR:
            yield (*path, name), None, f"is the operator's own ({field.effect}); remove it"
        elif not _has_shape(item, field.shape):
            yield (*path, name), item, f"must be {field.shape}"


def _has_shape(value: Any, shape: Shape) -> bool:
    if shape is Shape.BLOCK:
        return isinstance(value, Mapping)
    if shape is Shape.BLOCKS:
        return isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value)
    if shape is Shape.TEXT_MAP:
        return isinstance(value, Mapping) and all(isinstance(item, str) for item in value.values())
    if shape is Shape.BOOLEAN:
        return isinstance(value, bool)
    if shape is Shape.NUMBER:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str)


def _label_problems(template: Mapping[str, Any]) -> Iterator[TemplateProblem]:
    labels = _usable(template.get("metadata"), pod_fields.METADATA).get("labels", {})
    for name in labels:
        if str(name).startswith(pod_fields.LABEL_PREFIXES) or name in pod_fields.LABELS:
            yield ("metadata", "labels", name), None, "is the operator's own label; remove it"


def _spec_problems(template: Mapping[str, Any]) -> Iterator[TemplateProblem]:
    spec = _usable(template.get("spec"), pod_fields.POD)
    for kind in CONTAINER_LISTS:
        yield from _container_problems(spec.get(kind, ()), ("spec", kind))
    names: set[str] = set()
    for number, volume in enumerate(spec.get("volumes", ())):
        name, path = volume.get("name"), ("spec", "volumes", number, "name")
        if not isinstance(name, str) or not name:
            yield path, name, "must be a text: every volume has a name"
        elif name in pod_fields.VOLUME_NAMES or name.startswith(pod_fields.CLAIM_VOLUME_PREFIX):
            yield path, name, "one of the operator's own volumes has this name; choose another"
        elif name in names:
            yield path, name, "given twice; choose another"
        else:
            names.add(name)


def _container_problems(containers: Any, path: Path) -> Iterator[TemplateProblem]:
    names: set[str] = set()
    for number, container in enumerate(containers):
        here, name = (*path, number), container.get("name")
        if not isinstance(name, str) or not name:
            yield (*here, "name"), name, f"must be a text: {TRAINER} for the container that runs the stage"
            continue
        if name in names or (path[-1] == "initContainers" and name == TRAINER):
            yield (*here, "name"), name, "given twice; choose another"
        names.add(name)
        if name == TRAINER and path[-1] == "containers":
            yield from _fields(container, pod_fields.CONTAINER, here)
            yield from _trainer_problems(_usable(container, pod_fields.CONTAINER), here)
        elif not isinstance(container.get("image"), str):
            yield (
                (*here, "image"),
                container.get("image"),
                f"must be a text: a container other than {TRAINER} has an image of its own",
            )
        elif len(container["image"]) > MAX_IMAGE or not re.fullmatch(IMAGE_PATTERN, container["image"]):
            yield (*here, "image"), container["image"], f"write {PATTERNS[IMAGE_PATTERN]}"


def _trainer_problems(trainer: Mapping[str, Any], path: Path) -> Iterator[TemplateProblem]:
    for number, variable in enumerate(trainer.get("env", ())):
        name, here = variable.get("name"), (*path, "env", number, "name")
        if not isinstance(name, str) or not name:
            yield here, name, "must be a text: every variable has a name"
        elif is_reserved_variable(name):
            yield here, name, "the operator sets this variable; remove it"
    for number, mount in enumerate(trainer.get("volumeMounts", ())):
        folder, here = mount.get("mountPath"), (*path, "volumeMounts", number, "mountPath")
        if not isinstance(folder, str) or not folder.startswith("/"):
            yield here, folder, "must be a folder's absolute path"
        elif any(_overlap(folder, reserved) for reserved in pod_fields.MOUNT_PATHS):
            yield (
                here,
                folder,
                f"the operator mounts {', '.join(pod_fields.MOUNT_PATHS)} itself; choose another folder",
            )
    resources = trainer.get("resources", {})
    for name in ("requests", "limits"):
        amounts, here = resources.get(name, {}), (*path, "resources", name)
        if not isinstance(amounts, Mapping):
            yield here, amounts, f"must be {Shape.BLOCK}"
            continue
        for resource, amount in amounts.items():
            if not is_quantity(amount):
                yield (*here, resource), amount, "must be a Kubernetes quantity such as '8', '500m' or '64Gi'"


def is_reserved_variable(name: str) -> bool:
    """Return whether the operator sets this environment variable."""
    return name.startswith(pod_fields.ENVIRONMENT_PREFIXES) or name in pod_fields.ENVIRONMENT


def _overlap(folder: str, reserved: str) -> bool:
    # With a slash at the end of both, /work covers /work/data but not /workshop.
    first, second = folder.rstrip("/") + "/", reserved + "/"
    return first.startswith(second) or second.startswith(first)
