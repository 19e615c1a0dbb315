"""Whether a spec keeps within its profile's limits. All breaches at once."""

from __future__ import annotations

from fnmatch import fnmatchcase

from dapt_operator.api.v1alpha1.conditions import OUTSIDE_PROFILE_LIMITS
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.observed import Wish
from dapt_operator.plan.sizing.resolve import (
    RefusedError,
    check_batch,
    check_finetuning_batch,
    finetune_gang,
    pretrain_gang,
)
from dapt_operator.plan.stages.common import sources


def admit(wish: Wish, namespace: str) -> tuple[str, str]:
    """Reason and message of what the profile does not allow; two empty strings when it allows all."""
    if wish.spec is None or wish.profile is None:
        return wish.reason, wish.message
    breaches = problems(wish, namespace)
    if not breaches:
        return _possible(wish.spec, wish.profile)
    return OUTSIDE_PROFILE_LIMITS, f"profile {wish.profile_name}: " + "; ".join(breaches)


def _possible(spec: DomainAdaptationSpec, profile: AdaptationProfileSpec) -> tuple[str, str]:
    """What can be ruled out before any stage has run."""
    try:
        check_batch(spec, pretrain_gang(spec, profile))
        check_finetuning_batch(spec, finetune_gang(spec, profile))
    except RefusedError as refused:
        return refused.reason, refused.message
    return "", ""


def problems(wish: Wish, namespace: str) -> tuple[str, ...]:
    """One sentence for each breach."""
    spec, profile = wish.spec, wish.profile
    assert spec is not None
    assert profile is not None
    limits, found = profile.limits, []
    if limits.namespaces and not _matches(namespace, limits.namespaces):
        found.append(f"namespace {namespace} may not use it (allowed: {', '.join(limits.namespaces)})")
    if limits.nodes is not None and spec.resources.nodes > limits.nodes:
        found.append(f"spec.resources.nodes is {spec.resources.nodes}; at most {limits.nodes} are allowed")
    per_node = profile.accelerator.per_node
    if spec.resources.gpus_per_node is not None and spec.resources.gpus_per_node > per_node:
        found.append(f"spec.resources.gpusPerNode is {spec.resources.gpus_per_node}; a node has {per_node}")
    if (
        limits.gpu_hours is not None
        and spec.limits.gpu_hours is not None
        and spec.limits.gpu_hours > limits.gpu_hours
    ):
        found.append(
            f"spec.limits.gpuHours is {spec.limits.gpu_hours:g}; at most {limits.gpu_hours:g} are allowed"
        )
    if limits.sources:
        found += [
            f"source {source} is not allowed (allowed: {', '.join(limits.sources)})"
            for source in sources(spec)
            if not _matches(source, limits.sources)
        ]
    found += [
        f"Secret {credential.secret_name} is not allowed (allowed: {', '.join(limits.secret_names)})"
        for credential in spec.credentials
        if not _matches(credential.secret_name, limits.secret_names)
    ]
    wanted = spec.priority_class_name
    if wanted is not None and wanted not in limits.priority_classes:
        allowed = ", ".join(limits.priority_classes) or "none"
        found.append(f"spec.priorityClassName {wanted} is not allowed (allowed: {allowed})")
    return tuple(found)


def _matches(value: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(value, pattern) for pattern in patterns)
