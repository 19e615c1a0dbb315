"""Reaches a cluster as its user: finds the kubeconfig, reads and writes objects, and turns refusals into sentences."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from dapt_client.errors import NoAnswerError, UserError
from dapt_operator.api import names
from dapt_operator.cluster.answers import stored_object
from dapt_operator.cluster.kubernetes.client import ApiServerClient
from dapt_operator.cluster.kubernetes.connection import Connection, service_account
from dapt_operator.cluster.kubernetes.errors import ApiError, ApiUnavailableError, NoConnectionError
from dapt_operator.cluster.kubernetes.kubeconfig import load_kubeconfig
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.cluster.kubernetes.streams import stream_lines
from dapt_operator.launchers.render.pod import CONTAINER
from dapt_operator.stage_run import JsonObject, Manifest

FIELD_MANAGER: Final = "dapt-cli"
"""Apart from the operator's, so that `kubectl get --show-managed-fields` tells who wrote a field."""
DEFAULT_NAMESPACE: Final = "default"
_ATTEMPTS: Final = 2
"""Somebody waits for the answer."""
_MAX_LOG_BYTES: Final = 64 * 1024 * 1024
_LOG_SECONDS: Final = 60.0
_ADAPTATIONS: Final = KINDS["DomainAdaptation"]


@dataclass(frozen=True)
class ClusterOptions:
    """Says which cluster and which namespace a command is about."""

    namespace: str | None = None
    """None: the kubeconfig's context's, else `default`."""
    context: str | None = None
    """Context of the kubeconfig; None: the current one."""


