"""Tests how the API server is found: by a pod's service account, or by a kubeconfig."""

from __future__ import annotations

import base64
import json
import os
import stat
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dapt_operator.cluster.kubernetes import NoConnectionError
from dapt_operator.cluster.kubernetes.client import ApiServerClient
from dapt_operator.cluster.kubernetes.connection import TokenFile, proxy_for, service_account
from dapt_operator.cluster.kubernetes.kubeconfig import CredentialPlugin, has_kubeconfig, load_kubeconfig
from support.api_double import ApiDouble, Odd

PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
KEY = "-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY-----\n"
IN_CLUSTER = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# --- a pod's service account ---


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "ca.crt").write_text(f"# the cluster's authority ü\n{PEM}")
    return tmp_path


def test_pod_connects_with_its_service_account(account: Path) -> None:
    connection = service_account(IN_CLUSTER, account)
    assert connection is not None
    assert connection.server == "https://10.0.0.1:443"
    assert connection.authorization.header() == "Bearer secret"
    assert connection.authorities == PEM


def test_address_of_an_ipv6_cluster_is_bracketed(account: Path) -> None:
    connection = service_account(IN_CLUSTER | {"KUBERNETES_SERVICE_HOST": "fd00::1"}, account)
    assert connection is not None
    assert connection.server == "https://[fd00::1]:443"


def test_outside_a_pod_there_is_no_service_account(account: Path) -> None:
    assert service_account({}, account) is None
    (account / "token").unlink()
    assert service_account(IN_CLUSTER, account) is None


def test_service_account_that_cannot_be_used_is_reported(account: Path) -> None:
    (account / "token").write_text("")
    with pytest.raises(
        NoConnectionError, match=r"service account cannot be used \(the token file .* is empty\)"
    ):
        service_account(IN_CLUSTER, account)


def test_token_file_is_read_again_after_a_minute_or_a_refusal(tmp_path: Path) -> None:
    file, now = tmp_path / "token", [0.0]
    file.write_text("one")
    authorization = TokenFile(file, lambda: now[0])
    assert authorization.header() == "Bearer one"
    file.write_text("two")
    assert authorization.header() == "Bearer one"
    now[0] += 60
    assert authorization.header() == "Bearer two"
    file.write_text("three")
    authorization.renew()
    assert authorization.header() == "Bearer three"


def test_token_that_is_refused_is_read_again_and_the_request_sent_again(
    double: ApiDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dapt_operator.cluster.kubernetes.client.FIRST_PAUSE_SECONDS", 0.001)
    file = tmp_path / "token"
    file.write_text("old")
    client = ApiServerClient(double.connection(TokenFile(file)))
    client.get("/api/v1/pods")
    file.write_text("new")
    double.odd("GET", Odd(401, {}, b'{"reason":"Unauthorized"}'))
    client.get("/api/v1/pods")
    assert [request.headers["Authorization"] for request in double.requests] == [
        "Bearer old",
        "Bearer old",
        "Bearer new",
    ]
    client.close()


@pytest.mark.parametrize(
    ("environment", "proxy"),
    [
        ({}, ""),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ({"https_proxy": "http://small:3128", "HTTPS_PROXY": "http://proxy:3128"}, "http://small:3128"),
        ({"HTTP_PROXY": "http://proxy:3128"}, ""),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "10.0.0.0/8, .svc"}, ""),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "10.1.2.3"}, ""),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "*"}, ""),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "192.168.0.0/16,example.org"}, "http://proxy:3128"),
    ],
)
def test_proxy_comes_from_the_environment(environment: dict[str, str], proxy: str) -> None:
    assert proxy_for("https://10.1.2.3:443", environment) == proxy


@pytest.mark.parametrize("item", ["example.org", ".example.org", "*.example.org", "api.example.org"])
def test_no_proxy_names_domains(item: str) -> None:
    assert proxy_for("https://api.example.org", {"HTTPS_PROXY": "http://p", "NO_PROXY": item}) == ""
    assert proxy_for("https://api.example.com", {"HTTPS_PROXY": "http://p", "NO_PROXY": item}) == "http://p"


# --- a kubeconfig ---


def kubeconfig(
    folder: Path, user: Any = None, cluster: Any = None, name: str = "config", **over: Any
) -> Path:
    path = folder / name
    document = {
        "clusters": [{"name": "c", "cluster": {"server": "https://api.example.org:6443"} | (cluster or {})}],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(document | over))
    return path


def load(path: Path | str) -> Any:
    return load_kubeconfig({"KUBECONFIG": str(path), "PATH": os.environ["PATH"]})


