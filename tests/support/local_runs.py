"""Runs of the fake stage in the local cluster adapter."""

from __future__ import annotations

from pathlib import Path

import psutil

from dapt_contract.signature import SIGNING_KEY_BYTES
from dapt_operator.cluster.local import LocalCluster
from dapt_operator.cluster.local.processes.pod_to_process import POD_MARKER, pod_folder
from dapt_operator.launchers.indexed_job import states
from dapt_operator.reconcile import signing_secret
from dapt_operator.stage_run import Owner, RunPhase, RunState, StageRun
from support.launch_builders import fake_manifests, owner, stage_run
from support.pod_objects import wait_until


def owner_of(local: LocalCluster) -> Owner:
    found = local.observe(local.key).resource
    assert found is not None
    return owner(found["metadata"]["name"], found["metadata"]["uid"])


def start(
    local: LocalCluster, script: str, *, nodes: int = 1, try_number: int = 1, is_signed: bool = False
) -> StageRun:
    of = owner_of(local)
    run = stage_run(
        script, nodes=nodes, of=of, try_number=try_number, fence=try_number, signs_results=is_signed
    )
    if is_signed:
        local.apply(local.key, signing_secret(of, bytes(SIGNING_KEY_BYTES)))
    for manifest in fake_manifests(run, of):
        local.apply(local.key, manifest)
    return run


def last_state(local: LocalCluster) -> RunState:
    world = local.observe(local.key)
    return states(world.children, world.now)[-1]


def wait_for_end(local: LocalCluster) -> RunState:
    wait_until(lambda: last_state(local).phase in (RunPhase.SUCCEEDED, RunPhase.FAILED), "the run's end")
    return last_state(local)


def pid_of(local: LocalCluster, run: StageRun, index: int = 0) -> int:
    """Return the process id of one pod of a run that this process has started."""
    marker = f"{POD_MARKER}={pod_folder(local.folder, f'{run.name}-{index}')}".encode()
    children = [child.pid for child in psutil.Process().children()]
    (found,) = [pid for pid in children if marker in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
    return found


def ranks_below(folder: Path) -> list[int]:
    """Every process that carries the run folder in its environment."""
    marker = f"DAPT_LOCAL_RUN={folder.resolve()}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and marker in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found
