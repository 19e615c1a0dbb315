"""Reads the connection to the API server from a kubeconfig, as kubectl does."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from dapt_contract.sentences import shortened
from dapt_operator.cluster.kubernetes.connection import (
    Authorization,
    ClientCertificate,
    Connection,
    FixedAuthorization,
    TokenFile,
    bearer,
    pem_blocks,
    proxy_for,
    small_file,
)
from dapt_operator.cluster.kubernetes.errors import NoConnectionError

DEFAULT_PATH: Final = Path("~/.kube/config")
EXPIRY_MARGIN: Final = timedelta(seconds=60)
"""A token is replaced so long before it expires."""
_PLUGIN_SECONDS: Final = 30.0
_MAX_QUOTE_CHARACTERS: Final = 300
_MAX_DEPTH: Final = 500
"""Of brackets: the parser takes quadratic time for them."""
_UNREADABLE: Final = (
    OSError,
    ValueError,
    YAMLError,
    RecursionError,
    LookupError,
    TypeError,
    AttributeError,
)
"""What a kubeconfig may raise that is no YAML, or not as kubectl writes it."""


def load_kubeconfig(environment: Mapping[str, str] = os.environ, context: str | None = None) -> Connection:
    """Return the connection of a context. `KUBECONFIG` may name several files; they are merged.

    Args:
        environment: names the files.
        context: name of the context; None: the current one.

    Raises:
        NoConnectionError: there is no file, or the context cannot be used; says which entry is wrong.
    """
    return _Kubeconfig.read(_paths(environment), environment).connection(context)


def has_kubeconfig(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether something is there that `load_kubeconfig` would read, or refuse; a pipe counts too."""
    return any(path.exists() for path in _paths(environment))


def _paths(environment: Mapping[str, str]) -> list[Path]:
    paths = [Path(name) for name in environment.get("KUBECONFIG", "").split(os.pathsep) if name]
    return paths or [DEFAULT_PATH.expanduser()]


@dataclass(frozen=True)
class _Entry:
    """One named entry of a file, such as a user."""

    title: str
    """Kind and name, for messages."""
    values: Mapping[str, Any]
    folder: Path
    """Paths in the file are relative to its folder."""

    def pem(self, name: str) -> str:
        """Return the PEM blocks of the file that `name` names, or that `name-data` holds; empty without either.

        Raises:
            NoConnectionError: it cannot be read.
        """
        try:
            if data := self.values.get(f"{name}-data"):
                return pem_blocks(base64.b64decode(str(data)).decode(errors="replace"))
            path = self.values.get(name)
            return pem_blocks(small_file(self.folder / str(path)).decode(errors="replace")) if path else ""
        except (OSError, ValueError) as error:
            raise NoConnectionError(f"{name} of {self.title} cannot be read: {error}") from None


