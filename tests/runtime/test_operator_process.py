"""The operator process before there is anything to work in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

DAPT = Path(sysconfig.get_path("scripts")) / "dapt"
NOBODY = "http://127.0.0.1:9"
"""The discard port: connections are refused."""


def kubeconfig(folder: Path) -> Path:
    path = folder / "kubeconfig"
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "a", "cluster": {"server": NOBODY}}],
                "users": [{"name": "a", "user": {}}],
                "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
                "current-context": "a",
            }
        )
    )
    return path


def lines(log: Path, event: str = "") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in found if not event or line["event"] == event]


def page(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_operator_logs_an_unreachable_api_server_once_and_keeps_retrying(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, DAPT, "operator", "--port=0"],
            env=os.environ | {"KUBECONFIG": str(kubeconfig(tmp_path)), "DAPT_LOG_LEVEL": "debug"},
            stderr=file,
        )
    try:
        while len(lines(log)) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(5)  # several attempts
        (told,) = lines(log, "the API server cannot be used yet, retrying until it can")
        assert told["server"] == NOBODY
        assert "Connection refused" in told["error"]
        assert [line["event"] for line in lines(log) if line["level"] != "debug"] == [
            "started",
            "the API server cannot be used yet, retrying until it can",
        ]
        port = lines(log, "started")[0]["port"]
        assert page(port, "/healthz") == (200, "ok\n")
        assert page(port, "/readyz") == (503, "the cluster's objects have not been listed yet\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
        assert lines(log, "stopped") != []
    finally:
        process.kill()
        process.wait()


def test_operator_process_exits_although_a_thread_still_runs(tmp_path: Path) -> None:
    hanging = (
        "import threading, time\n"
        "from dapt_operator.cli import main\n"
        "from dapt_operator.cli.commands import operator\n"
        "def run(self):\n"
        "    threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "    print('ended')\n"
        "    return 0\n"
        "operator.Operator.run = run\n"
        "main(['operator', '--port=0'])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", hanging],
        env=os.environ | {"KUBECONFIG": str(kubeconfig(tmp_path))},
        stdout=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, b"ended\n")
