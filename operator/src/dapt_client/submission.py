"""Creates or changes adaptations from documents: every document is checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dapt_client.access import ClusterAccess
from dapt_client.documents import CheckedDocument
from dapt_client.errors import UserError
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.stage_run import Manifest


@dataclass(frozen=True)
class Submitted:
    """What became of one adaptation."""

    resource: Manifest
    """As stored."""
    done: Literal["created", "changed", "unchanged"]


def submit_documents(access: ClusterAccess, documents: Sequence[CheckedDocument]) -> list[Submitted]:
    """Create or change the adaptations among checked documents, in their order; profiles are left out.

    Raises:
        UserError: every problem of the documents at once, or what the API server refuses.
    """
    adaptations = [document for document in documents if isinstance(document.model, DomainAdaptation)]
    problems = [problem for document in documents for problem in document.problems]
    problems += [problem for document in adaptations for problem in _namespace_problem(access, document)]
    if problems:
        raise UserError(problems)
    return [_apply(access, document.document.data) for document in adaptations]


def _namespace_problem(access: ClusterAccess, document: CheckedDocument) -> list[str]:
    namespace = document.model.metadata.namespace if document.model is not None else None
    if namespace in (None, access.namespace):
        return []
    return [
        f"{document.path}: metadata.namespace: {namespace!r} is not the namespace of this command"
        f" ({access.namespace}); give -n {namespace}, or remove the field"
    ]


def _apply(access: ClusterAccess, data: Mapping[str, Any]) -> Submitted:
    metadata = {
        key: data["metadata"][key]
        for key in ("name", "labels", "annotations")
        if data["metadata"].get(key) is not None
    }
    before = access.find(str(data["metadata"]["name"]))
    stored = access.apply(
        {
            "apiVersion": data["apiVersion"],
            "kind": data["kind"],
            "metadata": metadata | {"namespace": access.namespace},
            "spec": data["spec"],
        }
    )
    if before is None:
        return Submitted(stored, "created")
    return Submitted(stored, "unchanged" if _is_same(before, stored) else "changed")


def _is_same(before: Manifest, after: Manifest) -> bool:
    labels = [
        (item["metadata"].get("labels"), item["metadata"].get("annotations")) for item in (before, after)
    ]
    return before.get("spec") == after.get("spec") and labels[0] == labels[1]