class ClusterAccess:
    """Requests of one command to the API server. Every failure is raised as a `UserError`."""

    def __init__(self, connection: Connection, namespace: str | None = None) -> None:
        self.connection = connection
        self.namespace = namespace or connection.namespace or DEFAULT_NAMESPACE
        self._client = ApiServerClient(connection, field_manager=FIELD_MANAGER)

    # --- adaptations ---

    def adaptation(self, name: str) -> Manifest:
        """Return an adaptation as stored.

        Raises:
            UserError: there is none of this name; says which there are.
        """
        found = self.find(name)
        if found is None:
            others = ", ".join(str(item["metadata"]["name"]) for item in self.adaptations())
            existing = f"there are: {others}" if others else "there is none at all"
            raise UserError(
                f"no adaptation {name!r} in namespace {self.namespace}; {existing}; name one, give its namespace with"
                " -n, or --local for a run in a folder of this machine"
            )
        return found

    def find(self, name: str) -> Manifest | None:
        """Return an adaptation as stored; None when there is none of this name."""
        with self._explained(f"read adaptation {name}"):
            return self._get(_ADAPTATIONS.path(self.namespace, name))

    def adaptations(self, *, all_namespaces: bool = False) -> list[JsonObject]:
        """Return the adaptations of the namespace, or of all, ordered by name."""
        namespace = None if all_namespaces else self.namespace
        items = self._list(_ADAPTATIONS.collection(namespace), "list adaptations")
        return sorted(
            items, key=lambda item: (item["metadata"].get("namespace", ""), item["metadata"]["name"])
        )

    def apply(self, manifest: Manifest) -> Manifest:
        """Create or change an adaptation so that it is as written, server-side, and return it as stored."""
        name = str(manifest["metadata"]["name"])
        with self._explained(f"write adaptation {name}"):
            return stored_object(self._client.apply(_ADAPTATIONS.path(self.namespace, name), manifest))

    def change_spec(self, name: str, change: Manifest) -> Manifest:
        """Merge a change into the spec of an adaptation and return it as stored."""
        self.adaptation(name)
        with self._explained(f"write adaptation {name}"):
            path = _ADAPTATIONS.path(self.namespace, name)
            return stored_object(self._client.merge(path, {"spec": change}))

    def watch(self, name: str, resource_version: str, seconds: int) -> Iterator[bytes]:
        """Yield the events of a watch on one adaptation, each a line of JSON, until the server ends the watch.

        Raises:
            ApiError: as `stream_lines`; here the caller decides, since a cut watch is started again.
        """
        query: dict[str, str | int] = {
            "watch": "true",
            "fieldSelector": f"metadata.name={name}",
            "resourceVersion": resource_version,
            "timeoutSeconds": seconds,
        }
        return stream_lines(
            self.connection, _ADAPTATIONS.collection(self.namespace), query, silence_seconds=seconds + 10.0
        )

    # --- what belongs to an adaptation ---

    def pods(self, adaptation: Manifest) -> list[JsonObject]:
        """Return the pods of an adaptation, oldest first."""
        metadata = adaptation["metadata"]
        selector = f"{names.LABEL_NAME}={metadata['name']},{names.LABEL_UID}={metadata.get('uid', '')}"
        pods = self._list(KINDS["Pod"].collection(self.namespace), "list pods", {"labelSelector": selector})
        return sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp") or ""))

    def events(self, kind: str, name: str) -> list[JsonObject]:
        """Return the Events about an object, oldest first."""
        selector = f"involvedObject.kind={kind},involvedObject.name={name}"
        events = self._list(
            KINDS["Event"].collection(self.namespace), "list Events", {"fieldSelector": selector}
        )
        return sorted(
            events, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or "")
        )

    def log(self, pod: str, tail: int | None) -> list[str] | None:
        """Return the last lines of a pod's trainer; None when the pod or its log is gone, or has not begun."""
        query: dict[str, str | int] = {"container": CONTAINER} | ({} if tail is None else {"tailLines": tail})
        path = f"{KINDS['Pod'].path(self.namespace, pod)}/log"
        with self._explained(f"read the log of pod {pod}"):
            try:
                content = self._client.text(
                    path, query, max_bytes=_MAX_LOG_BYTES, timeout_seconds=_LOG_SECONDS
                )
            except ApiError as error:
                if error.status in (400, 404):  # 400: the container has not started
                    return None
                raise
        return content.decode(errors="replace").splitlines()

    def follow_log(self, pod: str, tail: int | None) -> Iterator[str]:
        """Yield the lines of a pod's trainer as they are written, until it ends."""
        query: dict[str, str | int] = {"container": CONTAINER, "follow": "true"}
        path = f"{KINDS['Pod'].path(self.namespace, pod)}/log"
        with self._explained(f"follow the log of pod {pod}"):
            tail_query = {} if tail is None else {"tailLines": tail}
            for line in stream_lines(self.connection, path, query | tail_query, silence_seconds=3600.0):
                yield line.decode(errors="replace")

    # --- profiles ---

    def profile(self, name: str | None) -> Manifest:
        """Return the profile of this name, or the one that is marked as default.

        Raises:
            UserError: there is none, or more than one is marked.
        """
        if name is not None:
            with self._explained(f"read profile {name}"):
                found = self._get(KINDS["AdaptationProfile"].path(None, name))
            if found is None:
                raise UserError(
                    f"spec.profile: {name!r} is not in the cluster; there are: {self._profile_names()}; name one"
                )
            return found
        marked = [
            item
            for item in self._profiles()
            if (item["metadata"].get("annotations") or {}).get(f"{names.GROUP}/default") == "true"
        ]
        if len(marked) == 1:
            return {"apiVersion": names.API_VERSION, "kind": "AdaptationProfile", **marked[0]}
        which = "several profiles are" if marked else "no profile is"
        raise UserError(
            f"spec.profile is left out and {which} marked as default in the cluster; name one of"
            f" {self._profile_names()}"
        )

    def _profiles(self) -> list[JsonObject]:
        return self._list(KINDS["AdaptationProfile"].collection(), "list profiles")

    def _profile_names(self) -> str:
        return ", ".join(sorted(str(item["metadata"]["name"]) for item in self._profiles())) or "none"

    def _get(self, path: str) -> Manifest | None:
        found = self._client.get(path, attempts=_ATTEMPTS)
        return None if found is None else stored_object(found)

    def _list(self, path: str, what: str, query: Mapping[str, str] | None = None) -> list[JsonObject]:
        with self._explained(what):
            return [
                dict(stored_object(item))
                for page in self._client.pages(path, query, attempts=_ATTEMPTS)
                for item in page.get("items") or []
            ]

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn what the API server refuses into a sentence."""
        try:
            yield
        except ApiUnavailableError as error:
            reason = error.message or error.reason or f"status {error.status}"
            raise NoAnswerError(
                f"cannot {what}: no answer from {self.connection.server} ({reason}); check the network and the"
                " kubeconfig's context, then try again"
            ) from None
        except ApiError as error:
            error_class = NoAnswerError if error.status in (401, 403) else UserError
            raise error_class(f"cannot {what} in namespace {self.namespace}: {_reason(error)}") from None
        except ValueError as error:
            raise NoAnswerError(
                f"cannot {what}: {error}; check that {self.connection.server} is the API server of a cluster"
            ) from None


def _reason(error: ApiError) -> str:
    message = error.message or error.reason or f"status {error.status}"
    match error.status:
        case 401:
            return f"the credentials are not accepted ({message}); log in to the cluster again"
        case 403:
            return f"{message}; ask the cluster's administrators for this right"
        case 404:
            return f"{message}; install dapt in the cluster, or choose another context with --context"
        case 400 | 422:
            return f"{message}; correct the field that it names"
    return f"{message}; try again"


def open_cluster(options: ClusterOptions, environment: Mapping[str, str] = os.environ) -> ClusterAccess:
    """Return the access to the cluster of the kubeconfig; in a pod without one, that of its service account.

    Raises:
        UserError: neither of them can be used.
    """
    try:
        connection = load_kubeconfig(environment, options.context)
    except NoConnectionError as error:
        account = None
        with contextlib.suppress(NoConnectionError):
            account = service_account(environment)
        if account is None or options.context is not None:
            raise UserError(
                f"no cluster to ask: {error}; set KUBECONFIG to a file that can be used, or work on this machine with"
                " `dapt run` and the option --local of status, report and rejudge"
            ) from None
        connection = account
    try:
        return ClusterAccess(connection, options.namespace)
    except NoConnectionError as error:
        raise UserError(
            f"no cluster to ask: {error}; correct the kubeconfig, or choose another context"
        ) from None
