"""`dapt run` carries one adaptation to its end on this machine, from wherever an earlier run left it.

The loop is the operator's own: reconcile, then wait for a change. What is shown comes from the status and from live
progress; no decision is made here.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dapt_contract.sentences import CUT_MARK
from dapt_contract.untrusted.folders import remove_folder
from dapt_contract.untrusted.regular_files import read_regular_file
from dapt_operator.api.v1alpha1.conditions import PUBLISHED
from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.api.v1alpha1.status import Condition, DomainAdaptationStatus
from dapt_operator.cli.commands.plan import plan
from dapt_operator.cli.display.results import conclude
from dapt_operator.cli.display.screen import CleanConsole, Screen, screen_for
from dapt_operator.cli.display.stage_rows import Snapshot
from dapt_operator.cli.display.warning_lines import WarningLines
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.file_changes import changed_files
from dapt_operator.cli.inputs.machine import built_in_profile
from dapt_operator.cli.inputs.manifests import Request
from dapt_operator.cli.inputs.profile_trust import trust_problem
from dapt_operator.cli.run_folder import STATUS_FILE, WORK_FOLDER, RunFolder
from dapt_operator.cli.signals import StopFlag
from dapt_operator.cli.spec_changes import differences
from dapt_operator.cluster.local import LocalCluster, LocalRunError
from dapt_operator.cluster.local.invocations import Invocations, RunTime
from dapt_operator.launchers import all_states, indexed_job
from dapt_operator.launchers.launcher import Launcher
from dapt_operator.number_format import clock as elapsed
from dapt_operator.plan.stage_parts.stage_plan import stage_kinds
from dapt_operator.reconcile import reconcile
from dapt_operator.stage_run import RunPhase, RunState

LAUNCHERS: Mapping[str, Launcher] = {"IndexedJob": indexed_job}
"""Every profile runs as a Job here: a JobSet would have the same pods, and nothing on this machine reads JobSets."""
GARBAGE_THRESHOLD = 50_000
"""New objects before the collector looks for garbage: less often is for commands that end soon."""
RECONCILE_SECONDS = 10.0
"""Longest time between two reconciles; a change, or the plan's own request to be called again, comes earlier."""
MAX_LOG_BYTES = 1 << 20
"""Largest log that is searched for the sentence of a failed run."""
SIGNAL_CHECK_SECONDS = 0.125
MIN_RECONCILE_SECONDS = 0.05
"""Shortest time between two reconciles without a change."""
AFTER_START_SECONDS = 1.0
"""Longest wait after a stage was started: the next reconcile records that its processes run."""


@dataclass(frozen=True)
class Options:
    """Options of `dapt run`."""

    runs: Path
    fresh: bool = False
    with_report: bool = True


def run(request: Request, options: Options, console: CleanConsole) -> int:
    """Run until the adaptation ends, stalls or a signal arrives, and return the exit code.

    Raises:
        UserError: the run cannot start, or it ended without a published model.
    """
    gc.set_threshold(GARBAGE_THRESHOLD)
    folder = RunFolder(options.runs / request.adaptation.metadata.name)
    finished = None if options.fresh else _finished(folder)
    if finished is not None and finished.reason == PUBLISHED:
        return _show_finished(folder, request, finished, options, console)
    if request.profile is not None and not request.is_profile_given:
        problem = trust_problem(request.path, request.profile)
        if problem is not None:
            raise UserError(problem)
    _refuse_separators(folder, request.adaptation)
    profile = request.profile or built_in_profile(request.adaptation)
    if options.fresh or not (folder.work / "model").is_dir():
        _check_inputs(replace(request, profile=profile), folder.path if options.fresh else None)
    if options.fresh:
        _remove(folder)
    try:
        cluster = LocalCluster(folder.path, *as_stored(request.adaptation, profile))
    except LocalRunError as error:
        raise UserError(error.problems) from None
    except OSError as error:
        raise UserError(
            f"{folder.path}: cannot be written ({error.strerror}); give another --runs-dir"
        ) from None
    if (folder.path / STATUS_FILE).is_file():
        _warn_of_changed_files(folder, request, console)
    invocations = folder.invocations.next(request.path)
    with StopFlag(on_second=cluster.kill) as flag:
        status = _run_in(cluster, stage_kinds(request.adaptation.spec), folder, console, flag, invocations)
        if flag.is_set and not _ended(status):
            command = f"dapt run {request.path}"
            console.print(f"stopped; `{command}` continues the run")
            return flag.exit_code
    console.print(folder.invocations.sentence)
    conclude(folder, status, console, with_report=options.with_report)
    return 0


