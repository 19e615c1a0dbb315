"""`dapt submit`, `suspend`, `resume` and `pin`: the changes of a spec that a user makes, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dapt_client.access import ClusterAccess
from dapt_client.documents import check_file
from dapt_client.resources import status_of
from dapt_client.submission import Submitted, submit_documents
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.cli.errors import UserError
from dapt_operator.stage_run import Manifest

_SHOWN_CANDIDATES = 20


def submit(access: ClusterAccess, manifests: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Create or change the adaptations of the files; return what was done with each, and their names.

    Every file is checked before anything is written.

    Raises:
        UserError: every problem of the files at once, or what the API server refuses.
    """
    documents = [document for path in manifests for document in check_file(path, local=False)]
    adaptations = [document for document in documents if isinstance(document.model, DomainAdaptation)]
    if not adaptations and not any(document.problems for document in documents):
        raise UserError(f"{manifests[0]}: has no DomainAdaptation; give the manifest of one")
    submitted = iter(submit_documents(access, documents))
    lines = [
        f"{document.path}: warning: {warning}" for document in adaptations for warning in document.warnings
    ]
    names = []
    for document in documents:
        if document in adaptations:
            result = next(submitted)
            names.append(str(result.resource["metadata"]["name"]))
            lines.append(_submitted_line(access, names[-1], result))
        elif document.model is not None:
            lines.append(
                f"{document.path}: profile {document.model.metadata.name} is not sent: profiles are the cluster's, and"
                " its administrators apply them with kubectl"
            )
    return lines, names


def _submitted_line(access: ClusterAccess, name: str, submitted: Submitted) -> str:
    note = f"; it is suspended, `dapt resume {name}` starts it" if _is_suspended(submitted.resource) else ""
    return f"{access.namespace}/{name}: {submitted.done}{note}"


def _is_suspended(resource: Manifest) -> bool:
    return bool((resource.get("spec") or {}).get("suspend"))


def set_suspended(access: ClusterAccess, name: str, *, suspend: bool) -> str:
    """Suspend or resume an adaptation; return what was done."""
    title = f"{access.namespace}/{name}"
    if _is_suspended(access.adaptation(name)) == suspend:
        return f"{title}: {'is suspended already' if suspend else 'is not suspended'}"
    access.change_spec(name, {"suspend": suspend})
    if suspend:
        return f"{title}: suspended; a running stage saves first, and `dapt resume {name}` continues it"
    return f"{title}: resumed; `dapt watch {name}` shows it"


def pin(access: ClusterAccess, name: str, candidate: str | None) -> str:
    """Let the user's candidate be selected in place of the one with the largest gain; None removes the pin.

    Raises:
        UserError: no candidate has this id.
    """
    title = f"{access.namespace}/{name}"
    if candidate is None:
        access.change_spec(name, {"selection": {"pin": None}})
        return f"{title}: pin removed; the largest gain decides"
    known = [row.id for row in status_of(access.adaptation(name)).candidates]
    if candidate not in known:
        shown = ", ".join(known[:_SHOWN_CANDIDATES]) or "none so far"
        raise UserError(f"{title}: no candidate {candidate!r}; there are: {shown}; name one of them")
    access.change_spec(name, {"selection": {"pin": candidate}})
    return f"{title}: {candidate} is pinned; the gates still judge it"
