"""Starts the ranks of a pod and waits for them.

A run of one rank is a plain subprocess, so that the agent of such a stage never loads torch. Several ranks are started
by torch's launcher as a library: static rendezvous and no restarts, so that every retry is the operator's decision.

Where all ranks run on one machine, everything that they open listens on the loopback interface alone: neither torch's
store nor gloo asks who connects.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING

from dapt_trainer.pod.settings import PodSettings, is_loopback

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

Statuses = Mapping[int, int]
"""Exit status by global rank, negative for a signal; a rank that is missing exited with 0 or is unknown."""
LOOPBACK_INTERFACE = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}
"""Environment variables that keep gloo's and NCCL's sockets on the loopback interface, whatever the template set."""
ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""Environment variable of torch's allocator: its segments grow in place, so that batches of changing length leave no
holes that no tensor fits into."""
_OLDER_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
"""Name of the same variable for older versions of torch; one that a template sets under it counts too."""
_LOOPBACK_BACKEND = "dapt-loopback"
"""Name under which torch's launcher knows the rendezvous of `_loopback_rendezvous`."""


def set_allocator(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what torch's allocator reads when it is loaded, unless the profile's template has set it."""
    if _OLDER_ALLOCATOR not in environment:
        for name, value in ALLOCATOR.items():
            environment.setdefault(name, value)


def run_single(command: Sequence[str], settings: PodSettings) -> Statuses:
    """Run the only rank of a run, or of one whose pods are not connected."""
    os.environ |= LOOPBACK_INTERFACE
    rank = settings.node_rank
    if settings.nodes > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(settings.nodes)}
    return {rank: subprocess.call([sys.executable, *command])}


def run_gang(command: Sequence[str], settings: PodSettings, run_id: str) -> Statuses:
    """Run this pod's ranks of a run of several; the pods meet at the coordinator in any order."""
    # Imported here: an agent with one rank must not load torch.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    backend = "static"
    if is_loopback(settings.coordinator_host):
        os.environ |= LOOPBACK_INTERFACE
        rendezvous_handler_registry.register(_LOOPBACK_BACKEND, _loopback_rendezvous)
        backend = _LOOPBACK_BACKEND

    logs = settings.ranks_folder / "launcher"
    logs.mkdir(parents=True, exist_ok=True)
    config = LaunchConfig(
        min_nodes=settings.nodes,
        max_nodes=settings.nodes,
        nproc_per_node=settings.processes_per_node,
        run_id=run_id,
        role="dapt",
        rdzv_backend=backend,
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


def _loopback_rendezvous(parameters: RendezvousParameters) -> RendezvousHandler:
    """Return torch's static rendezvous, with the store of its first node on the loopback address alone."""
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousStoreInfo
    from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

    from dapt_trainer.distributed import loopback_store

    class LoopbackRendezvous(StaticTCPRendezvous):
        def get_backend(self) -> str:
            return _LOOPBACK_BACKEND

        def next_rendezvous(self) -> RendezvousInfo:
            if self.rank != 0:
                return super().next_rendezvous()
            store = loopback_store(
                self.master_addr, self.master_port, clients=self.world_size, timeout=self.timeout
            )
            address = RendezvousStoreInfo(self.master_addr, self.master_port)
            return RendezvousInfo(PrefixStore(self.run_id, store), self.rank, self.world_size, address)

    host, _, port = parameters.endpoint.rpartition(":")
    return LoopbackRendezvous(
        host.strip("[]"),
        int(port),
        int(parameters.config["rank"]),
        parameters.max_nodes,
        parameters.run_id,
        int(parameters.config["timeout"]),
    )
