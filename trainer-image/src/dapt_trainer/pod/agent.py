"""The pod's first process: starts the ranks, watches them, says how the run ended.

torchrun alone exits 1 whatever its workers returned. The agent exits with the contract's code for the root cause and
writes the termination message, which is all that the operator reads of a pod.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dapt_contract import pod
from dapt_contract.base import Contract
from dapt_contract.envelope import ContractError
from dapt_contract.failure import Cause, ExitCode
from dapt_contract.message import RunEnd, encode_message
from dapt_contract.stage_file import StageFile, finished_report
from dapt_contract.stages import KINDS
from dapt_trainer.errors import InputError
from dapt_trainer.linux import PARENT_PID, oom_kills
from dapt_trainer.pod.disk_reserve import Reserve
from dapt_trainer.pod.launch import Statuses, run_gang, run_single
from dapt_trainer.pod.outcome import PodOutcome, RankOutcome, judge, killed_outcome, read_outcome
from dapt_trainer.pod.settings import PodSettings
from dapt_trainer.pod.stage_input import read_stage
from dapt_trainer.pod.watch import Watch

WORKER = ("-m", "dapt_trainer.worker")
"""What each rank runs, after the interpreter."""
_ENDED_BY_RULE = {
    "ForgettingLimit": (ExitCode.FORGETTING_LIMIT, Cause.FORGETTING_LIMIT),
    "Diverged": (ExitCode.DIVERGED, Cause.DIVERGED),
}
"""Ends of pretraining that have a report and are no success."""


def run_agent(kind: str, config: Path, sha256: str | None, worker: Sequence[str] = WORKER) -> int:
    """Run one stage in this pod and return the contract's exit code."""
    log = Path(os.environ.get(pod.TERMINATION_LOG, pod.TERMINATION_PATH))
    try:
        settings = PodSettings.read()
        stage = read_stage(config, sha256, kind)
    except InputError as error:
        verdict = PodOutcome(error.exit_code, error.cause, "; ".join(error.problems))
        return _say(log, "", kind, verdict)
    finished = finished_report(settings.work, stage)
    if finished is not None:
        print(f"dapt: {stage.run.lineage} is finished already; its report is told again", flush=True)
        return _say(log, stage.run.key, kind, _verdict_of_report(finished))
    verdict = _run_ranks(stage, config, sha256, settings, worker, log)
    shutil.rmtree(
        settings.ranks_folder, ignore_errors=True
    )  # with its reserve: the last words must fit on a full disk
    return _say(log, stage.run.key, kind, verdict)


def _run_ranks(
    stage: StageFile,
    config: Path,
    sha256: str | None,
    settings: PodSettings,
    worker: Sequence[str],
    log: Path,
) -> PodOutcome:
    def stop_before_start() -> None:
        verdict = PodOutcome(ExitCode.STOPPED, Cause.STOPPED, "asked to stop before the ranks ran")
        os._exit(_say(log, stage.run.key, stage.kind, verdict))

    shutil.rmtree(settings.ranks_folder, ignore_errors=True)
    settings.ranks_folder.mkdir(parents=True)
    Reserve(settings.ranks_folder / "reserve")
    os.environ[PARENT_PID] = str(os.getpid())
    command = [*worker, "--config", str(config), *(["--sha256", sha256] if sha256 else [])]
    kills_before = oom_kills()
    watch = Watch(settings, stop_before_start)
    watch.start()
    lost_peers = ""
    statuses: Statuses = {}
    try:
        alone = settings.world_size == 1
        statuses = run_single(command) if alone else run_gang(command, settings, stage.run.key[:16])
    except Exception as error:  # the rendezvous' own errors have no common class
        lost_peers = f"the ranks could not be started: {type(error).__name__}: {error}".splitlines()[0]
    watch.close()
    return _judge_ranks(settings, statuses, watch, oom_kills() > kills_before, lost_peers)


def _judge_ranks(
    settings: PodSettings, statuses: Statuses, watch: Watch, oom_killed: bool, lost_peers: str
) -> PodOutcome:
    outcomes = []
    for rank in settings.local_ranks:
        outcome = read_outcome(settings.ranks_folder, rank) or watch.killed.get(rank)
        if outcome is not None and outcome.cause is Cause.STOPPED and not watch.stop_requested:
            # torch's launcher asks the peers of a failed rank to stop; nobody asked this pod.
            outcome = outcome.model_copy(update={"effect": True})
        if outcome is None and lost_peers:
            outcome = RankOutcome(
                rank=rank,
                exit_code=ExitCode.INFRASTRUCTURE,
                cause=Cause.INFRASTRUCTURE,
                problems=(lost_peers,),
            )
        if outcome is None and watch.stop_requested:
            outcome = RankOutcome(
                rank=rank,
                exit_code=ExitCode.STOPPED,
                cause=Cause.STOPPED,
                problems=(f"rank {rank} was stopped before it could save",),
            )
        outcomes.append(outcome or killed_outcome(rank, statuses.get(rank), oom_killed=oom_killed))
    return judge(outcomes)


def _verdict_of_report(report: Contract) -> PodOutcome:
    """A report told again ends as its run did."""
    facts: Any = getattr(report, "facts", None)
    code, cause = _ENDED_BY_RULE.get(getattr(facts, "ended_by", ""), (ExitCode.DONE, None))
    plain = facts.model_dump(mode="json") if isinstance(facts, Contract) else None
    return PodOutcome(code, cause, getattr(facts, "message", "") if code else "", facts=plain)


def _say(log: Path, key: str, kind: str, verdict: PodOutcome) -> int:
    """Write the termination message; returns the exit code."""
    if verdict.sentence:
        print(f"dapt: {verdict.sentence}", flush=True)
    try:
        end = RunEnd(verdict.exit_code, verdict.cause, verdict.sentence, is_effect=verdict.effect)
        text = encode_message(key, kind, end, facts=_parsed(kind, verdict.facts))
        log.write_text(text, encoding="utf-8")
    except (OSError, ContractError) as error:
        # The operator treats a lost message as a failure; a new try repeats it from the report.
        print(f"dapt: the termination message is lost: {error}", file=sys.stderr, flush=True)
    return int(verdict.exit_code)


def _parsed(kind: str, facts: Mapping[str, Any] | None) -> Contract | None:
    if facts is None:
        return None
    try:
        return KINDS[kind].facts.model_validate(facts)
    except ValidationError as error:
        raise ContractError(f"facts of {kind} do not fit: {error.errors()[0]['msg']}") from error
