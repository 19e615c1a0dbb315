"""Reads raw objects into models, each value once: a resource is reconciled often and seldom changes.

The caches are memory, not state: they are keyed by the whole text of what is read, and bounded.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from dapt_contract.envelope import digest_of
from dapt_operator.api.v1alpha1.conditions import INVALID_SPEC, NOT_SUPPORTED
from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.api.validation.problem import Problem
from dapt_operator.api.validation.validate import check
from dapt_operator.api.validation.yaml_source import YamlDocument
from dapt_operator.plan.stored_status import read_stored_status
from dapt_operator.stage_run import Manifest, plain

MAX_SPECS: Final = 256
"""Specs in the cache, about 30 KB each."""
MAX_PROFILES: Final = 64
MAX_STATUSES: Final = 16
"""Statuses in the cache, about half a MB each of a long adaptation. Those that only wait are not read again."""
_USER_METADATA: Final = ("name", "namespace", "labels", "annotations")
"""Metadata that users write. The rest changes with every write, which would make the cache useless."""


@dataclass(frozen=True)
class ReadAdaptation:
    """A DomainAdaptation, or why it is not valid."""

    model: DomainAdaptation | None
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class ReadProfile:
    """An AdaptationProfile with its digest, or why it is not valid."""

    model: AdaptationProfile | None
    digest: str = ""
    message: str = ""


@dataclass(frozen=True)
class ReadStatus:
    """A status, as far as it can be read."""

    model: DomainAdaptationStatus
    is_whole: bool
    """False where a part of the stored status could not be read: then it is written again."""


def read_adaptation(resource: Manifest, *, local: bool) -> ReadAdaptation:
    """Return the resource, checked by itself; `local`: whether `file://` sources can be read where the stages run."""
    return _adaptation(_text_of(resource), local)


def read_profile(profile: Manifest, *, local: bool) -> ReadProfile:
    """Return the profile, checked by itself; `local`: as for `read_adaptation`."""
    return _profile(_text_of(profile), local)


def read_status(resource: Manifest) -> ReadStatus:
    """Return the stored status as far as it can be read; an empty one when there is none yet."""
    return _status(json.dumps(resource.get("status") or {}, sort_keys=True, default=plain))


def _text_of(manifest: Manifest) -> str:
    metadata = manifest.get("metadata") or {}
    kept = {
        "apiVersion": manifest.get("apiVersion"),
        "kind": manifest.get("kind"),
        "metadata": {name: metadata[name] for name in _USER_METADATA if metadata.get(name) is not None},
        "spec": manifest.get("spec"),
    }
    return json.dumps(kept, sort_keys=True, default=plain)


@lru_cache(maxsize=MAX_SPECS)
def _adaptation(text: str, local: bool) -> ReadAdaptation:
    model, problems = check(YamlDocument(json.loads(text)), local=local)
    if isinstance(model, DomainAdaptation):
        return ReadAdaptation(model)
    is_unsupported = all(not problem.is_supported for problem in problems)
    message = "; ".join(_sentence(problem) for problem in problems)
    return ReadAdaptation(None, NOT_SUPPORTED if is_unsupported else INVALID_SPEC, message)


@lru_cache(maxsize=MAX_PROFILES)
def _profile(text: str, local: bool) -> ReadProfile:
    model, problems = check(YamlDocument(json.loads(text)), local=local)
    if isinstance(model, AdaptationProfile):
        return ReadProfile(model, digest_of(model.spec.to_dict()))
    details = "; ".join(_sentence(problem) for problem in problems)
    return ReadProfile(None, message=f"the profile is not valid: {details}")


@lru_cache(maxsize=MAX_STATUSES)
def _status(text: str) -> ReadStatus:
    stored = read_stored_status(json.loads(text))
    return ReadStatus(stored.model, is_whole=not stored.left_out)


def _sentence(problem: Problem) -> str:
    """Return a problem's own text without the line, since the stored object has no lines."""
    return re.sub(r" \(line \d+\): ", ": ", str(problem), count=1)
