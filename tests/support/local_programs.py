"""Runs of a line of Python in the local cluster adapter."""

from __future__ import annotations

from typing import Any

from dapt_operator.cluster.local import LocalCluster
from dapt_operator.launchers.indexed_job import states
from dapt_operator.stage_run import Owner, RunState, StageRun
from support.launch_builders import fake_manifests, owner, stage_run

SLEEP = "import time; time.sleep(600)"
SAVES = """
import os, signal, sys, time
def stop(*_):
    open(os.path.join(os.environ['DAPT_WORK'], 'saved-' + os.environ['PET_NODE_RANK']), 'w').close()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
open(os.path.join(os.environ['DAPT_WORK'], 'ready-' + os.environ['PET_NODE_RANK']), 'w').close()
time.sleep(600)
"""
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(os.path.join(os.environ['DAPT_WORK'], 'ready-' + os.environ['PET_NODE_RANK']), 'w').close()
time.sleep(600)
"""


def owner_of(cluster: LocalCluster) -> Owner:
    found = cluster.observe(cluster.key).resource
    assert found is not None
    return owner(found["metadata"]["name"], found["metadata"]["uid"])


def start(
    cluster: LocalCluster,
    program: str,
    *,
    nodes: int = 1,
    grace: int = 5,
    secret_names: tuple[str, ...] = (),
    **job: Any,
) -> StageRun:
    """Apply a run whose pods execute a line of Python."""
    of = owner_of(cluster)
    run = stage_run("done", nodes=nodes, of=of, secret_names=secret_names)
    manifests = fake_manifests(run, of, terminationGracePeriodSeconds=grace)
    container = manifests[-1]["spec"]["template"]["spec"]["containers"][0]
    container["command"], container["args"] = ["python", "-c", program], []
    container |= job.pop("container", {})
    manifests[-1]["spec"] |= job
    for manifest in manifests:
        cluster.apply(cluster.key, manifest)
    return run


def state_of(cluster: LocalCluster) -> RunState:
    world = cluster.observe(cluster.key)
    (state,) = states(world.children, world.now)
    return state
