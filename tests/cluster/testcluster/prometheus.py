"""A real Prometheus for the tests of the metrics.

Its Go module needs minutes to build and the newest versions of many others; Debian's package is there in a second, so
that is what is fetched (`python -m testcluster.prometheus`, no installation) where no `prometheus` is in PATH.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import urllib3

from testcluster.build import cache_folder
from testcluster.processes import Process, free_port
from testcluster.waiting import eventually

START_SECONDS = 60.0
PACKAGE = "prometheus"
HOW_TO_GET_IT = (
    "no prometheus in PATH: install it, or `make cluster-extras` fetches Debian's where there is apt"
)


class FetchError(Exception):
    """There is no Prometheus here and none can be fetched; the sentence says what to do."""


@dataclass(frozen=True)
class Sample:
    """One series of an answer."""

    name: str
    """Empty where the expression computes something."""
    labels: Mapping[str, str]
    value: float


class Prometheus:
    """Scrapes once a second; a context manager.

    Args:
        scrape_configs: as in Prometheus' own configuration; `fixed` and `of_pod_monitor` make them.
    """

    def __init__(self, scrape_configs: Sequence[Mapping[str, Any]]) -> None:
        self._scrape_configs = scrape_configs
        self.folder = Path(tempfile.mkdtemp(prefix="dapt-prometheus-"))
        self.url = f"http://127.0.0.1:{free_port()}"

    def __enter__(self) -> Prometheus:
        program = find()
        if program is None:
            raise FetchError(HOW_TO_GET_IT)
        configuration = self.folder / "prometheus.json"
        configuration.write_text(json.dumps(self._configuration()))  # JSON is YAML
        command: list[str | Path] = [
            program,
            f"--config.file={configuration}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
            "--log.level=warn",
        ]
        self.process = Process("prometheus", command, self.folder / "prometheus.log")
        try:
            self.process.wait_until(self._is_ready, START_SECONDS)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def query(self, expression: str) -> list[Sample]:
        """What an instant query gives now.

        Raises:
            ValueError: Prometheus refuses the expression.
        """
        answer = self._get("/api/v1/query", query=expression)
        return [
            Sample(
                name=item["metric"].get("__name__", ""),
                labels={name: value for name, value in item["metric"].items() if name != "__name__"},
                value=float(item["value"][1]),
            )
            for item in answer["result"]
        ]

    def metadata(self) -> dict[str, list[dict[str, Any]]]:
        """Type and help of every metric that was scraped, by name."""
        found: dict[str, list[dict[str, Any]]] = self._get("/api/v1/metadata")
        return found

    def wait_for_scrapes(self, job: str, more: int = 1) -> None:
        """Until the first target of a job that is there then was scraped so many times from now on."""
        expression = f'sum_over_time(up{{job="{job}"}}[1h])'  # one that failed is 0
        before = {_instance(sample): sample.value for sample in self.query(expression)}

        def is_scraped() -> bool:
            return any(
                sample.value >= before.get(_instance(sample), 0) + more for sample in self.query(expression)
            )

        eventually(is_scraped, f"{more} scrapes of {job}")

    def targets(self) -> dict[str, str]:
        """Each target by its address, with what went wrong in its last scrape; empty where nothing did."""
        return {
            target["labels"]["instance"]: target["lastError"]
            for target in self._get("/api/v1/targets")["activeTargets"]
        }

    def _configuration(self) -> dict[str, Any]:
        return {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": list(self._scrape_configs),
        }

    def _is_ready(self) -> bool:
        try:
            return urllib3.request("GET", f"{self.url}/-/ready", timeout=2, retries=False).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def _get(self, path: str, **fields: str) -> Any:
        body = urllib3.request("GET", f"{self.url}{path}", fields=fields, timeout=10, retries=False).json()
        if body["status"] != "success":
            raise ValueError(body["error"])
        return body["data"]

    def _stop(self) -> None:
        self.process.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def fixed(job: str, *addresses: str, **more: Any) -> dict[str, Any]:
    """A scrape configuration with fixed targets, `HOST:PORT`; further fields by name."""
    return {"job_name": job, "static_configs": [{"targets": list(addresses)}], **more}


def write_pods(pods: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write for `of_pod_monitor` what Prometheus' discovery finds in a cluster: every port of every pod.

    (Debian's Prometheus is built without that discovery.)
    """
    targets = [
        {
            "targets": [f"{pod['status']['podIP']}:{port['containerPort']}"],
            "labels": {
                "__meta_kubernetes_namespace": pod["metadata"]["namespace"],
                "__meta_kubernetes_pod_name": pod["metadata"]["name"],
                "__meta_kubernetes_pod_phase": pod["status"]["phase"],
                "__meta_kubernetes_pod_container_name": container["name"],
                "__meta_kubernetes_pod_container_port_name": port.get("name", ""),
            }
            | {
                f"__meta_kubernetes_pod_{what}_{_plain(name)}": value
                for name, text in pod["metadata"]["labels"].items()
                for what, value in (("label", text), ("labelpresent", "true"))
            },
        }
        for pod in pods
        if pod["status"].get("podIP")
        for container in pod["spec"]["containers"]
        for port in container.get("ports", [])
    ]
    making = path.with_suffix(".new")
    making.write_text(json.dumps(targets))
    making.rename(path)


