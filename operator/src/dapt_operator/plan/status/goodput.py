"""Goodput of pretraining, from what the ledger and the last reading tell."""

from __future__ import annotations

from dapt_contract.stages.pretrain import PretrainFacts
from dapt_operator.api.v1alpha1.ledger import Ledger, RunRecord
from dapt_operator.api.v1alpha1.status import ProgressStatus
from dapt_operator.plan.ledger.records import facts_of, held_seconds
from dapt_operator.plan.observed import Observed


def goodput(observed: Observed, ledger: Ledger, progress: ProgressStatus | None) -> float | None:
    """Share of the time that pretraining held its gang which went into optimizer steps that count.

        goodput = useful seconds / held seconds

    Held: from the first process' start to the end, summed over all attempts and tries, the running one until now; on
    accelerators as on CPU it is the gang that is held. Useful, once a try has told its facts: its last step (counted
    from the attempt's beginning, so a step that was done twice counts once) times the median seconds of a step; while
    the first try runs: tokens so far over tokens a second, as it reads them. Loading, saving, measuring at checkpoints
    and steps that a fault undid are held and not useful. None before there is anything to tell; at most 1.
    """
    records = [record for record in ledger.runs if record.kind == "pretrain"]
    live = (run for run in observed.live if run.kind == "pretrain")
    held = sum(record.held_seconds or 0.0 for record in records)
    held += sum(held_seconds(run, observed.now) for run in live)
    told = [useful for record in records if (useful := _useful_of(record, progress)) is not None]
    if not told or held <= 0.0:
        return None
    return round(min(1.0, sum(told) / held), 4)


def _useful_of(record: RunRecord, progress: ProgressStatus | None) -> float | None:
    """Of one attempt."""
    facts = facts_of(record)
    return _useful_seconds(
        facts if isinstance(facts, PretrainFacts) else None, progress if record.state == "Open" else None
    )


def _useful_seconds(facts: PretrainFacts | None, running: ProgressStatus | None) -> float | None:
    """By the facts of the newest try that told any, and by the reading of the one that runs."""
    a_step = facts.step_seconds_median if facts is not None else 0.0
    if running is not None and running.step is not None and a_step > 0.0:
        return running.step * a_step
    if running is not None and running.tokens is not None and running.tokens_per_second:
        return running.tokens / running.tokens_per_second
    if facts is None or a_step <= 0.0:
        return None
    return facts.steps * a_step