def _show_finished(
    folder: RunFolder, request: Request, finished: Condition, options: Options, console: CleanConsole
) -> int:
    """Show the results of a published run.

    Raises:
        UserError: the manifest asks for something else than what was run.
    """
    console.print(f"{folder.name} is finished already: {finished.message}")
    conclude(
        folder,
        folder.status(),
        console,
        with_report=options.with_report and not folder.report.is_file(),
    )
    _warn_of_changed_files(folder, request, console)
    if problem := differences(folder, request.adaptation.spec, request.path):
        raise UserError(problem)
    return 0


def _warn_of_changed_files(folder: RunFolder, request: Request, console: CleanConsole) -> None:
    # Modification times may mislead, so this alone is no failure.
    if note := changed_files(folder, request.adaptation.spec, folder.status(), request.path):
        console.print(f"warning: {note}", markup=False, highlight=False, soft_wrap=True)


def _run_in(
    cluster: LocalCluster,
    planned: tuple[str, ...],
    folder: RunFolder,
    console: CleanConsole,
    flag: StopFlag,
    invocations: Invocations,
) -> DomainAdaptationStatus:
    """Follow the run, leave no process running, and return the last status."""
    run_time = RunTime(folder.path, invocations)
    try:
        with cluster, screen_for(console) as screen:
            if Snapshot(folder.name, folder.status()).stalled is not None:
                cluster.renew_retries()
            status = follow(cluster, planned, screen, flag, time.monotonic, run_time)
            if flag.is_set and not _ended(status):
                screen.add_line("stopping: the running stage saves first (once more to stop at once)")
        return status
    except LocalRunError as error:
        raise UserError(error.problems) from None
    except BrokenPipeError:
        raise  # nobody reads the output any more, as after `dapt run ... | head`: a stop, and no full disk
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(
            f"{folder.path}: cannot be written: {error.strerror}{where}; free space or correct it, then start the same"
            " command again: it continues the run"
        ) from error
    finally:
        # After the processes have ended: the time in which they saved counts too.
        with contextlib.suppress(OSError):
            run_time.save()


def follow(
    cluster: LocalCluster,
    planned: tuple[str, ...],
    screen: Screen,
    flag: StopFlag,
    clock: Callable[[], float] = time.monotonic,
    run_time: RunTime | None = None,
) -> DomainAdaptationStatus:
    """Reconcile until the run ends, user action is required or a signal arrives, and return the last status.

    Args:
        cluster: holds the run.
        planned: kinds of stages that it will have.
        screen: shows it.
        flag: is set by a signal.
        clock: seconds from any moment on.
        run_time: of all invocations, which the shown times then count; None: they count from now.
    """
    key, started = cluster.key, clock()
    due = started
    # What an earlier invocation has shown is not shown again.
    shown_failures = {run.identity.key for run in _failed(cluster)}
    warning_lines = WarningLines(cluster.folder / WORK_FOLDER)
    warning_lines.new(_status_of(cluster))
    while True:
        moment = clock()
        if moment >= due and not flag.is_set:  # a reconcile would start the next stage after the stop request
            plan_of_reconcile = reconcile(cluster, key, LAUNCHERS)
            requeue_after = plan_of_reconcile.requeue_after
            requested = RECONCILE_SECONDS if requeue_after is None else requeue_after
            latest = AFTER_START_SECONDS if plan_of_reconcile.apply else RECONCILE_SECONDS
            due = moment + max(MIN_RECONCILE_SECONDS, min(requested, latest))
            if run_time is not None:
                run_time.save()
        seconds = clock() - started if run_time is None else run_time.total_seconds
        observed = cluster.observe(key)
        status = DomainAdaptationStatus.model_validate((observed.resource or {}).get("status") or {})
        progress = {reported.run_key: reported for reported in observed.children.progress.values()}
        snapshot = Snapshot(key.name, status, planned, progress, datetime.now(UTC), seconds)
        for failed in _failed(cluster):
            if failed.identity.key not in shown_failures:
                shown_failures.add(failed.identity.key)
                screen.add_line(
                    f"[{elapsed(seconds)}] {failure_line(failed, cluster.log_path(failed.object_name))}"
                )
        for warning in warning_lines.new(status):
            screen.add_line(f"warning: {warning}")
        screen.show(snapshot)
        if flag.is_set or _ended(status):
            return status
        if _changed(cluster, clock() + min(screen.refresh_seconds, due - clock()), flag, clock):
            due = clock()


