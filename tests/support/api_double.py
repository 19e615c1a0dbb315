"""A small API server in the test's own process: objects, resource versions, conflicts, and odd answers on demand.

It believes what we believe about Kubernetes; what the real one does is for the tests on the real control plane. This
one is for what a real server rarely does: cut connections, broken JSON, 429 at the wrong moment, an answer that never
ends.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from dapt_operator.cluster.kubernetes import Connection, KubernetesCluster, Store
from dapt_operator.cluster.kubernetes.connection import Authorization, FixedAuthorization
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.cluster.port import Key

PLACE = re.compile(
    r"^/(?:api/v1|apis/(?P<group>[^/]+/[^/]+))(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>status|log))?$"
)


@dataclass(frozen=True)
class Odd:
    """An answer that the test gives instead of the server's own."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: bool = False
    """The connection is reset without an answer."""
    after_effect: bool = False
    """The request takes effect before this answer."""
    drip_seconds: float = 0.0
    """One byte each time, for ever, as long as the client listens."""
    silent: bool = False
    """The request is read and never answered; the connection stays open."""
    pieces: Callable[[], Iterator[bytes]] | None = None
    """Yields the body piece by piece, as a watch's; in the place of `body`."""


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Line:
    """The way of a client's requests to the server: each needs the header that it gives."""

    def __init__(self) -> None:
        self.is_cut = False
        self.is_busy = threading.Event()
        """Set when a request waits for the line to be free."""
        self.is_free = threading.Event()
        self.is_free.set()

    def header(self) -> str:
        if self.is_cut:
            raise OSError("the line is cut")
        if not self.is_free.is_set():
            self.is_busy.set()
            self.is_free.wait(60)
        return ""

    def renew(self) -> None:
        pass


