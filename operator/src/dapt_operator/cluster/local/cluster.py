"""Implements the cluster port on one machine: Jobs are processes, volumes are folders, the rest is files.

A run folder holds `objects/*.json` (what an API server would keep), `status.yaml` (the resource with its status),
`work/` (the work volume), `logs/JOB-INDEX.log`, `events.jsonl`, `invocations.json` (the time of all invocations) and
`pods/` (scratch and mounted files).
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from dapt_contract.sentences import shortened
from dapt_contract.untrusted.folders import remove_folder
from dapt_operator.api.names import LABEL_RUN
from dapt_operator.cluster.local.errors import LocalRunError
from dapt_operator.cluster.local.leading_links import foreign_entry
from dapt_operator.cluster.local.object_files import ObjectFiles
from dapt_operator.cluster.local.processes import job_status
from dapt_operator.cluster.local.processes.capacity import Capacity, job_request, machine_capacity
from dapt_operator.cluster.local.processes.job import LocalJob
from dapt_operator.cluster.local.processes.pod_to_process import RUN_MARKER
from dapt_operator.cluster.local.processes.process import kill_marked
from dapt_operator.cluster.local.progress import LocalProgress, ProgressTarget
from dapt_operator.cluster.local.source_contents import SourceContents
from dapt_operator.cluster.local.stored_resource import StoredResource
from dapt_operator.cluster.port import Event, Key, ObjectReference, World
from dapt_operator.cluster.timestamps import micro_time
from dapt_operator.launchers.labels import QUEUE_LABEL
from dapt_operator.launchers.observe.containers import has_ended
from dapt_operator.launchers.render.environment import DEFAULT_GPU_RESOURCE
from dapt_operator.stage_run import Children, Manifest

INTERRUPTED: Final = (
    "the local run was ended while this stage ran; the next run continues from what is complete"
)

MAX_NODES: Final = 10_000
"""Of `resources.nodes`: no Job has more pods."""
LEFTOVER_LOCK_SECONDS: Final = 10.0
"""A killed run's last child becomes its program within milliseconds, or seconds on a machine with far too much to
do."""


class LocalCluster:
    """Runs one adaptation in one folder.

    Use it as a context manager, from one thread that lives as long as the run: the kernel kills the processes of a Job
    when the thread that started them ends.
    """

    def __init__(self, folder: Path, resource: Manifest, profile: Manifest | None) -> None:
        """Open or create a run folder.

        Args:
            folder: for example `runs/quickstart`.
            resource: the DomainAdaptation as the user wrote it; valid.
            profile: the AdaptationProfile.

        Raises:
            LocalRunError: another process runs in this folder, the folder belongs to another resource, or a frozen
                block of the spec was changed.
        """
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        # Before anything is written, the lock too.
        if found := foreign_entry(self.folder):
            raise LocalRunError(
                f"{self.folder}: {found}, and a run writes into its folder alone: remove that, or start over with"
                " --fresh"
            )
        # Before anything is read: a second run in this folder would take the processes of the first for leftovers.
        self._lock_file = _exclusive(self.folder)
        try:
            self._profile = profile
            self._store = ObjectFiles(self.folder / "objects")
            self._resource = StoredResource(self.folder, self._store, resource)
            self._contents = SourceContents(self._resource.value)
            (self.folder / "work").mkdir(exist_ok=True)
            self._jobs: dict[str, LocalJob] = {}
            self._waiting: dict[str, Capacity] = {}
            """Requests of the Jobs that wait for capacity, by name, oldest first."""
            self._running: dict[str, Capacity] = {}
            """Requests of the Jobs that run, by name."""
            self._capacity = machine_capacity(_accelerators(profile))
            self._is_killed = False
            self._changed = threading.Condition()
            self._changes = 0
            # A local run that was killed may have left processes; they must end before a new run writes to the volume.
            kill_marked(f"{RUN_MARKER}={self.folder}")
            self._close_interrupted_jobs()
        except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            if isinstance(error, LocalRunError):
                self._lock_file.close()
                raise
            # A folder that somebody sent may hold objects of any shape.
            self._lock_file.close()
            raise LocalRunError(
                f"{self.folder / 'objects'}: holds an object that is not as dapt writes it ({type(error).__name__}:"
                f" {shortened(str(error), 100)}): start over with --fresh"
            ) from error
        except BaseException:
            self._lock_file.close()
            raise
        self._progress = LocalProgress(self._progress_targets)

    @property
    def key(self) -> Key:
        """Key of the resource in this folder."""
        metadata = self._resource.value["metadata"]
        return Key(metadata["namespace"], metadata["name"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def renew_retries(self) -> None:
        """Give a stage without retries new ones, as a changed spec does."""
        self._resource.renew_retries()

    def observe(self, key: Key) -> World:
        """Return everything that a plan may depend on, after starting the waiting Jobs that fit by now."""
        self._start_waiting()
        is_ours = key == self.key
        children = Children(
            jobs=self._store.all("Job"), pods=self._store.all("Pod"), progress=self._progress.latest()
        )
        return World(
            now=datetime.now(UTC),
            resource=self._resource.value if is_ours else None,
            profile=self._profile,
            children=children if is_ours else Children(),
            contents=self._contents.latest() if is_ours else {},
            keeps_ended_runs=True,
        )

    def apply(self, key: Key, manifest: Manifest) -> bool:
        """Create an object if none of its kind and name exists; start the processes of a Job if they fit.

        Returns:
            Whether it was created.

        Raises:
            OSError: the disk is full.
        """
        self._check(key)
        manifest = _admitted(manifest)
        created = self._store.create(manifest)
        if created is None or manifest["kind"] != "Job":
            return created is not None
        if manifest["spec"].get("suspend"):
            self._store.put(created | {"status": job_status.suspended_status()})
            return True
        name = str(manifest["metadata"]["name"])
        self._jobs[name] = LocalJob(self._store, self.folder, created, self._notify)
        self._waiting[name] = job_request(created, self._capacity)
        self._start_waiting()
        return True

    def can_create(self, key: Key, manifest: Manifest) -> bool:
        """Return whether no object of this kind and name exists."""
        self._check(key)
        return self._store.get(str(manifest["kind"]), str(manifest["metadata"]["name"])) is None

    def _start_waiting(self) -> None:
        """Start the Jobs that fit, oldest first. Called from the thread that lives as long as the run."""
        # What the kill sets free must not start the next Job.
        if self._is_killed:
            return
        self._running = {
            name: request for name, request in self._running.items() if not self._jobs[name].is_over
        }
        for name, request in list(self._waiting.items()):
            if self._jobs[name].is_deleted:
                del self._waiting[name]
                continue
            used = sum(self._running.values(), start=Capacity())
            # With nothing else running even a Job that exceeds the machine starts: waiting would not help it.
            why = used.why_no_fit(request, self._capacity) if self._running else ""
            if why:
                self._jobs[name].wait(why)
                continue
            del self._waiting[name]
            self._running[name] = request
            self._jobs[name].start()

    def delete(self, key: Key, reference: ObjectReference) -> None:
        """Remove an object. The processes of a Job get SIGTERM and their grace period; it is gone when they are."""
        self._check(key)
        if reference.kind == "Pod":
            self._delete_pod(reference.name)
            return
        if reference.kind != "Job":
            self._store.remove(reference.kind, reference.name)
            return
        manifest = self._store.get("Job", reference.name)
        if manifest is None:
            return
        job = self._jobs.get(reference.name)
        if job is not None:
            job.stop(delete=True)
            return
        # A Job of an earlier local run: it has no process any more.
        for index in range(_completions(manifest)):
            self._store.remove("Pod", f"{reference.name}-{index}")
        self._store.remove("Job", reference.name)

    def _delete_pod(self, name: str) -> None:
        """Kill one process of a Job at once: the planner deletes single pods only when a peer has failed."""
        job_name, _, index = name.rpartition("-")
        job = self._jobs.get(job_name)
        if job is None:
            self._store.remove("Pod", name)
        elif index.isdigit():
            job.kill_pod(int(index))

    def write_status(self, key: Key, status: Manifest, resource_version: str) -> None:
        """Replace the status; see `Cluster.write_status`."""
        self._check(key)
        self._resource.write_status(status, resource_version)

    def record(self, key: Key, event: Event) -> None:
        """Append an Event to `events.jsonl`."""
        self._check(key)
        line = {"time": micro_time(), "type": event.type, "reason": event.reason, "message": event.message}
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def wait_for_change(self, timeout_seconds: float) -> bool:
        """Wait until a process has ended since the last call; return whether one has."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes > 0, timeout_seconds)
            has_changed, self._changes = self._changes > 0, 0
        return has_changed

    def log_path(self, job: str, index: int = 0) -> Path:
        """Return the file with the output of one process of a Job."""
        return self.folder / "logs" / f"{job}-{index}.log"

    def kill(self) -> None:
        """End all processes at once, without their grace period, and start no others: the user does not want to wait.

        May be called by a signal handler.
        """
        self._is_killed = True
        for job in tuple(self._jobs.values()):
            job.interrupt(at_once=True)

    def close(self) -> None:
        """Stop all processes (SIGTERM, grace period, SIGKILL), then release the folder."""
        for job in self._jobs.values():
            job.note_user_stop()
            # At once also what was being started when `kill` was called.
            job.interrupt(at_once=self._is_killed)
        while not all(job.is_over for job in self._jobs.values()):
            time.sleep(0.02)
        # The folder is released last: another run may not begin while a process of this one writes to the volume.
        self._progress.close()
        self._lock_file.close()

    def _check(self, key: Key) -> None:
        if key != self.key:
            raise LocalRunError(f"{self.folder} holds {self.key.name}, not {key.name}")

    def _notify(self) -> None:
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def _progress_targets(self) -> dict[str, ProgressTarget]:
        targets = {}
        # A copy: the thread that polls calls this while a Job is added.
        for name, job in list(self._jobs.items()):
            manifest, port = self._store.get("Job", name), job.progress_port
            if manifest is not None and port is not None and not job.is_over:
                run = str((manifest["metadata"].get("labels") or {}).get(LABEL_RUN, ""))
                targets[name] = ProgressTarget(port, run)
        return targets

    def _close_interrupted_jobs(self) -> None:
        """Mark Jobs that were running when the last local run was killed as failed by a disruption.

        A stop, which is no fault, is what waited for capacity then and so has not run at all, and what the user had
        requested to stop before the local run was killed.
        """
        for job in self._store.all("Job"):
            if job_status.is_finished(job) or job["spec"].get("suspend"):
                continue
            pods = []
            for index in range(_completions(job)):
                name = f"{job['metadata']['name']}-{index}"
                pod = self._store.get("Pod", name) or job_status.pod_of(job, index)
                is_stop = job_status.is_noted_as_stopped(job) or not job_status.has_started(pod)
                if not has_ended(pod) and is_stop:
                    pod = job_status.stopped(pod)
                    self._store.put(pod)
                elif not has_ended(pod):
                    # A disruption uses up no retry: that the run was ended is no fault of the stage.
                    pod = job_status.ended(pod, 137, "", disrupted=INTERRUPTED)
                    self._store.put(pod)
                pods.append(pod)
            failure = ("BackoffLimitExceeded", "Job has reached the specified backoff limit")
            self._store.put(job | {"status": job_status.job_status(job, pods, failure)})
        for scratch in (self.folder / "pods").glob("*/scratch"):
            remove_folder(scratch)