def _status_of(cluster: LocalCluster) -> DomainAdaptationStatus:
    resource = cluster.observe(cluster.key).resource or {}
    return DomainAdaptationStatus.model_validate(resource.get("status") or {})


def _changed(cluster: LocalCluster, until: float, flag: StopFlag, clock: Callable[[], float]) -> bool:
    """Wait until something changes, the time is up or a signal arrives; return whether something changed."""
    # In short steps: a signal handler sets the flag, but does not end the wait for a change.
    while not flag.is_set and (left := until - clock()) > 0:
        if cluster.wait_for_change(min(SIGNAL_CHECK_SECONDS, left)):
            return True
    return False


def _failed(cluster: LocalCluster) -> list[RunState]:
    observed = cluster.observe(cluster.key)
    states = all_states(observed.children, observed.now, LAUNCHERS)
    return [run for run in states if run.phase is RunPhase.FAILED]


def failure_line(run: RunState, log: Path) -> str:
    """Describe a failed run in one line; the status keeps only the newest one.

    Args:
        run: has failed.
        log: output of its first process, which has the whole sentence where the message had no place for it.
    """
    cause = run.cause.value if run.cause else "unknown cause"
    message = f": {_whole_sentence(run.message, log)}" if run.message else ""
    return f"{run.identity.stage}, run {run.identity.try_number}: failed ({cause}){message}"


def _whole_sentence(message: str, log: Path) -> str:
    """Return the sentence of a cut message, or the message itself where it is whole or the log lacks it."""
    if not message.endswith(CUT_MARK):
        return message
    try:
        lines = read_regular_file(log, MAX_LOG_BYTES).decode(errors="replace").splitlines()
    except (OSError, ValueError):
        return message
    beginning = f"dapt: {message.removesuffix(CUT_MARK)}"
    whole = next((line for line in lines if line.startswith(beginning)), None)
    return message if whole is None else whole.removeprefix("dapt: ")


def _ended(status: DomainAdaptationStatus) -> bool:
    snapshot = Snapshot("", status)
    return snapshot.finished is not None or snapshot.stalled is not None


def _finished(folder: RunFolder) -> Condition | None:
    if not (folder.path / STATUS_FILE).is_file():
        return None
    return Snapshot(folder.name, folder.status()).finished


def as_stored(
    adaptation: DomainAdaptation, profile: AdaptationProfile
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return both as a cluster would store them; the adaptation names the profile that it gets here."""
    stored_adaptation, stored_profile = (
        {"apiVersion": resource.api_version, "kind": resource.kind} | resource.to_dict(only_set=True)
        for resource in (adaptation, profile)
    )
    stored_adaptation["spec"] = stored_adaptation["spec"] | {"profile": profile.metadata.name}
    return stored_adaptation, stored_profile


def _check_inputs(request: Request, removed: Path | None) -> None:
    """Refuse what the estimate, the profile's limits and the local files rule out, before anything starts.

    After prepare has read the files they are no longer needed, so a continued run does not check them again.

    removed: folder that is removed before the run starts, with the destination if that is in it.
    """
    if problems := plan(request, removed=removed).problems:
        raise UserError(problems)


def _refuse_separators(folder: RunFolder, adaptation: DomainAdaptation) -> None:
    """Refuse a folder in whose path the library that stores the harness' data sets sees two addresses."""
    evaluation, path = adaptation.spec.evaluation, folder.path.resolve()
    stored = [
        task.name for task in (*evaluation.domain.tasks, *evaluation.general.tasks) if task.source is None
    ]
    if stored and "::" in str(path):
        raise UserError(
            f"{path}: has '::' in its path, in which the data of task {stored[0]} cannot be stored; give a --runs-dir"
            " without it"
        )


def _remove(folder: RunFolder) -> None:
    """Remove the folder of a run; refuse any other folder."""
    if not folder.path.exists():
        return
    marks_of_a_run = (STATUS_FILE, "objects", ".lock")
    if not any((folder.path / name).exists() for name in marks_of_a_run):
        raise UserError(
            f"{folder.path}: not the folder of a run, so --fresh does not remove it; give another --runs-dir"
        )
    if folder.is_in_use:
        raise UserError(
            f"{folder.path}: a dapt run is using it, so --fresh does not remove it; stop that one first"
        )
    if not remove_folder(folder.path):
        raise UserError(
            f"{folder.path}: --fresh could not remove all that is in it; remove it as the user who may, or give another"
            " --runs-dir"
        )