def test_kubeconfig_gives_server_certificates_and_name(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(PEM)
    user = {"client-certificate-data": encoded(PEM), "client-key-data": encoded(KEY)}
    cluster = {
        "certificate-authority": "ca.pem",
        "tls-server-name": "kubernetes",
        "proxy-url": "http://proxy:1",
    }
    connection = load(kubeconfig(tmp_path, user, cluster))
    assert (connection.server, connection.authorities) == ("https://api.example.org:6443", PEM)
    assert (connection.server_name, connection.proxy) == ("kubernetes", "http://proxy:1")
    assert (connection.certificate.certificate, connection.certificate.key) == (PEM, KEY)
    assert connection.is_verified
    assert KEY not in repr(connection)


@pytest.mark.parametrize(
    ("user", "header"),
    [
        ({}, ""),
        ({"token": "secret"}, "Bearer secret"),
        ({"tokenFile": "token"}, "Bearer from-a-file"),
        ({"username": "me", "password": "word"}, f"Basic {encoded('me:word')}"),
    ],
    ids=["nothing", "token", "tokenFile", "password"],
)
def test_kubeconfig_gives_the_authorization(tmp_path: Path, user: dict[str, str], header: str) -> None:
    (tmp_path / "token").write_text("from-a-file")
    assert load(kubeconfig(tmp_path, user)).authorization.header() == header


def test_several_kubeconfigs_are_merged(tmp_path: Path) -> None:
    users = [{"name": "u", "user": {"token": "of-the-second"}}]
    first = kubeconfig(tmp_path, name="first", users=None)
    second = kubeconfig(tmp_path, name="second", users=users, **{"current-context": "other"})
    connection = load(f"{tmp_path}/missing:{first}:{second}")
    assert connection.authorization.header() == "Bearer of-the-second"


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"current-context": None}, "has no current-context"),
        ({"current-context": "y"}, "has no context y"),
        ({"clusters": []}, "has no cluster c"),
        ({"cluster": {"server": "api"}}, "server of cluster c is 'api'; give a URL of http or https"),
        ({"cluster": {"certificate-authority": "none"}}, "certificate-authority of cluster c cannot be read"),
        ({"cluster": {"certificate-authority-data": "AAAA"}}, "no PEM certificate or key in it"),
        ({"user": {"auth-provider": {"name": "oidc"}}}, "auth-provider, which is not supported"),
        ({"user": {"exec": {"command": "./none"}}}, "cannot be run: No such file or directory"),
    ],
)
def test_kubeconfig_that_cannot_be_used_is_reported(
    tmp_path: Path, over: dict[str, Any], message: str
) -> None:
    with pytest.raises(NoConnectionError, match=message):
        load(kubeconfig(tmp_path, **over))


def test_kubeconfig_that_is_no_yaml_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("a: [")
    with pytest.raises(
        NoConnectionError, match=r"^the kubeconfig .*/config cannot be read: not valid YAML in line 1: .+"
    ):
        load(path)
    path.write_bytes(b"\xff")
    with pytest.raises(NoConnectionError, match=r"/config cannot be read: not UTF-8 text$"):
        load(path)
    path.write_text("- a")
    with pytest.raises(NoConnectionError, match="is not a mapping"):
        load(path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 20_000,
        f"current-context: {'9' * 5000}",
        "current-context: 2001-99-99",
        "a: !!binary '???'",
        "a: !!omap [1]",
        "{[1]: 2}",
        "current-context: !!python/object/apply:os.getcwd []",
        "current-context: 5\ncontexts: 5",
        "current-context: [1]\ncontexts: [[1]]",
        "current-context: a\ncontexts: {a: b}",
        "a: 1\n---\nb: 2",
    ],
)
def test_kubeconfig_of_another_shape_is_reported(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(NoConnectionError, match=r"^the kubeconfig .*/config "):
        load(path)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            {"cluster": {"server": "https://[::1"}},
            "server of cluster c is 'https://\\[::1': Invalid IPv6 URL",
        ),
        ({"cluster": {"server": "https://u:secret@api"}}, "server of cluster c has a user in its URL"),
        ({"cluster": {"proxy-url": "file:///etc"}}, "the certificates or the proxy for .* cannot be used"),
        ({"cluster": {"certificate-authority-data": encoded(PEM)}}, "the certificates or the proxy for"),
        ({"cluster": {"certificate-authority": "/dev/zero"}}, "not a regular file"),
        ({"user": {"token": "a\nX-Remote-User: b"}}, "user u holds a token with control or other characters"),
        ({"user": {"exec": {"command": "a\0b"}}}, "cannot be run: embedded null byte"),
        ({"user": {"exec": {"command": "true", "args": 5, "env": [1, {"name": "a=b"}]}}}, "cannot be run"),
        (
            {"user": {"exec": {"command": sys.executable, "args": ["-c", "print('[' * 50_000)"]}}},
            "printed no ExecCredential",
        ),
        ({"user": {"exec": {"command": "echo", "args": ['{"status": ["a"]}']}}}, "printed no ExecCredential"),
    ],
)
def test_kubeconfig_of_somebody_else_is_reported(tmp_path: Path, over: dict[str, Any], message: str) -> None:
    with pytest.raises(NoConnectionError, match=message) as caught:
        load(kubeconfig(tmp_path, **over)).pool(1)
    assert "secret" not in str(caught.value)