@dataclass(frozen=True)
class _Kubeconfig:
    paths: Sequence[Path]
    documents: Sequence[tuple[Path, Mapping[str, Any]]]
    """The files that exist, with their folders; the first file that has a value or an entry wins."""
    environment: Mapping[str, str]

    @classmethod
    def read(cls, paths: Sequence[Path], environment: Mapping[str, str]) -> _Kubeconfig:
        documents = []
        for path in paths:
            try:
                text = path.read_text()
                if _deepest_bracket(text) > _MAX_DEPTH:
                    raise ValueError("too many brackets within each other")
                document = YAML(typ="safe", pure=True).load(text)
            except FileNotFoundError:
                continue  # kubectl skips the files of KUBECONFIG that do not exist, too
            except _UNREADABLE as error:
                # A number of thousands of digits, a date that is none and deep brackets are errors of their own.
                message = shortened(_reason(error), _MAX_QUOTE_CHARACTERS)
                raise NoConnectionError(f"the kubeconfig {path} cannot be read: {message}") from None
            if not isinstance(document, dict):
                raise NoConnectionError(f"the kubeconfig {path} is not a mapping")
            documents.append((path.parent, document))
        if not documents:
            raise NoConnectionError(f"there is no kubeconfig at {', '.join(map(str, paths))}")
        return cls(paths, documents, environment)

    def connection(self, name: str | None) -> Connection:
        """Return the connection of a context, by default of the current one."""
        current = name or next(
            (
                document["current-context"]
                for _, document in self.documents
                if document.get("current-context")
            ),
            None,
        )
        if current is None:
            raise NoConnectionError(f"the kubeconfig {self.paths[0]} has no current-context")
        context = self._entry("contexts", "context", current)
        cluster = self._entry("clusters", "cluster", context.values.get("cluster"))
        user_name = context.values.get("user")
        user = self._entry("users", "user", user_name) if user_name else _Entry("no user", {}, Path())
        server = str(cluster.values.get("server") or "")
        if not server.startswith(("https://", "http://")):
            raise NoConnectionError(f"server of {cluster.title} is {server!r}; give a URL of http or https")
        certificate, authorization = self._credentials(user)
        try:
            address = urlsplit(server)
            has_user = address.username is not None
            if (address.port or 0) < 0 or not address.hostname or not server.isprintable() or " " in server:
                raise ValueError("no host, or characters that no URL has")
            proxy = str(cluster.values.get("proxy-url") or "") or proxy_for(server, self.environment)
        except ValueError as error:
            raise NoConnectionError(f"server of {cluster.title} is {server!r}: {error}") from None
        if has_user:
            raise NoConnectionError(
                f"server of {cluster.title} has a user in its URL, which messages would show; give the user a token"
            )
        return Connection(
            server=server.rstrip("/"),
            namespace=str(context.values.get("namespace") or ""),
            authorization=authorization,
            authorities=cluster.pem("certificate-authority"),
            is_verified=not cluster.values.get("insecure-skip-tls-verify"),
            server_name=str(cluster.values.get("tls-server-name") or ""),
            certificate=certificate,
            proxy=proxy,
        )

    def _entry(self, section: str, kind: str, name: object) -> _Entry:
        names = []
        for folder, document in self.documents:
            items = document.get(section)
            for item in items if isinstance(items, list) else []:
                if not isinstance(item, dict):
                    continue
                if item.get("name") == name:
                    values = item.get(kind)
                    return _Entry(f"{kind} {name}", values if isinstance(values, dict) else {}, folder)
                names.append(str(item.get("name")))
        known = shortened(", ".join(names), _MAX_QUOTE_CHARACTERS)
        raise NoConnectionError(
            f"the kubeconfig {self.paths[0]} has no {kind} {name}; it has {known or f'no {kind} at all'}"
        )

    def _credentials(self, user: _Entry) -> tuple[ClientCertificate | None, Authorization]:
        """Return how the user proves who they are; the first of token, file, password and plugin that is there."""
        values = user.values
        pem = user.pem("client-certificate")
        certificate = ClientCertificate(pem, user.pem("client-key")) if pem else None
        if values.get("token"):
            try:
                return certificate, FixedAuthorization(bearer(str(values["token"]), user.title))
            except OSError as error:
                raise NoConnectionError(str(error)) from None
        if values.get("tokenFile"):
            return certificate, TokenFile(user.folder / str(values["tokenFile"]))
        if values.get("username"):
            # Half of a surrogate pair, which no server takes, becomes a question mark.
            pair = f"{values['username']}:{values.get('password') or ''}".encode(errors="replace")
            return certificate, FixedAuthorization(f"Basic {base64.b64encode(pair).decode()}")
        if isinstance(values.get("exec"), dict):
            plugin = CredentialPlugin(values["exec"], user.folder, self.environment)
            try:
                return plugin.certificate() or certificate, plugin
            except OSError as error:
                raise NoConnectionError(str(error)) from None
        if values.get("auth-provider"):
            raise NoConnectionError(
                f"{user.title} has an auth-provider, which is not supported; use exec or token"
            )
        return certificate, FixedAuthorization()


