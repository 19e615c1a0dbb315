"""`dapt run`: one adaptation on this machine, from wherever it stands to its end.

The loop is the operator's own: reconcile, then wait for a change. What is shown comes from the status and from live
readings; nothing here decides anything.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from dapt_operator.api.v1alpha1.conditions import PUBLISHED
from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.api.v1alpha1.status import Condition, DomainAdaptationStatus
from dapt_operator.cli.commands.plan import plan
from dapt_operator.cli.display.results import conclude
from dapt_operator.cli.display.screen import Screen, screen_for
from dapt_operator.cli.display.stage_rows import Snapshot
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.inputs.machine import built_in_profile
from dapt_operator.cli.inputs.manifests import Request
from dapt_operator.cli.run_folder import STATUS_FILE, RunFolder
from dapt_operator.cli.signals import StopFlag
from dapt_operator.cluster.local import LocalCluster, LocalRunError
from dapt_operator.launchers import all_states, indexed_job
from dapt_operator.launchers.launcher import Launcher
from dapt_operator.number_format import clock as elapsed
from dapt_operator.number_format import duration
from dapt_operator.plan.stages.order import kinds
from dapt_operator.reconcile import reconcile
from dapt_operator.stage_run import RunPhase, RunState

_LAUNCHERS: Mapping[str, Launcher] = {"IndexedJob": indexed_job}
"""Every profile's gang is a Job here: a JobSet's pods are the same, and nothing on this machine reads JobSets."""
RECONCILE_SECONDS = 10.0
"""At the latest; a change and the plan's own wish come before."""
LOOK_FOR_SIGNALS_SECONDS = 0.125
SOONEST_SECONDS = 0.05
"""Without a change nothing is looked at more often than this."""
AFTER_START_SECONDS = 1.0
"""After a stage was started, to write down that its processes run."""


@dataclass(frozen=True)
class Options:
    """How to run."""

    runs: Path
    fresh: bool = False
    with_report: bool = True


def run(request: Request, options: Options, console: Console) -> int:
    """Run to the end, a standstill or a signal; the exit code.

    Raises:
        UserError: the run cannot begin, or it ended without a published model.
    """
    folder = RunFolder(options.runs / request.adaptation.metadata.name)
    already = None if options.fresh else _finished(folder)
    if already is not None and already.reason == PUBLISHED:
        console.print(f"{folder.name} is finished already: {already.message}", markup=False, highlight=False)
        wanted = options.with_report and not folder.report.is_file()
        conclude(folder, folder.status(), console, with_report=wanted)
        return 0
    profile = request.profile or built_in_profile(request.adaptation)
    if options.fresh or not (folder.work / "model").is_dir():
        _check_inputs(replace(request, profile=profile))
    if options.fresh:
        _remove(folder)
    try:
        cluster = LocalCluster(folder.path, *_as_stored(request.adaptation, profile))
    except LocalRunError as error:
        raise UserError(error.problems) from None
    except OSError as error:
        raise UserError(
            f"{folder.path}: cannot be written ({error.strerror}); give another --runs-dir"
        ) from None
    begun = time.monotonic()
    with StopFlag(on_second=cluster.kill) as flag:
        status = _run_in(cluster, kinds(request.adaptation.spec), folder, console, flag)
        if flag.wanted and not _ended(status):
            again = f"dapt run {request.path}"
            console.print(f"stopped; `{again}` goes on where it was", markup=False, highlight=False)
            return flag.exit_code
    console.print(f"took {duration(time.monotonic() - begun)}", markup=False, highlight=False)
    conclude(folder, status, console, with_report=options.with_report)
    return 0


def _run_in(
    cluster: LocalCluster, planned: tuple[str, ...], folder: RunFolder, console: Console, flag: StopFlag
) -> DomainAdaptationStatus:
    """Follow the run and leave the cluster with nothing running; the last status."""
    try:
        with cluster, screen_for(console) as screen:
            if Snapshot(folder.name, folder.status()).stalled is not None:
                cluster.ask_again()
            status = follow(cluster, planned, screen, flag)
            if flag.wanted and not _ended(status):
                screen.say("stopping: the running stage saves first (once more to stop at once)")
        return status
    except LocalRunError as error:
        raise UserError(error.problems) from None
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(
            f"{folder.path}: cannot be written: {error.strerror}{where}; make room or correct it, then start the same"
            " command again: it goes on where it was"
        ) from error