class ApiDouble:
    """Use as a context manager."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        """By path."""
        self.requests: list[Request] = []
        self.logs: dict[str, bytes] = {}
        """By name of the pod."""
        self.groups: set[str] = set()
        """API groups that are installed beside those that every server has; `group` of a path."""
        self.away = False
        """Whether every request is answered with 503."""
        self.slow_deletions = False
        """Whether objects stay with a deletionTimestamp, as a Job does while its pods end."""
        self.version = 100
        self.time = "2026-01-31T12:00:00Z"
        """When objects are created."""
        self.changes: list[tuple[str, dict[str, Any]]] = []
        """What a watch of everything would report: `put` or `remove`, with the object; oldest first."""
        self.interfere: Callable[[Request], Odd | None] = lambda _: None
        """Asked first; what it returns is the answer."""
        self._odd: list[tuple[re.Pattern[str], Odd]] = []
        self.lock = threading.RLock()
        """Held while a request is answered; a test holds it to change objects between two requests."""
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> ApiDouble:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.close_all()
        self._server.server_close()
        self._thread.join()

    @property
    def num_connections(self) -> int:
        """How many connections clients have opened so far."""
        return self._server.num_connections

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def connection(self, authorization: Authorization | None = None) -> Connection:
        return Connection(self.url, authorization or FixedAuthorization())

    def odd(self, pattern: str, *answers: Odd) -> None:
        """The next requests whose `METHOD /path` matches get these answers, in this order."""
        with self.lock:
            self._odd += [(re.compile(pattern), answer) for answer in answers]

    @property
    def has_odd(self) -> bool:
        """Whether an odd answer is still to be given."""
        return bool(self._odd)

    def sent(self, pattern: str = "") -> list[Request]:
        """Requests so far whose `METHOD /path` matches."""
        return [request for request in list(self.requests) if re.search(pattern, str(request))]

    def add(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Somebody else creates an object."""
        with self.lock:
            return self._store(path, body)

    def _store(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        old = self.objects.get(path)
        metadata = dict(body.get("metadata") or {})
        metadata["uid"] = old["metadata"]["uid"] if old else metadata.get("uid") or f"uid-{self.version}"
        metadata["resourceVersion"] = str(self.version)
        metadata.setdefault("creationTimestamp", self.time)
        metadata["managedFields"] = [{"manager": "somebody", "fieldsV1": {"f:spec": {}}}]
        self.objects[path] = json.loads(json.dumps(body)) | {"metadata": metadata}
        self.changes.append(("put", self.objects[path]))
        return self.objects[path]

    def remove(self, path: str) -> None:
        """Somebody else, or the garbage collector, deletes an object."""
        with self.lock:
            self.version += 1
            gone = self.objects.pop(path)
            version = {"resourceVersion": str(self.version)}
            self.changes.append(("remove", gone | {"metadata": gone["metadata"] | version}))

    # --- answering ---

    def answer(self, request: Request) -> Odd:
        """What the server does with a request."""
        with self.lock:
            self.requests.append(request)
            if self.away:
                return Odd(503)
            if (answer := self.interfere(request)) is not None:
                if answer.after_effect:
                    self._act(request)
                return answer
            for number, (pattern, odd) in enumerate(self._odd):
                if pattern.search(str(request)):
                    del self._odd[number]
                    if odd.after_effect:
                        self._act(request)
                    return odd
            return self._act(request)

    def _act(self, request: Request) -> Odd:
        if (group := re.fullmatch(r"/apis/([^/]+)", request.path)) is not None:
            served = next((name for name in self.groups if name.startswith(f"{group[1]}/")), None)
            if served is None:
                return _status(404, "NotFound", "no such group")
            return _json({"kind": "APIGroup", "preferredVersion": {"groupVersion": served}})
        place = PLACE.match(request.path)
        if place is None:
            return _status(404, "NotFound", f"no such path {request.path}")
        optional = ("jobset", "kueue")
        if place["group"] and place["group"].startswith(optional) and place["group"] not in self.groups:
            return _status(404, "NotFound", "the server could not find the requested resource")
        name = place["name"]
        if place["sub"] == "log":
            text = self.logs.get(name)
            return Odd(200, {}, text) if text is not None else _status(404, "NotFound", f"no log of {name}")
        if name is None and request.query.get("watch") == "true":
            return self._watch(request, place["plural"])
        if name is None:
            return self._collection(request, place["plural"], place["namespace"])
        path = request.path.removesuffix("/status")
        found = self.objects.get(path)
        if request.method == "PATCH" and "merge-patch" in request.headers["Content-Type"]:
            if found is None:
                return _status(404, "NotFound", f'{place["plural"]} "{name}" not found')
            return _json(self._store(path, _merge_patched(found, request.body)))
        if request.method == "PATCH":
            return _json(self._store(path, _merged(found or {}, request.body)))
        if found is None:
            return _status(404, "NotFound", f'{place["plural"]} "{name}" not found')
        if request.method == "GET":
            return _json(found)
        if request.method == "PUT":
            wanted = request.body["metadata"].get("resourceVersion")
            if wanted and wanted != found["metadata"]["resourceVersion"]:
                return _status(409, "Conflict", "the object has been modified")
            new = found | {"status": request.body["status"]} if place["sub"] else request.body
            return _json(self._store(path, new))
        wanted = (request.body or {}).get("preconditions", {}).get("uid")
        if wanted and wanted != found["metadata"]["uid"]:
            return _status(409, "Conflict", "the UID in the precondition does not match")
        if self.slow_deletions:
            gone = found | {"metadata": found["metadata"] | {"deletionTimestamp": "2026-01-31T13:00:00Z"}}
            return _json(self._store(path, gone))
        self.remove(path)
        return _status(200, "", "")

    def _watch(self, request: Request, plural: str) -> Odd:
        """Report what has changed since the version that the client knows, and end the watch."""
        fields, since = request.query.get("fieldSelector", ""), int(request.query["resourceVersion"])
        events = [
            {"type": "MODIFIED" if what == "put" else "DELETED", "object": item}
            for what, item in self.changes
            if int(item["metadata"]["resourceVersion"]) > since
            and all(_has_field(item, term) for term in fields.split(",") if term)
            and item.get("kind", "").lower() + "s" == plural
        ]
        return Odd(body="".join(f"{json.dumps(event)}\n" for event in events).encode())

    def _collection(self, request: Request, plural: str, namespace: str | None) -> Odd:
        if request.method == "POST":
            path = f"{request.path}/{request.body['metadata']['name']}"
            if path in self.objects:
                return _status(409, "AlreadyExists", f"{plural} already exists")
            if "dryRun" in request.query:
                return _json(request.body, 201)
            return _json(self._store(path, request.body), 201)
        inside = re.compile(rf"/namespaces/{namespace or '[^/]+'}/{plural}/[^/]+$|/{plural}/[^/]+$")
        items = [item for path, item in sorted(self.objects.items()) if inside.search(path)]
        if namespace:
            items = [item for item in items if item["metadata"].get("namespace") == namespace]
        for wanted in filter(None, request.query.get("labelSelector", "").split(",")):
            label, _, value = wanted.partition("=")
            items = [
                item
                for item in items
                if (found := (item["metadata"].get("labels") or {}).get(label)) and value in ("", found)
            ]
        if fields := request.query.get("fieldSelector"):
            items = [item for item in items if all(_has_field(item, term) for term in fields.split(","))]
        kind = next((name for name, found in KINDS.items() if found.plural == plural), "Unknown")
        if "PartialObjectMetadataList" in request.headers["Accept"]:
            kind, items = "PartialObjectMetadata", [{"metadata": item["metadata"]} for item in items]
        start = int(request.query.get("continue", "0"))
        end = start + int(request.query.get("limit", len(items) or 1))
        metadata = {"resourceVersion": str(self.version)} | (
            {"continue": str(end)} if end < len(items) else {}
        )
        page = [
            {n: v for n, v in item.items() if n not in ("kind", "apiVersion")} for item in items[start:end]
        ]
        return _json({"kind": f"{kind}List", "metadata": metadata, "items": page})


def _merged(below: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    return below | over | {"metadata": (below.get("metadata") or {}) | over["metadata"]}


def _merge_patched(below: Any, over: Any) -> Any:
    """RFC 7386."""
    if not isinstance(over, dict):
        return over
    result = dict(below) if isinstance(below, dict) else {}
    for name, value in over.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merge_patched(result.get(name), value)
    return result


def _has_field(item: Any, term: str) -> bool:
    """Whether an object fits one term of a field selector, `path=value`."""
    path, _, value = term.partition("=")
    for name in path.split("."):
        item = item.get(name, {})
    return str(item) == value


def _json(body: Any, status: int = 200) -> Odd:
    return Odd(status, {"Content-Type": "application/json"}, json.dumps(body).encode())


def _status(code: int, reason: str, message: str) -> Odd:
    return _json({"kind": "Status", "code": code, "reason": reason, "message": message}, code)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.open: set[socket.socket] = set()
        self.num_connections = 0

    def process_request(self, request: Any, client_address: Any) -> None:
        self.num_connections += 1
        self.open.add(request)
        super().process_request(request, client_address)

    def close_all(self) -> None:
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that go away in the middle are what is tested


def _handler(double: ApiDouble) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def _any(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            answer = double.answer(
                Request(self.command, parts.path, dict(parse_qsl(parts.query)), body, dict(self.headers))
            )
            if answer.silent:
                self.rfile.read(1)  # until the client has given up
                self.close_connection = True
                return
            if answer.cut:
                # RST instead of FIN
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.drip_seconds:
                self.send_header("Content-Length", str(1 << 30))
                self.end_headers()
                while True:
                    self.wfile.write(b" ")
                    time.sleep(answer.drip_seconds)
            if answer.pieces is not None:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for piece in answer.pieces():
                    self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                self.wfile.write(b"0\r\n\r\n")
                return
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any  # noqa: N815

    return Handler


@dataclass
class Adapter:
    """The adapter with its store, before an API server."""

    double: ApiDouble
    cluster: KubernetesCluster
    store: Store
    woken: list[Key] = field(default_factory=list)
    may_write: bool = True
    clock: Callable[[], float] = time.monotonic
    """Of the polls."""

    def add_resource(self, resource: Any) -> Any:
        """Somebody creates a DomainAdaptation and the watch tells of it."""
        metadata = resource["metadata"]
        path = (
            f"/apis/dapt.dev/v1alpha1/namespaces/{metadata['namespace']}/domainadaptations/{metadata['name']}"
        )
        made = self.double.add(path, resource)
        self.store.put(made)
        return made
