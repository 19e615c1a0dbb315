"""Provides `Client`: submit, status, wait and report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Final

from dapt_client.access import ClusterOptions, open_cluster
from dapt_client.documents import CheckedDocument, check_document, check_file
from dapt_client.errors import NotPublishedError, UserError, WaitTimeoutError
from dapt_client.pages import write_report
from dapt_client.resources import end_of, failure_sentence, is_outdated, status_of
from dapt_client.submission import submit_documents
from dapt_client.updates import Updates
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.api.validation.yaml_source import YamlDocument
from dapt_operator.stage_run import plain

IN_MEMORY: Final = Path("manifest")
"""What messages call a manifest that is no file."""
UNKNOWN_LINE: Final = 0
_LONGEST_WAIT_SECONDS: Final = 3600.0
"""For one update; then the next one is waited for."""

Observer = Callable[[DomainAdaptationStatus], None]


class Client:
    """Adaptations of one namespace of a cluster."""

    def __init__(self, namespace: str | None = None, context: str | None = None) -> None:
        """Open the cluster of the kubeconfig; in a pod without one, that of its service account.

        Args:
            namespace: None: the kubeconfig's context's, else `default`.
            context: context of the kubeconfig; None: the current one.

        Raises:
            UserError: there is no cluster to ask.
        """
        self._access = open_cluster(ClusterOptions(namespace, context))

    @property
    def namespace(self) -> str:
        """Namespace that this client works in."""
        return self._access.namespace

    def submit(self, manifest: str | PathLike[str] | Mapping[str, Any]) -> str:
        """Create an adaptation, or change it where it exists, and return its name.

        Args:
            manifest: a file with one adaptation, or the manifest as a mapping; profiles in it are left out.

        Raises:
            UserError: every problem of the manifest at once, or what the API server refuses.
        """
        documents = _checked(manifest)
        submitted = submit_documents(self._access, documents) if _is_one(documents) else []
        if not submitted:
            found = sum(isinstance(document.model, DomainAdaptation) for document in documents)
            raise UserError(f"the manifest has {found} adaptations; submit one at a time")
        return str(submitted[0].resource["metadata"]["name"])

    def status(self, name: str) -> DomainAdaptationStatus:
        """Return the status of an adaptation; an empty one before its first reconcile.

        Raises:
            UserError: there is none of this name, or it cannot be read.
        """
        return status_of(self._access.adaptation(name))

    def statuses(self) -> dict[str, DomainAdaptationStatus]:
        """Return the status of each adaptation of the namespace by its name."""
        return {str(item["metadata"]["name"]): status_of(item) for item in self._access.adaptations()}

    def wait(
        self, name: str, timeout_seconds: float | None = None, on_update: Observer | None = None
    ) -> DomainAdaptationStatus:
        """Wait until the model of an adaptation is published and return the status. Leaves the adaptation alone.

        An end that was reached before the last change of the spec does not count.

        Args:
            name: of the adaptation.
            timeout_seconds: how long to wait; None: as long as it takes.
            on_update: called with each status, the first at once.

        Raises:
            NotPublishedError: it requires user action, or ended without a published model.
            WaitTimeoutError: it has not ended in this time.
            UserError: there is none of this name, it was deleted, or it cannot be read.
        """
        until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        resource = self._access.adaptation(name)
        with Updates(self._access, resource) as updates:
            while True:
                status = status_of(resource)
                if on_update is not None:
                    on_update(status)
                end = None if is_outdated(resource, status) else end_of(status)
                if end is not None:
                    if problem := failure_sentence(f"{self.namespace}/{name}", end):
                        raise NotPublishedError(problem)
                    return status
                while (update := updates.next(_seconds_left(until))) is None:
                    if until is not None and time.monotonic() >= until:
                        raise WaitTimeoutError(
                            f"{self.namespace}/{name}: not ended after {timeout_seconds:g} s, phase"
                            f" {status.phase or 'Pending'}; it continues, wait longer or look at `dapt explain {name}`"
                        )
                resource = update

    def report(self, name: str, out: str | PathLike[str] = "reports") -> Path:
        """Write the HTML page of an adaptation to OUT/NAME/report.html and return its path; also before it has ended.

        Raises:
            UserError: there is nothing to draw yet, or the page cannot be written.
        """
        return write_report(self._access, name, Path(out))


def _checked(manifest: str | PathLike[str] | Mapping[str, Any]) -> list[CheckedDocument]:
    if isinstance(manifest, Mapping):
        return [check_document(IN_MEMORY, YamlDocument(plain(manifest), line=UNKNOWN_LINE), local=False)]
    return check_file(Path(manifest), local=False)


def _is_one(documents: list[CheckedDocument]) -> bool:
    """Return whether there is one adaptation; also when there are problems, which are then reported."""
    if any(document.problems for document in documents):
        return True
    return sum(isinstance(document.model, DomainAdaptation) for document in documents) == 1


def _seconds_left(until: float | None) -> float:
    left = _LONGEST_WAIT_SECONDS if until is None else until - time.monotonic()
    return min(max(left, 0.0), _LONGEST_WAIT_SECONDS)
