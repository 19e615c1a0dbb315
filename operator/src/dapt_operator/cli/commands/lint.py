"""`dapt lint` reports every problem of every file at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.inputs.manifests import check_file
from dapt_operator.launchers.render.pod import lifted_restrictions


def lint(paths: Sequence[Path], *, cluster: bool = False) -> tuple[list[str], list[str]]:
    """Return problems (for stderr), and `ok` lines and warnings (for stdout), file by file.

    cluster: check as the cluster does, where file:// addresses are refused.
    """
    problems: list[str] = []
    accepted: list[str] = []
    for path in paths:
        try:
            documents = check_file(path, local=not cluster)
        except UserError as error:
            problems += error.problems
            continue
        for document in documents:
            problems += document.problems
            if document.model is not None:
                accepted.append(f"{path}: ok ({document.model.kind} {document.model.metadata.name})")
            if isinstance(document.model, AdaptationProfile):
                accepted += [f"{path}: warning: {text}" for text in lifted_restrictions(document.model.spec)]
    return problems, accepted
