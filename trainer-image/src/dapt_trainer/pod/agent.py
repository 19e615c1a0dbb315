"""Runs as the first process of a pod: starts the ranks, watches them and reports how the run ended.

torchrun alone exits with 1 whatever its workers returned. The agent exits with the contract's code for the root cause
and writes the termination message, which is all that the operator reads of a pod.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from dapt_contract.base import Contract
from dapt_contract.envelope import ContractError
from dapt_contract.pod import environment as pod
from dapt_contract.pod.failure import Cause, ExitCode
from dapt_contract.pod.message import RunEnd, encode_message
from dapt_contract.stage_file import StageFile, finished_report
from dapt_contract.stages import KINDS
from dapt_contract.untrusted.folders import remove_folder
from dapt_trainer.errors import InputError
from dapt_trainer.linux import PARENT_PID, oom_kills
from dapt_trainer.pod.disk_reserve import Reserve
from dapt_trainer.pod.launch import Statuses, run_gang, run_single, set_allocator
from dapt_trainer.pod.log_lines import write_line
from dapt_trainer.pod.outcome import PodOutcome, RankOutcome, judge, killed_outcome, read_outcome
from dapt_trainer.pod.settings import PodSettings
from dapt_trainer.pod.stage_input import read_stage
from dapt_trainer.pod.watch import Watch

WORKER = ("-m", "dapt_trainer.worker")
"""Command of each rank, after the interpreter."""
_ENDED_BY_RULE = {
    "ForgettingLimit": (ExitCode.FORGETTING_LIMIT, Cause.FORGETTING_LIMIT),
    "Diverged": (ExitCode.DIVERGED, Cause.DIVERGED),
}
"""Ends of pretraining that leave a report and are no success."""


def run_agent(kind: str, config: Path, sha256: str | None, worker: Sequence[str] = WORKER) -> int:
    """Run one stage in this pod and return the contract's exit code."""
    log = Path(os.environ.get(pod.TERMINATION_LOG, pod.TERMINATION_PATH))
    try:
        settings = PodSettings.read()
        stage = read_stage(config, sha256, kind)
        key = settings.read_signing_key()
    except InputError as error:
        outcome = PodOutcome(error.exit_code, error.cause, "; ".join(error.problems))
        return _report(log, "", kind, outcome)
    # A pod whose termination message was lost is run again: its work is done, so only the message is repeated.
    finished = finished_report(settings.work, stage, key=key)
    if finished is not None:
        write_line(f"{stage.run.lineage} is already finished; reporting its result again")
        return _report(log, stage.run.key, kind, _outcome_of_report(finished))
    command = [*worker, "--config", str(config), *(["--sha256", sha256] if sha256 else [])]
    outcome = _run_ranks(stage, command, settings, log)
    # Deleted with its reserve before the message is written: the message must fit on a full disk.
    remove_folder(settings.ranks_folder)
    return _report(log, stage.run.key, kind, outcome)


@dataclass(frozen=True)
class _RanksEnd:
    """Holds what is known after the ranks ended, apart from the outcomes that they wrote."""

    statuses: Statuses
    oom_killed: bool
    launch_problem: str
    """Why the ranks could not be started; empty when they were."""


def _run_ranks(stage: StageFile, command: Sequence[str], settings: PodSettings, log: Path) -> PodOutcome:
    def stop_before_start() -> None:
        outcome = PodOutcome(ExitCode.STOPPED, Cause.STOPPED, "stop requested before the ranks ran")
        os._exit(_report(log, stage.run.key, stage.kind, outcome))

    remove_folder(settings.ranks_folder)
    settings.ranks_folder.mkdir(parents=True)
    Reserve(settings.ranks_folder / "reserve")
    os.environ[PARENT_PID] = str(os.getpid())
    set_allocator()
    # The counter also holds earlier kills of this cgroup: only what is added while the ranks run counts.
    kills_before = oom_kills()
    watch = Watch(settings, stop_before_start)
    # Before the ranks, so that no stop request is lost in between.
    watch.start()
    launch_problem = ""
    statuses: Statuses = {}
    try:
        if settings.world_size == 1 or stage.kind in pod.UNCONNECTED_KINDS:
            statuses = run_single(command, settings)
        else:
            statuses = run_gang(command, settings, stage.run.key[:16])
    except Exception as error:  # the rendezvous' own errors have no common class
        launch_problem = f"the ranks could not be started: {type(error).__name__}: {error}".splitlines()[0]
    watch.close()
    return _judge_ranks(settings, watch, _RanksEnd(statuses, oom_kills() > kills_before, launch_problem))


def _judge_ranks(settings: PodSettings, watch: Watch, end: _RanksEnd) -> PodOutcome:
    outcomes = []
    for rank in settings.local_ranks:
        # A rank that was killed after it had written its outcome keeps that outcome.
        outcome = read_outcome(settings.ranks_folder, rank) or watch.killed.get(rank)
        if outcome is not None and outcome.cause is Cause.STOPPED and not watch.stop_requested:
            # torch's launcher sends SIGTERM to the peers of a failed rank; this pod received no stop request.
            outcome = outcome.as_effect()
        if outcome is None and end.launch_problem:
            outcome = RankOutcome(
                rank=rank,
                exit_code=ExitCode.INFRASTRUCTURE,
                cause=Cause.INFRASTRUCTURE,
                problems=(end.launch_problem,),
            )
        if outcome is None and watch.stop_requested:
            outcome = RankOutcome(
                rank=rank,
                exit_code=ExitCode.STOPPED,
                cause=Cause.STOPPED,
                problems=(f"rank {rank} was stopped before it could save",),
            )
        outcomes.append(outcome or killed_outcome(rank, end.statuses.get(rank), oom_killed=end.oom_killed))
    return judge(outcomes)


def _outcome_of_report(report: Contract) -> PodOutcome:
    """Return the outcome of the run that wrote the report."""
    facts = getattr(report, "facts", None)
    code, cause = _ENDED_BY_RULE.get(getattr(facts, "ended_by", ""), (ExitCode.DONE, None))
    fields = facts.model_dump(mode="json") if isinstance(facts, Contract) else None
    return PodOutcome(code, cause, getattr(facts, "message", "") if code else "", facts=fields)


def _report(log: Path, key: str, kind: str, outcome: PodOutcome) -> int:
    """Write the termination message and return the exit code."""
    if outcome.message:
        write_line(outcome.message)
    try:
        end = RunEnd(outcome.exit_code, outcome.cause, outcome.message, is_effect=outcome.is_effect)
        text = encode_message(key, kind, end, facts=_parsed(kind, outcome.facts))
        log.write_text(text, encoding="utf-8")
    except (OSError, ContractError) as error:
        # The operator treats a lost message as a failure; the next run repeats it from the report.
        write_line(f"the termination message is lost: {error}")
    return int(outcome.exit_code)


def _parsed(kind: str, facts: Mapping[str, object] | None) -> Contract | None:
    if facts is None:
        return None
    try:
        return KINDS[kind].facts.model_validate(facts)
    except ValidationError as error:
        raise ContractError(f"facts of {kind} are invalid: {error.errors()[0]['msg']}") from error
