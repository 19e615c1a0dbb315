"""The goodput of pretraining, from the ledger and the last reading of its progress."""

from __future__ import annotations

from dapt_contract.stages.pretrain import PretrainFacts
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.api.v1alpha1.stored.progress import ProgressStatus
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord
from dapt_operator.plan.observed import Observed


def goodput(observed: Observed, ledger: Ledger, progress: ProgressStatus | None) -> float | None:
    """Return the share of the time that pretraining held its ranks which went into optimizer steps that count.

        goodput = useful seconds / held seconds

    Held: from the first process' start to the end, summed over all attempts and runs, the running one until now; on
    accelerators as on CPU it is the ranks that are held. Useful, once a run has reported its facts: its last step
    (counted from the attempt's beginning, so a step that was done twice counts once) times the median seconds of a
    step; while the first run is alive: tokens so far over tokens a second, as it reads them. Loading, saving, measuring
    at checkpoints and steps that a fault undid are held and not useful. None before anything is known; at most 1.
    """
    records = [record for record in ledger.runs if record.kind == "pretrain"]
    live = (run for run in observed.live if run.kind == "pretrain")
    held_seconds = sum(record.held_seconds or 0.0 for record in records)
    held_seconds += sum(run.held_seconds(observed.now) for run in live)
    useful_seconds = [seconds for record in records if (seconds := _useful(record, progress)) is not None]
    if not useful_seconds or held_seconds <= 0.0:
        return None
    return round(min(1.0, sum(useful_seconds) / held_seconds), 4)


def _useful(record: RunRecord, progress: ProgressStatus | None) -> float | None:
    """Return the useful seconds of one attempt, by its newest facts and by the reading of the run that is alive."""
    parsed = record.parsed_facts()
    facts = parsed if isinstance(parsed, PretrainFacts) else None
    running = progress if record.is_open else None
    step_seconds = facts.step_seconds_median if facts is not None else 0.0
    if running is not None and running.step is not None and step_seconds > 0.0:
        return running.step * step_seconds
    if running is not None and running.tokens is not None and running.tokens_per_second:
        return running.tokens / running.tokens_per_second
    if facts is None or step_seconds <= 0.0:
        return None
    return facts.steps * step_seconds
