"""A disk that is really full: the run ends with the reason, and what is known is still written down."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from dapt_contract.pod.failure import Cause
from dapt_operator.cluster.local import LocalCluster
from support.launch_builders import resource
from support.local_runs import last_state, start, wait_for_end

pytestmark = [pytest.mark.local]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB; skipped where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_stage_that_fills_the_disk_reports_no_space_left(small_disk: Path) -> None:
    with LocalCluster(small_disk, resource(), None) as local:
        start(local, "fill")
        state = wait_for_end(local)
        assert (state.cause, state.exit_code) == (Cause.INFRASTRUCTURE, 75)
        assert state.message.startswith(
            f"{small_disk}/work: no space left to write it (0 MiB free in {small_disk}/work)"
        )
        found = local.observe(local.key).resource
        assert found is not None
        local.write_status(local.key, {"phase": "Failed"}, found["metadata"]["resourceVersion"])
    shown = YAML(typ="safe").load((small_disk / "status.yaml").read_text())
    assert shown["status"] == {"phase": "Failed"}
    with LocalCluster(small_disk, resource(), None) as again:
        assert last_state(again).message == state.message
