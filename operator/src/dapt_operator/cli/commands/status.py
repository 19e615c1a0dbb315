"""`dapt status --local` shows all local runs in a table, or one run with stages, conditions and results."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dapt_contract.pod.progress import Progress
from dapt_operator.api.v1alpha1.conditions import FINISHED, STALLED, find_condition
from dapt_operator.api.v1alpha1.profile import LOCAL_PROFILE_NAME
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.cli.display.live_view import render
from dapt_operator.cli.display.results import attempts_table, candidates_table, read_results, results_table
from dapt_operator.cli.display.stage_rows import Snapshot
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.file_changes import changed_files
from dapt_operator.cli.inputs.manifests import read_request
from dapt_operator.cli.run_folder import RunFolder, explained
from dapt_operator.cli.spec_changes import differences
from dapt_operator.number_format import percent


def runs_table(runs: tuple[RunFolder, ...]) -> Table:
    """Return one line for each run; a run that cannot be read shows the reason in its line."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("NAME", "PHASE", "PROGRESS", "FORGETTING", "GAIN", "SELECTED"):
        table.add_column(heading)
    for run in runs:
        try:
            with explained(run.path):
                row = _row(run)
        except UserError as error:
            row = (run.name, error.problems[0])
        table.add_row(*row)
    return table


def _row(run: RunFolder) -> tuple[str, ...]:
    status = run.status()
    return (run.name, _phase(run, status), *result_cells(status))


def result_cells(status: DomainAdaptationStatus) -> tuple[str, ...]:
    """Return progress, forgetting, gain and the selected candidate as the overview of several runs shows them."""
    fraction = status.progress.fraction if status.progress else None
    return (
        "–" if fraction is None else f"{100 * fraction:.0f} %",
        percent(status.forgetting),
        "–" if status.gain is None else f"{status.gain:.3f}",
        status.selected.id if status.selected else "–",
    )


def _phase(run: RunFolder, status: DomainAdaptationStatus) -> str:
    """Return the phase; of a run that `dapt run` could continue and that no process works on, this too."""
    phase = status.phase or "Pending"
    return phase if run.is_in_use or reason_of_end(status) else f"{phase} (stopped)"


def run_overview(run: RunFolder) -> RenderableType:
    """Return the stages, the reason why the run waits or ended, and the tables of results.

    Raises:
        UserError: the run cannot be read.
    """
    with explained(run.path):
        return _overview(run)


def _overview(run: RunFolder) -> RenderableType:
    status = run.status()
    started = tuple(dict.fromkeys(stage.kind for stage in status.stages))
    sentence = reason_of_end(status)
    if not sentence and not run.is_in_use:
        status = _stopped(status)
        sentence = "not running now; `dapt run` with its manifest continues it"
    snapshot = Snapshot(run.name, status, started, progress=last_progress(status), now=datetime.now(UTC))
    parts: list[RenderableType] = [render(snapshot)]
    # Without a file of the invocations it is not known how long they took together.
    took = run.invocations.sentence if run.invocations.number else ""
    for line in (took, sentence, *_edited_since(run, status)):
        if line:
            parts += [Text(), Text(line)]
    for table in (
        attempts_table(status),
        candidates_table(status),
        results_table(read_results(run.work, status)),
    ):
        if table is not None:
            parts += [Text(), table]
    if run.report.is_file():
        parts += [Text(), Text(f"report: {run.report}")]
    return Group(*parts)


def last_progress(status: DomainAdaptationStatus) -> dict[str, Progress]:
    """Return the progress of the running stages by their run keys, as the status has it."""
    found = {
        stage.run_key: Progress(
            run_key=stage.run_key,
            stage=stage.kind,
            activity=stage.progress.activity or "",
            fraction=stage.progress.fraction,
            eta_seconds=stage.progress.eta_seconds,
            slow_rank=stage.progress.slow_rank or "",
        )
        for stage in status.stages
        if stage.state == "Running" and stage.progress is not None and stage.run_key is not None
    }
    return found | _pretraining_progress(status)


def _pretraining_progress(status: DomainAdaptationStatus) -> dict[str, Progress]:
    reading = status.progress
    running = [stage for stage in status.stages if stage.kind == "pretrain" and stage.state == "Running"]
    if reading is None or not running or running[-1].run_key is None:
        return {}
    return {
        running[-1].run_key: Progress(
            run_key=running[-1].run_key,
            stage="pretrain",
            fraction=reading.fraction or 0.0,
            step=reading.step,
            total_steps=reading.total_steps,
            tokens_per_second=reading.tokens_per_second,
            eta_seconds=reading.eta_seconds,
            slow_rank=reading.slow_rank or "",
        )
    }


def _edited_since(run: RunFolder, status: DomainAdaptationStatus) -> tuple[str, ...]:
    """Return what an ended run says of its manifest and files that were edited since; nothing where it is not known."""
    finished = find_condition(status.conditions, FINISHED)
    manifest = Path(run.invocations.manifest)
    if finished is None or finished.status != "True" or not manifest.is_file():
        return ()
    try:
        adaptation = read_request(manifest, LOCAL_PROFILE_NAME).adaptation
    except UserError:
        return ()  # it is another document by now, or in the middle of an edit
    if adaptation.metadata.name != run.name:
        return ()
    spec = adaptation.spec
    return differences(run, spec, manifest), changed_files(run, spec, status, manifest)


def _stopped(status: DomainAdaptationStatus) -> DomainAdaptationStatus:
    """Return the status with the stages suspended that were running when `dapt run` ended: their processes are gone."""
    reading = status.progress
    reached = f"step {reading.step} of {reading.total_steps}" if reading and reading.step else None
    stages = tuple(
        stage.model_copy(
            update={
                "state": "Suspended",
                "start_time": None,
                "message": reached if stage.kind == "pretrain" else stage.message,
            }
        )
        if stage.state in ("Running", "Pending")
        else stage
        for stage in status.stages
    )
    return status.model_copy(update={"stages": stages})


def reason_of_end(status: DomainAdaptationStatus) -> str:
    """Return why user action is required or why the run ended; empty while it continues."""
    for type_ in (STALLED, FINISHED):
        condition = find_condition(status.conditions, type_)
        if condition is not None and condition.status == "True":
            return f"{condition.reason}: {condition.message}"
    return ""
