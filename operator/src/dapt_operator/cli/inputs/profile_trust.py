"""Refuses what a profile may not set on this machine unless the user has chosen it.

A manifest may come from somebody else, with a profile in the same file. Environment, mounts and images of that profile
would choose what the processes of this machine import and see; `-p` says that the user wants exactly that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.validation.pod_fields import TRAINER

_POD_FIELDS = ("volumes", "initContainers")
_TRAINER_FIELDS = ("env", "envFrom", "volumeMounts")


def trust_problem(manifest: Path, profile: AdaptationProfile) -> str | None:
    """Return why a profile of the manifest's own file is not used; None when it sets nothing of that kind."""
    fields = list(_risky_fields(profile.spec.pod_template or {}))
    if not fields:
        return None
    return (
        f"{manifest}: the profile {profile.metadata.name} in this file sets {', '.join(fields)}, which processes of"
        f" this machine would get; give it by `-p {manifest}` if you trust it, or use `-p local` for this machine's own"
    )


def _risky_fields(template: Mapping[str, Any]) -> Iterator[str]:
    spec = template.get("spec") or {}
    yield from (f"podTemplate.spec.{name}" for name in _POD_FIELDS if spec.get(name))
    for container in spec.get("containers") or ():
        name = container.get("name")
        if name == TRAINER:
            yield from (
                f"{field} of its container {name}" for field in _TRAINER_FIELDS if container.get(field)
            )
        else:
            yield f"the container {name}"
