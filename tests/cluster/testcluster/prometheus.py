"""A real Prometheus for the tests of the metrics.

Its Go module needs minutes to build and the newest versions of many others; Debian's package is there in a second, so
that is what is fetched (`python -m testcluster.prometheus`, no installation) where no `prometheus` is in PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
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
    """Scrapes what it is given once a second; a context manager.

    Args:
        targets: `HOST:PORT` of each exporter by the name that becomes its label `job`.
    """

    def __init__(self, targets: Mapping[str, Sequence[str]]) -> None:
        self._targets = targets
        self.folder = Path(tempfile.mkdtemp(prefix="dapt-prometheus-"))
        self.url = f"http://127.0.0.1:{free_port()}"

    def __enter__(self) -> Prometheus:
        program = find()
        if program is None:
            raise FetchError(HOW_TO_GET_IT)
        configuration = self.folder / "prometheus.json"
        configuration.write_text(json.dumps(self._configuration()))  # JSON is YAML
        command = [
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

    def wait_for_scrapes(self, more: int = 1) -> None:
        """Until every target was scraped so many times from now on."""
        names = [f'{{job="{job}"}}' for job, addresses in self._targets.items() if addresses]
        for name in names:
            expression = f"count_over_time(up{name}[1h])"
            before = min((sample.value for sample in self.query(expression)), default=0)

            def is_scraped(expression: str = expression, wanted: float = before + more) -> bool:
                samples = self.query(expression)
                return bool(samples) and min(sample.value for sample in samples) >= wanted

            eventually(is_scraped, f"{more} scrapes of {name}")

    def health(self) -> dict[str, str]:
        """What went wrong in the last scrape of each target, by its address; empty where nothing did."""
        return {
            target["discoveredLabels"]["__address__"]: target["lastError"]
            for target in self._get("/api/v1/targets")["activeTargets"]
        }

    def _configuration(self) -> dict[str, Any]:
        return {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
                for job, addresses in self._targets.items()
            ],
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