def test_token_file_is_a_regular_file_with_a_token(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "lines").write_bytes(b"a\nX-Remote-User: b")
    for name in ("pipe", "binary", "lines", "null\0", "missing"):
        with pytest.raises(OSError, match=r"token|regular|No such file"):
            TokenFile(tmp_path / name).header()


def test_kubeconfig_that_is_a_folder_is_reported(tmp_path: Path) -> None:
    assert has_kubeconfig({"KUBECONFIG": str(tmp_path)})
    with pytest.raises(NoConnectionError, match=r"^the kubeconfig .* cannot be read: Is a directory$"):
        load(tmp_path)


def test_context_that_is_missing_is_reported_with_those_that_exist(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path)
    with pytest.raises(NoConnectionError, match=r"has no context nowhere; it has x$"):
        load_kubeconfig({"KUBECONFIG": str(path)}, "nowhere")


@pytest.mark.parametrize(
    "server",
    [
        "https://a\nHost: b",
        "https://a:99999999",
        "https://",
        "https://a b",
        "https://\u202ea",
        "https://[::1",
    ],
)
def test_server_that_is_no_url_is_a_sentence(tmp_path: Path, server: str) -> None:
    with pytest.raises(NoConnectionError, match=r"^server of cluster .* is 'https://") as caught:
        load(kubeconfig(tmp_path, {}, {"server": server}))
    assert str(caught.value).isprintable()


def test_password_that_no_server_takes_is_sent_as_text(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, {"username": "a", "password": "\ud800"})
    assert load(path).authorization.header() == f"Basic {encoded('a:?')}"


# --- a credential plugin ---


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A program that gives another token each time, which expires at the time in its second argument."""
    path = tmp_path / "plugin"
    path.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys, pathlib\n"
        "calls = pathlib.Path(__file__).with_name('calls')\n"
        "calls.write_text(calls.read_text() + 'x' if calls.exists() else 'x')\n"
        "assert json.loads(os.environ['KUBERNETES_EXEC_INFO'])['kind'] == 'ExecCredential'\n"
        "status = {'token': os.environ['PREFIX'] + str(len(calls.read_text()))}\n"
        "status |= {'expirationTimestamp': sys.argv[1]} if sys.argv[1:] else {}\n"
        "print(json.dumps({'kind': 'ExecCredential', 'status': status}))\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_plugin_of_a_kubeconfig_gives_the_token(plugin: Path) -> None:
    settings = {"command": "./plugin", "env": [{"name": "PREFIX", "value": "t"}]}
    connection = load(kubeconfig(plugin.parent, {"exec": settings}))
    assert connection.authorization.header() == "Bearer t1"
    assert connection.authorization.header() == "Bearer t1", "it is run once"
    connection.authorization.renew()
    assert connection.authorization.header() == "Bearer t2"


def test_plugin_is_run_again_before_its_token_expires(plugin: Path) -> None:
    now = [datetime(2026, 1, 31, 12, tzinfo=UTC)]
    settings = {"command": "./plugin", "args": ["2026-01-31T13:00:00Z"]}
    found = CredentialPlugin(settings, plugin.parent, {"PREFIX": "t"}, lambda: now[0])
    assert found.header() == "Bearer t1"
    now[0] += timedelta(minutes=58)
    assert found.header() == "Bearer t1"
    now[0] += timedelta(minutes=1, seconds=1)
    assert found.header() == "Bearer t2"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo no login >&2; exit 3", "ended with exit code 3: no login"),
        ("echo nothing", "has printed no ExecCredential"),
        ('echo \'{"status": {"expirationTimestamp": "soon"}}\'', "has printed no ExecCredential"),
    ],
)
def test_plugin_that_fails_is_reported(tmp_path: Path, script: str, message: str) -> None:
    plugin = CredentialPlugin({"command": "sh", "args": ["-c", script]}, tmp_path)
    with pytest.raises(OSError, match=f"^the credential plugin sh {message}"):
        plugin.header()
