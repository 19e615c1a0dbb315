"""Describes how the API server is reached and who the operator is there; finds it as a pod's service account.

Nothing of the client library is imported: importing any part of it loads the classes of all its models, 65 MiB of which
the operator would use none. `kubeconfig.py` reads the other source of a connection.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import ssl
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

import urllib3

from dapt_operator.cluster.kubernetes.errors import NoConnectionError

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_FILE_SECONDS: Final = 60.0
"""How long a token from a file is used: the kubelet replaces it long before it expires."""
_MAX_FILE_BYTES: Final = 4 * 1024 * 1024
"""Of a token or of certificates."""
_PEM_BLOCK: Final = re.compile(r"-----BEGIN [A-Z0-9 ]+-----\r?\n[\x00-\x7f]*?-----END [A-Z0-9 ]+-----")


class Authorization(Protocol):
    """Supplies the header `Authorization`; may be called from any thread."""

    def header(self) -> str:
        """Return the value of the header; empty for none.

        Raises:
            OSError: there is none at the moment.
        """
        ...

    def renew(self) -> None:
        """Forget the value: the API server no longer accepts it."""
        ...


@dataclass(frozen=True)
class FixedAuthorization:
    """A value that never changes."""

    value: str = ""

    def header(self) -> str:
        """Return the value."""
        return self.value

    def renew(self) -> None:
        """Do nothing: there is no other value."""


class TokenFile:
    """Reads a token from a file that is replaced from time to time."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._value = ""
        self._read_again_at = float("-inf")

    def header(self) -> str:
        """Return the token of the file, read at most a minute ago.

        Raises:
            OSError: the file cannot be read, or is empty.
        """
        with self._lock:
            if self._clock() >= self._read_again_at:
                title = f"the token file {self._path}"
                try:
                    token = small_file(self._path).decode("ascii").strip()
                except ValueError:
                    raise OSError(f"{title} holds no token") from None
                if not token:
                    raise OSError(f"{title} is empty")
                self._value = bearer(token, title)
                self._read_again_at = self._clock() + TOKEN_FILE_SECONDS
            return self._value

    def renew(self) -> None:
        """Read the file at the next call."""
        with self._lock:
            self._read_again_at = float("-inf")


def small_file(path: Path) -> bytes:
    """Return the content of a file that holds a token or certificates; links are followed, as Kubernetes places them.

    Raises:
        OSError: it cannot be read, is longer than such files are, or is a pipe or device, which would be waited for.
        ValueError: no file can have this name.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"longer than {_MAX_FILE_BYTES >> 20} MiB", str(path))
    return content


def bearer(token: str, title: str) -> str:
    """Return the header of a token; `title` says where it comes from.

    Raises:
        OSError: it has characters that no header can have.
    """
    if not (token.isascii() and token.isprintable()):
        raise OSError(f"{title} holds a token with control or other characters than ASCII")
    return f"Bearer {token}"


@dataclass(frozen=True)
class ClientCertificate:
    """A certificate with its key, both as PEM text."""

    certificate: str
    key: str = field(repr=False)


@dataclass(frozen=True)
class Connection:
    """How the API server is reached, and who we are there."""

    server: str
    """URL."""
    authorization: Authorization = field(default_factory=FixedAuthorization, repr=False)
    authorities: str = ""
    """Certificates of the authorities that the server's may come from, as PEM text; empty: those of the system."""
    is_verified: bool = True
    """Whether the server's certificate is checked."""
    server_name: str = ""
    """Name in the server's certificate where it is not the host of the URL."""
    certificate: ClientCertificate | None = None
    proxy: str = ""
    namespace: str = ""
    """Namespace of the kubeconfig's context; empty: it names none."""

    def pool(self, max_connections: int) -> urllib3.PoolManager:
        """Return a new pool of connections to the server, usable from any number of threads.

        Raises:
            NoConnectionError: the certificates or the proxy cannot be used.
        """
        options: dict[str, object] = {"maxsize": max_connections}
        try:
            if (context := self.ssl_context()) is not None:
                options["ssl_context"] = context
                if self.server_name:
                    options |= {"server_hostname": self.server_name, "assert_hostname": self.server_name}
            if self.proxy:
                return urllib3.ProxyManager(self.proxy, **options)  # type: ignore[arg-type]
            return urllib3.PoolManager(**options)  # type: ignore[arg-type]
        except (ssl.SSLError, urllib3.exceptions.HTTPError) as error:
            raise NoConnectionError(
                f"the certificates or the proxy for {self.server} cannot be used: {error}"
            ) from None

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return how TLS is used with the server; None without TLS."""
        if urlsplit(self.server).scheme != "https":
            return None
        context = ssl.create_default_context(cadata=self.authorities or None)
        if not self.is_verified:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate is not None:
            # ssl reads certificates from files alone.
            with _file_of(self.certificate.certificate) as certificate, _file_of(self.certificate.key) as key:
                context.load_cert_chain(certificate, key)
        return context


@contextlib.contextmanager
def _file_of(text: str) -> Iterator[str]:
    """Hold text in a file that only this user can read."""
    with tempfile.NamedTemporaryFile("w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        yield file.name


def service_account(
    environment: Mapping[str, str] = os.environ, folder: Path = SERVICE_ACCOUNT
) -> Connection | None:
    """Return the connection of the service account of this pod; None outside a pod.

    Raises:
        NoConnectionError: this is a pod, and its token or certificate cannot be used.
    """
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT")
    if not host or not port or not (folder / "token").exists():
        return None
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    authorization = TokenFile(folder / "token")
    try:
        authorization.header()
        authorities = pem_blocks((folder / "ca.crt").read_text(errors="replace"))
    except (OSError, ValueError) as error:
        raise NoConnectionError(f"the pod's service account cannot be used ({error})") from None
    return Connection(server, authorization, authorities, proxy=proxy_for(server, environment))


def pem_blocks(text: str) -> str:
    """Return the certificates or keys of a PEM file, without the comments that may stand between them.

    Raises:
        ValueError: it holds none.
    """
    blocks = _PEM_BLOCK.findall(text)
    if not blocks:
        raise ValueError("no PEM certificate or key in it")
    return "\n".join(blocks) + "\n"


def proxy_for(server: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the proxy that the environment names for a server; empty for none.

    `NO_PROXY` lists hosts, domains and networks; pods name the cluster's own networks there.
    """

    def variable(name: str) -> str:
        return environment.get(name.lower()) or environment.get(name) or ""

    url = urlsplit(server)
    host = url.hostname or ""
    for item in filter(None, (item.strip() for item in variable("NO_PROXY").split(","))):
        if item == "*" or _is_in(host, item):
            return ""
    return variable(f"{url.scheme.upper()}_PROXY")


def _is_in(host: str, item: str) -> bool:
    """Whether a host is what an item of `NO_PROXY` names: a network, a host, or a domain with all hosts in it."""
    with contextlib.suppress(ValueError):
        address = ip_address(host)
        with contextlib.suppress(ValueError):
            return address in ip_network(item, strict=False)
        return host == item
    domain = item.removeprefix("*").lstrip(".")
    return host == domain or host.endswith(f".{domain}")