def of_pod_monitor(monitor: Mapping[str, Any], pods: Path) -> dict[str, Any]:
    """What the Prometheus Operator makes of a PodMonitor with one endpoint, as far as ours use it.

    Args:
        monitor: the manifest.
        pods: file of `write_pods`.

    Raises:
        ValueError: a field of the monitor that is not known here.
    """
    spec = dict(monitor["spec"])
    selector, namespaces = spec.pop("selector"), spec.pop("namespaceSelector", {})
    (endpoint,) = spec.pop("podMetricsEndpoints")
    endpoint = dict(endpoint)
    port, relabelings = endpoint.pop("port"), endpoint.pop("relabelings", [])
    honor, path = endpoint.pop("honorLabels", False), endpoint.pop("path", "/metrics")
    for name in ("interval", "scrapeTimeout"):
        endpoint.pop(name, None)
    limits = {
        scrape: spec.pop(ours)
        for ours, scrape in (
            ("sampleLimit", "sample_limit"),
            ("labelLimit", "label_limit"),
            ("labelNameLengthLimit", "label_name_length_limit"),
            ("labelValueLengthLimit", "label_value_length_limit"),
        )
        if ours in spec
    }
    if spec or endpoint:
        raise ValueError(f"not known of a PodMonitor: {[*spec, *endpoint]}")
    rules = [_rule("drop", "pod_phase", "Failed|Succeeded"), *_selected(selector)]
    rules += [_rule("keep", "pod_container_port_name", port)]
    if namespaces.get("matchNames"):
        rules.append(_rule("keep", "namespace", "|".join(namespaces["matchNames"])))
    rules += [
        _copy("namespace", "namespace"),
        _copy("pod_container_name", "container"),
        _copy("pod_name", "pod"),
    ]
    rules += [
        {"source_labels": rule["sourceLabels"]}
        | {name: rule[name] for name in ("regex", "action", "replacement") if name in rule}
        | ({"target_label": rule["targetLabel"]} if "targetLabel" in rule else {})
        for rule in relabelings
    ]
    return {
        "job_name": monitor["metadata"]["name"],
        "honor_labels": honor,
        "metrics_path": path,
        "file_sd_configs": [{"files": [str(pods)]}],
        "relabel_configs": rules,
        **limits,
    }


def _selected(selector: Mapping[str, Any]) -> list[dict[str, Any]]:
    rules = [
        _rule("keep", f"pod_label_{_plain(name)}", value)
        for name, value in selector.get("matchLabels", {}).items()
    ]
    for expression in selector.get("matchExpressions", []):
        if expression["operator"] != "Exists":
            raise ValueError(f"not known of a selector: {expression}")
        rules.append(_rule("keep", f"pod_labelpresent_{_plain(expression['key'])}", "true"))
    return rules


def _rule(action: str, label: str, regex: str) -> dict[str, Any]:
    return {"action": action, "source_labels": [f"__meta_kubernetes_{label}"], "regex": regex}


def _copy(label: str, target: str) -> dict[str, Any]:
    return {"source_labels": [f"__meta_kubernetes_{label}"], "target_label": target}


def _plain(label: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", label)


def _instance(sample: Sample) -> str:
    return sample.labels["instance"]


def find() -> Path | None:
    """The program: that of PATH, or what was fetched before."""
    in_path = shutil.which("prometheus")
    if in_path is not None:
        return Path(in_path)
    fetched = _fetched()
    return fetched if fetched.is_file() else None


def fetch() -> Path:
    """The program, fetched from Debian if there is none; nothing is installed.

    Raises:
        FetchError: there is no apt here, or it failed.
    """
    found = find()
    if found is not None:
        return found
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise FetchError(HOW_TO_GET_IT)
    target = _fetched().parents[2]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prometheus-", dir=target.parent) as making:
        if not _download(Path(making)):
            if os.geteuid() == 0:  # a fresh machine has no package lists
                subprocess.run(["apt-get", "update", "-qq"], check=False)
            if not _download(Path(making)):
                raise FetchError(f"`apt-get download {PACKAGE}` failed: install prometheus by hand")
        package = next(Path(making).glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", package, f"{making}/files"], check=True)
        shutil.rmtree(target, ignore_errors=True)
        Path(making, "files").rename(target)
    return _fetched()


def _fetched() -> Path:
    return cache_folder() / "prometheus-debian" / "usr" / "bin" / "prometheus"


def _download(folder: Path) -> bool:
    command = ["apt-get", "download", "-qq", PACKAGE]
    folder.chmod(0o755)  # apt downloads as a user of its own where it may
    done = subprocess.run(command, cwd=folder, check=False, stderr=subprocess.DEVNULL)
    return done.returncode == 0 and any(folder.glob("*.deb"))


if __name__ == "__main__":
    try:
        print(f"prometheus: {fetch()}")
    except FetchError as failure:
        print(f"testcluster: {failure}", file=sys.stderr)
        sys.exit(1)
