"""`dapt lint` reports every problem of every file at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.api.validation.problem import grouped
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.inputs.local_inputs import (
    bucket_problems,
    length_problems,
    local_problems,
    text_field_problems,
)
from dapt_operator.cli.inputs.manifests import CheckedDocument, check_file


def lint(paths: Sequence[Path], *, cluster: bool = False) -> tuple[list[str], list[str]]:
    """Return problems (for stderr), and `ok` lines and warnings (for stdout), file by file.

    cluster: check as the cluster does, where file:// addresses are refused; else what they name is looked for.
    """
    problems: list[str] = []
    accepted: list[str] = []
    for path in paths:
        try:
            documents = check_file(path, local=not cluster)
        except UserError as error:
            problems += error.problems
            continue
        for checked in documents:
            found = [*checked.problems, *_missing(checked, path, cluster=cluster)]
            problems += found
            if checked.model is not None and not found:
                accepted.append(f"{path}: ok ({checked.model.kind} {checked.model.metadata.name})")
            accepted += [f"{path}: warning: {text}" for text in checked.warnings]
            if isinstance(checked.model, AdaptationProfile):
                # Rendering pods takes a while to load, and most manifests have no profile.
                from dapt_operator.launchers.render.pod import lifted_restrictions

                accepted += [f"{path}: warning: {text}" for text in lifted_restrictions(checked.model.spec)]
    return problems, accepted


def _missing(checked: CheckedDocument, path: Path, *, cluster: bool) -> list[str]:
    """Return what the document names and cannot have, on this machine or by its name."""
    adaptation = checked.model if isinstance(checked.model, DomainAdaptation) else None
    problems = [] if cluster else local_problems(checked.document, path, adaptation)
    if adaptation is not None:
        problems += bucket_problems(checked.document, adaptation)
        if not cluster:
            problems += length_problems(checked.document, adaptation)
            problems += text_field_problems(checked.document, adaptation)
    return [f"{path}: {problem}" for problem in grouped(problems)]
