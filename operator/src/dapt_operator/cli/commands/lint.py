"""`dapt lint` reports every problem of every file at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dapt_client.documents import CheckedDocument, check_file, source_name
from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.api.validation.pod_defaults import lifted_restrictions
from dapt_operator.api.validation.problem import grouped
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.inputs.local_inputs import (
    bucket_problems,
    length_problems,
    local_problems,
    text_field_problems,
)
from dapt_operator.cli.inputs.manifests import files_below, is_of_dapt

Judge = Callable[[DomainAdaptation], tuple[list[str], list[str]]]
"""Returns the problems and the warnings of an adaptation that this machine alone cannot know."""


def lint(
    paths: Sequence[Path], *, cluster: bool = False, judge: Judge | None = None
) -> tuple[list[str], list[str]]:
    """Return problems (for stderr), and `ok` lines and warnings (for stdout), file by file.

    Of a folder's files only the documents of dapt count.

    Args:
        paths: files and folders; `-` is stdin.
        cluster: check as the cluster does, where file:// addresses are refused; else what they name is looked for.
        judge: asked about each adaptation that has no problem so far.
    """
    problems: list[str] = []
    accepted: list[str] = []
    for given in paths:
        try:
            files = files_below(given)
        except UserError as error:
            problems += error.problems
            continue
        for path in files:
            found, lines = _lint_file(path, judge, cluster=cluster, in_folder=given.is_dir())
            problems += found
            accepted += lines
    return problems, accepted


def _lint_file(
    path: Path, judge: Judge | None, *, cluster: bool, in_folder: bool
) -> tuple[list[str], list[str]]:
    """Return what `lint` does, of one file."""
    problems: list[str] = []
    accepted: list[str] = []
    name = source_name(path)
    try:
        documents = check_file(path, local=not cluster)
    except UserError as error:
        return list(error.problems), []
    for checked in documents:
        if in_folder and not is_of_dapt(checked.document):
            continue
        found = [*checked.problems, *_missing(checked, path, cluster=cluster)]
        warnings = list(checked.warnings)
        if judge is not None and isinstance(checked.model, DomainAdaptation) and not found:
            judged, doubts = judge(checked.model)
            found += [f"{name}: {problem}" for problem in judged]
            warnings += doubts
        problems += found
        if checked.model is not None and not found:
            accepted.append(f"{name}: ok ({checked.model.kind} {checked.model.metadata.name})")
        accepted += [f"{name}: warning: {text}" for text in warnings]
        if isinstance(checked.model, AdaptationProfile):
            accepted += [f"{name}: warning: {text}" for text in lifted_restrictions(checked.model.spec)]
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
    return [f"{source_name(path)}: {problem}" for problem in grouped(problems)]