def follow(
    cluster: LocalCluster,
    planned: tuple[str, ...],
    screen: Screen,
    flag: StopFlag,
    clock: Callable[[], float] = time.monotonic,
) -> DomainAdaptationStatus:
    """Reconcile until nothing is left to do, a person must act, or a signal comes; the last status."""
    key, begun = cluster.key, clock()
    due = begun
    known = {run.identity.key for run in _failed(cluster)}
    warned: set[str] = set()
    while True:
        moment = clock()
        if moment >= due and not flag.wanted:  # whoever asked to stop wants nothing started
            done = reconcile(cluster, key, _LAUNCHERS)
            wish = RECONCILE_SECONDS if done.requeue_after is None else done.requeue_after
            latest = AFTER_START_SECONDS if done.apply else RECONCILE_SECONDS
            due = moment + max(SOONEST_SECONDS, min(wish, latest))
        world = cluster.observe(key)
        assert world.resource is not None
        status = DomainAdaptationStatus.model_validate(world.resource.get("status") or {})
        readings = {one.run_key: one for one in world.children.progress.values()}
        shown = Snapshot(key.name, status, planned, readings, datetime.now(UTC), clock() - begun)
        for failed in _failed(cluster):
            if failed.identity.key not in known:
                known.add(failed.identity.key)
                screen.say(f"[{elapsed(clock() - begun)}] {failure_line(failed)}")
        for warning in status.plan.warnings if status.plan else ():
            if warning not in warned:
                warned.add(warning)
                screen.say(f"warning: {warning}")
        screen.show(shown)
        if flag.wanted or _ended(status):
            return status
        if _changed(cluster, clock() + min(screen.refresh_seconds, due - clock()), flag, clock):
            due = clock()


def _changed(cluster: LocalCluster, until: float, flag: StopFlag, clock: Callable[[], float]) -> bool:
    """Wait for a change until a moment, or until a signal comes; in short steps, since signals end no wait."""
    while not flag.wanted and (left := until - clock()) > 0:
        if cluster.wait_for_change(min(LOOK_FOR_SIGNALS_SECONDS, left)):
            return True
    return False


def _failed(cluster: LocalCluster) -> list[RunState]:
    world = cluster.observe(cluster.key)
    return [run for run in all_states(world.children, world.now, _LAUNCHERS) if run.phase is RunPhase.FAILED]


def failure_line(run: RunState) -> str:
    """A failed try in one line; the status keeps only the newest."""
    cause = run.cause.value if run.cause else "unknown cause"
    said = f": {run.message}" if run.message else ""
    return f"{run.identity.stage}, try {run.identity.try_number}: failed ({cause}){said}"


def _ended(status: DomainAdaptationStatus) -> bool:
    shown = Snapshot("", status)
    return shown.finished is not None or shown.stalled is not None


def _finished(folder: RunFolder) -> Condition | None:
    if not (folder.path / STATUS_FILE).is_file():
        return None
    return Snapshot(folder.name, folder.status()).finished


def _as_stored(
    adaptation: DomainAdaptation, profile: AdaptationProfile
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both as a cluster would store them; the adaptation names the profile that it gets here."""
    stored = []
    for one in (adaptation, profile):
        stored.append({"apiVersion": one.api_version, "kind": one.kind} | one.to_dict(only_set=True))
    stored[0]["spec"] = stored[0]["spec"] | {"profile": profile.metadata.name}
    return stored[0], stored[1]


def _check_inputs(request: Request) -> None:
    """What the estimate, the profile's limits and the local files rule out, before anything starts.

    Once prepare has read everything the files are not needed any more, and the planner judges the rest again.
    """
    if problems := plan(request).problems:
        raise UserError(problems)


def _remove(folder: RunFolder) -> None:
    """Remove a run's folder, and nothing that is not one."""
    if not folder.path.exists():
        return
    known = {STATUS_FILE, "objects", ".lock"}
    if not any((folder.path / name).exists() for name in known):
        raise UserError(
            f"{folder.path}: not the folder of a run, so --fresh leaves it alone; give another --runs-dir"
        )
    if folder.is_in_use:
        raise UserError(
            f"{folder.path}: a dapt run works in it, so --fresh leaves it alone; stop that one first"
        )
    shutil.rmtree(folder.path)
