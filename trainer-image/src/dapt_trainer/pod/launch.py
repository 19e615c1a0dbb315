"""Starts the ranks of a pod and waits for them.

A run of one rank is a plain subprocess, so that the agent of such a stage never loads torch. Several ranks are started
by torch's launcher as a library: static rendezvous and no restarts, so that every retry is the operator's decision.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence

from dapt_trainer.pod.settings import PodSettings

Statuses = Mapping[int, int]
"""Exit status by global rank, negative for a signal; a rank that is missing exited with 0 or is unknown."""


def run_single(command: Sequence[str]) -> Statuses:
    """Run the only rank of a run."""
    return {0: subprocess.call([sys.executable, *command])}


def run_gang(command: Sequence[str], settings: PodSettings, run_id: str) -> Statuses:
    """Run this pod's ranks of a run of several; the pods meet at the coordinator in any order."""
    # Imported here: an agent with one rank must not load torch.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logs = settings.ranks_folder / "launcher"
    logs.mkdir(parents=True, exist_ok=True)
    config = LaunchConfig(
        min_nodes=settings.nodes,
        max_nodes=settings.nodes,
        nproc_per_node=settings.processes_per_node,
        run_id=run_id,
        role="dapt",
        rdzv_backend="static",
        rdzv_endpoint=f"{settings.coordinator_host}:{settings.coordinator_port}",
        rdzv_configs={"rank": settings.node_rank, "timeout": int(settings.startup_timeout_seconds)},
        max_restarts=0,
        monitor_interval=0.1,
        local_addr=settings.coordinator_host if settings.nodes == 1 else None,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs)),
        signals_to_handle="SIGTERM,SIGINT",
        shutdown_timeout=max(1, round(settings.shutdown_seconds)),
    )
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        return {rank: failure.exitcode for rank, failure in error.failures.items()}
    except SignalException:
        return {}
    return {}