def _deepest_bracket(text: str) -> int:
    depths = accumulate(1 if bracket in "[{" else -1 for bracket in re.findall(r"[][{}]", text))
    return max(depths, default=0)


def _reason(error: Exception) -> str:
    """Return on one line why a file cannot be read, without what Python adds to it."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"not valid YAML in line {error.problem_mark.line + 1}: {error.problem}"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    text = error.strerror if isinstance(error, OSError) else None
    return text or " ".join(str(error).split()) or type(error).__name__


class CredentialPlugin:
    """Runs the program that a kubeconfig names under `exec`, again whenever its token has expired."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        folder: Path,
        environment: Mapping[str, str] = os.environ,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """
        Args:
            settings: of `exec`.
            folder: of the kubeconfig, which a relative path of the program starts from.
            environment: of the program, with what `settings` adds.
            now: aware, UTC; a plugin gives the expiry as a time of day.
        """
        command = str(settings.get("command") or "")
        program = str(folder / command) if os.sep in command else command
        self._arguments = [program, *(str(item) for item in _items(settings.get("args")))]
        self._api_version = str(settings.get("apiVersion") or "client.authentication.k8s.io/v1")
        request = {"apiVersion": self._api_version, "kind": "ExecCredential", "spec": {"interactive": False}}
        self._environment = dict(environment) | {"KUBERNETES_EXEC_INFO": json.dumps(request)}
        self._environment |= {
            str(item.get("name")): str(item.get("value"))
            for item in _items(settings.get("env"))
            if isinstance(item, dict)
        }
        self._now = now
        self._lock = threading.Lock()
        self._status: Mapping[str, Any] | None = None

    def header(self) -> str:
        """Return the header with the plugin's token; empty where it gives a certificate alone.

        Raises:
            OSError: the program failed, or its output is no ExecCredential.
        """
        token = self._current().get("token")
        return bearer(str(token), self._title) if token else ""

    def certificate(self) -> ClientCertificate | None:
        """Return the certificate that the plugin gives; None for none.

        Raises:
            OSError: as `header`.
        """
        status = self._current()
        pem, key = status.get("clientCertificateData"), status.get("clientKeyData")
        try:
            return ClientCertificate(pem_blocks(str(pem)), pem_blocks(str(key))) if pem and key else None
        except ValueError as error:
            raise OSError(f"the certificate of {self._title} cannot be used: {error}") from None

    def renew(self) -> None:
        """Run the program again at the next call."""
        with self._lock:
            self._status = None

    def _current(self) -> Mapping[str, Any]:
        with self._lock:
            if self._status is None or self._has_expired(self._status):
                self._status = self._run()
            return self._status

    def _has_expired(self, status: Mapping[str, Any]) -> bool:
        expiry = status.get("expirationTimestamp")
        return bool(expiry) and datetime.fromisoformat(str(expiry)) - self._now() < EXPIRY_MARGIN

    @property
    def _title(self) -> str:
        return f"the credential plugin {self._arguments[0]}"

    def _run(self) -> Mapping[str, Any]:
        title = self._title
        try:
            done = subprocess.run(
                self._arguments,
                env=self._environment,
                capture_output=True,
                timeout=_PLUGIN_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise OSError(f"{title} did not end within {_PLUGIN_SECONDS:g} s") from None
        except OSError as error:
            raise OSError(f"{title} cannot be run: {error.strerror}") from None
        except ValueError as error:  # a null character, or a variable whose name has an equals sign
            raise OSError(f"{title} cannot be run: {error}") from None
        if done.returncode != 0:
            words = " ".join(done.stderr.decode(errors="replace").split())
            message = shortened(words, _MAX_QUOTE_CHARACTERS)
            raise OSError(f"{title} ended with exit code {done.returncode}: {message}")
        try:
            status = json.loads(done.stdout)["status"]
            # Read here, so that a time that cannot be read is reported as the plugin's fault.
            self._has_expired(status)
            return dict(status)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise OSError(f"{title} has printed no ExecCredential") from None


def _items(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()
