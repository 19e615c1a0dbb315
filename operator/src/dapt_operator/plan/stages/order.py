"""Spec, profile and the facts of finished stages -> the configuration and resources of every stage.

One function a stage. What a configuration needs of an earlier stage is an argument, so that nothing can be planned
before it is known.
"""

from __future__ import annotations

from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec, has_blends, has_scores


def kinds(spec: DomainAdaptationSpec) -> tuple[str, ...]:
    """The stages of an adaptation in their order."""
    tuned = ("finetune",) if spec.finetuning is not None else ()
    aligned = ("align",) if spec.preference is not None else ()
    evaluated = ("evaluate",) if has_scores(spec) else ()
    blended = ("blend",) if has_blends(spec) else ()
    return ("prepare", "baseline", "pretrain", *blended, *evaluated, *tuned, *aligned, "verify", "publish")
