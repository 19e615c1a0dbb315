"""Runs the processes of one Job: started together, watched one by one, failed together."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dapt_contract.pod.environment import TERMINATION_MESSAGE_BYTES
from dapt_contract.pod.failure import ExitCode
from dapt_contract.untrusted.folders import remove_folder
from dapt_operator.cluster.local.errors import LocalRunError
from dapt_operator.cluster.local.object_files import ObjectFiles
from dapt_operator.cluster.local.processes import job_status
from dapt_operator.cluster.local.processes.free_ports import PortReservation
from dapt_operator.cluster.local.processes.pod_to_process import Launch, pod_folder, prepare_launch
from dapt_operator.cluster.local.processes.process import PodProcess
from dapt_operator.cluster.timestamps import micro_time
from dapt_operator.stage_run import JsonObject, Manifest

_KILL_POLL_SECONDS: Final = 0.02
_SIGNALLED: Final = 128
"""A container that a signal has ended has this exit code plus the signal's number."""
_log = logging.getLogger(__name__)


class LocalJob:
    """Runs one Job; writes its status and that of its pods into the store."""

    def __init__(
        self, store: ObjectFiles, folder: Path, job: Manifest, on_change: Callable[[], None]
    ) -> None:
        self._store = store
        self._folder = folder
        self._name = str(job["metadata"]["name"])
        self._on_change = on_change
        # Reentrant: `start` holds the lock when it fails and stops what it has started.
        self._lock = threading.RLock()
        self._ports: PortReservation | None = None
        self._processes: dict[int, PodProcess] = {}
        self._alive: set[int] = set()
        self._failure: tuple[str, str] | None = None
        """Reason and message of what fails the Job."""
        self._is_stopping = False
        self._is_deleted = False
        self._is_interrupted = False
        self._deadline: threading.Timer | None = None
        spec = job["spec"]
        self._grace_seconds = float(spec["template"]["spec"].get("terminationGracePeriodSeconds", 30))
        self._completions = int(spec.get("completions", 1))
        self._deadline_seconds: float | None = spec.get("activeDeadlineSeconds")
        self.progress_port: int | None = None
        """Port on which rank 0 of node 0 serves its readings; None while it does not run."""

    @property
    def is_over(self) -> bool:
        """Whether no process of the Job runs."""
        with self._lock:
            return not self._alive

    @property
    def is_deleted(self) -> bool:
        """Whether the Job was deleted, so that none of its processes may start."""
        with self._lock:
            return self._is_deleted

    def wait(self, why: str) -> None:
        """Write pods that wait for capacity; start nothing."""
        with self._lock:
            job = self._job()
            pods = [
                job_status.unscheduled(job_status.pod_of(job, index), why)
                for index in range(self._completions)
            ]
            if pods == [self._store.get("Pod", name) for name in self._pod_names]:
                return  # nothing has changed since the last reconcile
            for pod in pods:
                self._put(pod)
            self._write_job()

    def start(self) -> None:
        """Start one process for each completion index. Call it from a thread that lives as long as the run."""
        with self._lock:
            job = self._job()
            for index in range(self._completions):
                self._store.put(job_status.pod_of(job, index))
            self._write_job()
            try:
                self._start_all(job)
            except (LocalRunError, OSError) as error:
                self._fail_to_start(str(error))
                return
            if self._deadline_seconds is not None:
                self._deadline = threading.Timer(self._deadline_seconds, self._deadline_passed)
                self._deadline.daemon = True
                self._deadline.start()

    def _start_all(self, job: Manifest) -> None:
        container = job["spec"]["template"]["spec"]["containers"][0]
        declared = [int(item["containerPort"]) for item in container.get("ports") or []]
        self._ports = PortReservation(len(declared))
        ports = dict(zip(declared, self._ports.ports, strict=True))
        # All pods are prepared before the first one starts, so that a missing ConfigMap starts none.
        launches: list[tuple[int, JsonObject, Launch]] = []
        for index in range(self._completions):
            pod = self._pod(index)
            launches.append((index, pod, prepare_launch(pod, self._store, self._folder, ports)))
        for index, pod, launch in launches:
            if index == 0:
                self.progress_port = launch.progress_port
            process = PodProcess(launch, self.log_path(index))
            self._processes[index] = process
            self._alive.add(index)
            self._store.put(job_status.running(pod))
            threading.Thread(
                target=self._reap,
                args=(index, process, launch),
                name=f"reap-{self._name}-{index}",
                daemon=True,
            ).start()

    def _fail_to_start(self, why: str) -> None:
        """Fail the Job at once: none of the reasons goes away by waiting."""
        self._failure = ("StartError", why)
        for index in range(self._completions):
            if index not in self._alive:
                self._store.put(job_status.ended(self._pod(index), 128, why, reason="StartError"))
        self._write_job()
        self.stop()
        if not self._alive and self._ports:
            self._ports.release()

    def log_path(self, index: int) -> Path:
        """Return the file to which the output of one process is appended."""
        return self._folder / "logs" / f"{self._name}-{index}.log"

    def note_user_stop(self) -> None:
        """Write that the user stops what runs, for a machine that does not wait until it has saved."""
        with self._lock:
            if self._alive:
                self._put(job_status.noted_as_stopped(self._job()))

    def interrupt(self, *, at_once: bool) -> None:
        """End all processes because the user ends the local run, so that their ends count as a stop and as no fault.

        Args:
            at_once: whether to kill them; else they may save within their grace period. Returns at once either way.
        """
        # A flag alone: a signal handler calls this, perhaps in the middle of a write to the store.
        self._is_interrupted = True
        if at_once:
            self.kill()
        else:
            self.stop()

    def stop(self, *, delete: bool = False) -> None:
        """Request all processes to stop, and kill them when their grace period is over. Returns at once.

        Args:
            delete: whether to remove the Job and its pods when the last process has ended.
        """
        with self._lock:
            if not self._alive:
                self._is_deleted = self._is_deleted or delete
                self._finish_if_over()
                return
            if delete and not self._is_deleted:
                self._is_deleted = True
                job = self._job()
                self._put(job | {"metadata": job["metadata"] | {"deletionTimestamp": micro_time()}})
            # A second request must not start the grace period again.
            if self._is_stopping:
                return
            self._is_stopping = True
        # In a thread: a grace period lasts minutes, and the reconcile has other Jobs to stop.
        threading.Thread(target=self._stop_all, name=f"stop-{self._name}", daemon=True).start()

    def _stop_all(self) -> None:
        for process in self._live_processes():
            process.terminate()
        end = time.monotonic() + self._grace_seconds
        while not self.is_over and time.monotonic() < end:
            time.sleep(_KILL_POLL_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End all processes at once."""
        for process in self._live_processes():
            process.kill()

    def _live_processes(self) -> list[PodProcess]:
        with self._lock:
            return [self._processes[index] for index in self._alive]

    def kill_pod(self, index: int) -> None:
        """End one process at once. Its pod is marked as deleted before, so that its end counts as no cause."""
        with self._lock:
            process = self._processes.get(index)
            if process is None or index not in self._alive:
                return
            pod = self._pod(index)
            self._put(pod | {"metadata": pod["metadata"] | {"deletionTimestamp": micro_time()}})
        process.kill()

    def _deadline_passed(self) -> None:
        with self._lock:
            # A process that failed before the deadline keeps its own reason.
            if not self._alive or self._failure is not None:
                return
            self._failure = ("DeadlineExceeded", "Job was active longer than specified deadline")
            self._write_job()
        self.stop()

    def _reap(self, index: int, process: PodProcess, launch: Launch) -> None:
        code = process.wait()
        message = _termination_message(launch.termination_log)
        with self._lock:
            pod = self._pod(index)
            # What saved reports 143 itself. Any other end by a signal is ours: at the user's second signal, at the end
            # of the grace period, or before the agent had its handlers.
            if self._is_interrupted and code > _SIGNALLED and (code != ExitCode.STOPPED or not message):
                self._put(job_status.stopped(pod, ended_at=process.ended_at))
            else:
                self._put(job_status.ended(pod, code, message, ended_at=process.ended_at))
            self._alive.discard(index)
            # The first reason stays: the ends of the peers, or of all processes at a deadline, follow from it.
            if code != 0 and self._failure is None:
                self._failure = ("BackoffLimitExceeded", "Job has reached the specified backoff limit")
            self._write_job()
            self._finish_if_over()
            has_peers = bool(self._alive)
        # As the Job controller does with backoffLimit 0: the first failed pod ends its peers.
        if code != 0 and has_peers:
            self.stop()
        self._on_change()
        remove_folder(pod_folder(self._folder, self._pod_name(index)) / "scratch")

    def _finish_if_over(self) -> None:
        """Clean up a Job whose processes have all ended. Called with the lock held."""
        if self._alive:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        if self._ports is not None:
            self._ports.release()
        self.progress_port = None
        if self._is_deleted:
            for name in self._pod_names:
                self._store.remove("Pod", name)
            self._store.remove("Job", self._name)
            for name in self._pod_names:
                remove_folder(pod_folder(self._folder, name))
            self._on_change()

    def _write_job(self) -> None:
        # The Job or a pod may have been deleted while its last process ended.
        with contextlib.suppress(LookupError):
            job = self._job()
            pods = [self._pod(index) for index in range(self._completions)]
            self._put(job | {"status": job_status.job_status(job, pods, self._failure)})

    def _put(self, value: Manifest) -> None:
        """Store what has happened; a full disk is only logged, since it cannot undo what has happened."""
        try:
            self._store.put(value)
        except OSError as error:
            _log.warning("%s of %s was not written: %s", value["kind"], self._name, error)

    def _job(self) -> JsonObject:
        return self._stored("Job", self._name)

    def _pod(self, index: int) -> JsonObject:
        return self._stored("Pod", self._pod_name(index))

    def _stored(self, kind: str, name: str) -> JsonObject:
        stored = self._store.get(kind, name)
        if stored is None:
            raise LookupError(name)
        return stored

    def _pod_name(self, index: int) -> str:
        return f"{self._name}-{index}"

    @property
    def _pod_names(self) -> list[str]:
        return [self._pod_name(index) for index in range(self._completions)]


def _termination_message(path: Path) -> str:
    """Return the last 4,096 bytes, as the kubelet does."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TERMINATION_MESSAGE_BYTES))
            return file.read(TERMINATION_MESSAGE_BYTES).decode(errors="replace")
    except OSError:
        return ""
