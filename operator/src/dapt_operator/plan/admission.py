"""Admits a spec that keeps within its profile's limits; a refusal lists all breaches at once."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase, translate
from typing import Final

from dapt_operator.api.v1alpha1.base import camel_case
from dapt_operator.api.v1alpha1.conditions import OUTSIDE_PROFILE_LIMITS
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.observed import DesiredState, Refusal
from dapt_operator.plan.sizing.model_fit.batch import check_finetuning_batch, check_pretraining_batch
from dapt_operator.plan.sizing.resolve import (
    RefusedError,
    finetune_layouts,
    pretrain_layout,
)
from dapt_operator.plan.stage_parts.addresses import claims, sources

HARNESS_SCHEME: Final = "harness://"
"""Begins what a task of the harness is judged as; which data sets it reads, only the harness knows."""
_ANY_DATA_SET: Final = "hf://datasets/\0/\0"
"""An address that no pattern matches but one that allows every data set of the hub."""
_END: Final = translate("").removeprefix("(?s:)")
"""Ends what `fnmatch.translate` returns."""


def admit(desired: DesiredState | Refusal, namespace: str) -> DesiredState | Refusal:
    """Return what may be worked on, or why nothing may; a refusal stays as it is."""
    if isinstance(desired, Refusal):
        return desired
    breaches = limit_breaches(desired, namespace)
    if breaches:
        message = f"profile {desired.profile_name}: {'; '.join(breaches)}"
        return Refusal(OUTSIDE_PROFILE_LIMITS, message, desired.spec, desired.profile.retries)
    try:
        # Refused now, what no stage has to find out first.
        check_pretraining_batch(desired.spec, pretrain_layout(desired.spec, desired.profile))
        check_finetuning_batch(desired.spec, finetune_layouts(desired.spec, desired.profile))
    except RefusedError as refused:
        return Refusal(refused.reason, refused.message, desired.spec, desired.profile.retries)
    return desired


def limit_breaches(desired: DesiredState, namespace: str) -> tuple[str, ...]:
    """Return one sentence for each limit of the profile that the spec exceeds."""
    spec, profile = desired.spec, desired.profile
    limits = profile.limits
    breaches: list[str] = []
    if limits.namespaces and not _matches(namespace, limits.namespaces):
        breaches.append(f"namespace {namespace} may not use it (allowed: {', '.join(limits.namespaces)})")
    if limits.nodes is not None and spec.resources.nodes > limits.nodes:
        breaches.append(f"spec.resources.nodes is {spec.resources.nodes}; at most {limits.nodes} are allowed")
    per_node = profile.accelerator.per_node
    if spec.resources.gpus_per_node is not None and spec.resources.gpus_per_node > per_node:
        breaches.append(
            f"spec.resources.gpusPerNode is {spec.resources.gpus_per_node}; a node has {per_node}"
        )
    breaches += _breaches_of_stages(spec, profile)
    if (
        limits.gpu_hours is not None
        and spec.limits.gpu_hours is not None
        and spec.limits.gpu_hours > limits.gpu_hours
    ):
        breaches.append(
            f"spec.limits.gpuHours is {spec.limits.gpu_hours:g}; at most {limits.gpu_hours:g} are allowed"
        )
    breaches += _breaches_of_addresses(spec, profile)
    breaches += [
        f"Secret {credential.secret_name} is not allowed (allowed: {', '.join(limits.secret_names)})"
        for credential in spec.credentials
        if not _matches(credential.secret_name, limits.secret_names)
    ]
    priority_class = spec.priority_class_name
    if priority_class is not None and priority_class not in limits.priority_classes:
        allowed = ", ".join(limits.priority_classes) or "none"
        breaches.append(f"spec.priorityClassName {priority_class} is not allowed (allowed: {allowed})")
    return tuple(breaches)


def _breaches_of_addresses(spec: DomainAdaptationSpec, profile: AdaptationProfileSpec) -> list[str]:
    """Return one sentence for each place that may not be read or written."""
    limits, breaches = profile.limits, []
    if limits.sources:
        allowed = ", ".join(limits.sources)
        breaches += [
            _refusal("source", source, allowed)
            for source in sources(spec)
            if not _is_within(source, limits.sources)
        ]
        breaches += [
            f"task {task.name} reads data sets of the hub that the harness names, which is not allowed (allowed:"
            f" {allowed}; {HARNESS_SCHEME}{task.name} would allow it)"
            for task in (*spec.evaluation.domain.tasks, *spec.evaluation.general.tasks)
            if task.source is None
            and not _matches(HARNESS_SCHEME + task.name, limits.sources)
            and not _matches(_ANY_DATA_SET, limits.sources)
        ]
    destination = spec.output.destination
    if limits.destinations and not _is_within(destination, limits.destinations):
        breaches.append(_refusal("destination", destination, ", ".join(limits.destinations)))
    own_claims = (profile.storage.existing_claim, profile.model_cache and profile.model_cache.existing_claim)
    for claim in claims((destination,)):
        if claim in own_claims:
            breaches.append(
                f"destination {destination} is on the claim {claim}, which holds the work of adaptations; write to"
                " another claim"
            )
    return breaches


def _refusal(role: str, address: str, allowed: str) -> str:
    detail = (
        ", since '..', '//', '::' or an encoded character hides where it leads" if _is_hidden(address) else ""
    )
    return f"{role} {address} is not allowed{detail} (allowed: {allowed})"


def _is_within(address: str, patterns: tuple[str, ...]) -> bool:
    """Whether an address matches a pattern as it is written, and leads where it says."""
    return not _is_hidden(address) and any(_covers(pattern, address) for pattern in patterns)


def _covers(pattern: str, address: str) -> bool:
    """Whether a pattern matches an address, and with it every file that the address's own wildcards stand for.

    Only '*' stands for any text. A '?' or a set of the pattern is one character of a name, so it does not match a
    wildcard: `v*` of an address would be read as one more `v?` of the limits, and opened as all that begins with v.
    """
    parts = re.findall(r"\*|\[!?\]?[^]]*\]|.", pattern, flags=re.DOTALL)
    one = [part if part == "*" else f"(?![*?[]){translate(part)}" for part in parts]
    regex = "".join(".*" if part == "*" else part.removesuffix(_END) for part in one)
    return re.fullmatch(regex, address, flags=re.DOTALL) is not None


def _is_hidden(address: str) -> bool:
    scheme, _, path = address.partition("://")
    if scheme == "hf":
        path = re.sub("%2[fF]", "", path)  # the hub's own way to write a revision with a slash
    return re.search(r"(^|/)\.\.(/|$)|//|::|%[0-9A-Fa-f]{2}", path) is not None


def _breaches_of_stages(spec: DomainAdaptationSpec, profile: AdaptationProfileSpec) -> list[str]:
    """Return one sentence for each value by which a stage's own resources exceed a limit."""
    breaches: list[str] = []
    per_node, max_nodes = profile.accelerator.per_node, profile.limits.nodes
    for name, own in spec.stage_resources:
        # By name: not every stage can have GPUs, or nodes, of its own.
        gpus, nodes = getattr(own, "gpus", None), getattr(own, "nodes", None)
        where = f"spec.stageResources.{camel_case(name)}"
        if gpus is not None and gpus > per_node:
            breaches.append(f"{where}.gpus is {gpus}; a node has {per_node}")
        if nodes is not None and max_nodes is not None and nodes > max_nodes:
            breaches.append(f"{where}.nodes is {nodes}; at most {max_nodes} are allowed")
    return breaches


def _matches(value: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(value, pattern) for pattern in patterns)