def _completions(job: Manifest) -> int:
    """Return the number of a stored Job's pods.

    Raises:
        TypeError: it is none that a run has: a file of a run that somebody sent may hold anything.
    """
    completions = job["spec"].get("completions", 1)
    if not isinstance(completions, int) or not 1 <= completions <= MAX_NODES:
        raise TypeError(f"completions of {job['metadata']['name']}: {completions!r}")
    return completions


def _accelerators(profile: Manifest | None) -> dict[str, int]:
    """Return the profile's accelerators of one node, by resource name; none on CPU."""
    accelerator = ((profile or {}).get("spec") or {}).get("accelerator") or {}
    if accelerator.get("kind") != "gpu":
        return {}
    return {str(accelerator.get("resource") or DEFAULT_GPU_RESOURCE): int(accelerator.get("perNode") or 1)}


def _exclusive(folder: Path) -> IO[str]:
    """Hold the folder's lock until the file is closed.

    Raises:
        LocalRunError: another process holds it.
    """
    # Not "w": that would remove the holder's number before the lock is known to be free.
    file = (folder / ".lock").open("a+", encoding="utf-8")
    give_up = time.monotonic() + LEFTOVER_LOCK_SECONDS
    while not _locked(file):
        file.seek(0)
        holder = file.read().strip()
        # A process that was being started while the run was killed holds the lock until it has become its program.
        if holder and not _exists(holder) and time.monotonic() < give_up:
            time.sleep(0.05)
            continue
        file.close()
        who = f" (process {holder})" if holder else ""
        raise LocalRunError(
            f"{folder} is in use by another dapt run{who}: wait for it, or stop it, or choose another metadata.name"
        )
    # The lock is on the open file; its content only names the holder in the message above.
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _exists(process_id: str) -> bool:
    try:
        os.kill(int(process_id), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:  # somebody else's process
        return True
    return True


def _admitted(manifest: Manifest) -> Manifest:
    """Return a queued Job as its queue would admit it: this machine has no queue, so there is nothing to wait for."""
    if QUEUE_LABEL not in (manifest["metadata"].get("labels") or {}):
        return manifest
    return {**manifest, "spec": {**manifest["spec"], "suspend": False}}
