"""Facts of finished stages, read once from the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from dapt_contract.measure import Measure, Perplexity, SidePerplexity, error_of_row
from dapt_contract.stages.baseline import BaselineFacts
from dapt_contract.stages.blend import BlendFacts, BlendRow, blend_folder
from dapt_contract.stages.evaluate import EvaluateFacts
from dapt_contract.stages.prepare import PrepareFacts
from dapt_contract.stages.pretrain import CheckpointFacts, PretrainFacts
from dapt_operator.api.v1alpha1.stored.ledger import AttemptRecord, Ledger
from dapt_operator.plan.ledger.compaction import stored_measures
from dapt_operator.remembered import remembered

_KINDS_OF_CANDIDATES: Final = frozenset({"pretrain", "blend", "evaluate"})
_CACHED_LEDGERS: Final = 16


@dataclass(frozen=True)
class Facts:
    """What finished stages have reported; None and empty where a stage has not finished."""

    prepare: PrepareFacts | None = None
    baseline: BaselineFacts | None = None
    pretrains: Mapping[int, PretrainFacts] = field(default_factory=dict)
    """By attempt. Also after the forgetting limit, divergence or a reached budget, then with the checkpoints so far;
    and of a running pretraining the complete checkpoints that its readings report."""
    blends: Mapping[int, tuple[BlendRow, ...]] = field(default_factory=dict)
    """Perplexities of averages and interpolations, by attempt."""
    blend_folders: Mapping[str, str] = field(default_factory=dict)
    """Folders of the averages and interpolations that are on the work volume, by candidate; others are made again from
    their recipes by the stage that needs them."""
    measures: Mapping[str, Measure] = field(default_factory=dict)
    """Evaluated candidates by id."""
    expected: Mapping[str, str] = field(default_factory=dict)
    """Digest of the weights that an evaluation was to score, by candidate."""
    given_up: Mapping[str, str] = field(default_factory=dict)
    """Last messages of evaluations that failed for good, by candidate."""
    dropped_evaluations: frozenset[str] = frozenset()
    """Candidates whose evaluation has ended and whose record was dropped."""
    lost_blends: Mapping[int, str] = field(default_factory=dict)
    """Last messages of blend runs that failed for good, by attempt."""
    replay_fraction: float | None = None
    """Share of general text of the first attempt as it is stored; None where it is not."""
    is_pretraining_recorded: bool = False
    """Whether the ledger knows of a run of pretraining that counts."""
    attempts: tuple[AttemptRecord, ...] = ()
    """Attempts after the first."""
    ranks: int = 1
    """Ranks of pretraining, which a default global batch depends on."""

    @property
    def base(self) -> Measure | None:
        """Measure of the base model."""
        return self.baseline.measure if self.baseline else None

    @property
    def attempt(self) -> int:
        """Number of the newest attempt."""
        return 1 + len(self.attempts)

    @property
    def has_started_pretraining(self) -> bool:
        """Whether a run of pretraining was ever started that counts."""
        return self.is_pretraining_recorded or bool(self.pretrains)

    @property
    def pretrain(self) -> PretrainFacts | None:
        """Facts of the newest attempt's pretraining."""
        return self.pretrains.get(self.attempt)


# The ledger is the same object from one reconcile to the next until a run of it begins, ends or reports.
@remembered(_CACHED_LEDGERS)
def read_facts(ledger: Ledger, ranks: int = 1) -> Facts:
    """Return the facts that do not depend on the selected candidate. ranks: of pretraining."""
    prepare = ledger.facts(PrepareFacts, "prepare")
    baseline = ledger.facts(BaselineFacts, "baseline")
    base = baseline.measure if baseline is not None else None
    pretrains: dict[int, PretrainFacts] = {}
    blends: dict[int, tuple[BlendRow, ...]] = {}
    blend_folders: dict[str, str] = {}
    measures: dict[str, Measure] = dict(stored_measures(ledger, base))
    expected: dict[str, str] = {
        measure.candidate: measure.expects for measure in ledger.measures if measure.expects is not None
    }
    given_up: dict[str, str] = {}
    lost_blends: dict[int, str] = {}
    for record in ledger.runs:
        if record.kind not in _KINDS_OF_CANDIDATES:
            continue  # their facts are long, and only later stages read them
        facts = record.parsed_facts()
        if isinstance(facts, PretrainFacts):
            pretrains[record.attempt] = facts
        # Added up: an edited selection may ask for a further round of blends of the same attempt.
        elif isinstance(facts, BlendFacts) and record.has_succeeded:
            blends[record.attempt] = (*blends.get(record.attempt, ()), *facts.rows)
            blend_folders |= {
                row.candidate: folder
                for row in facts.rows
                if (folder := blend_folder(row, record.attempt, record.candidate)) is not None
            }
        elif isinstance(facts, EvaluateFacts) and record.has_succeeded:
            measures[facts.candidate] = facts.measure
            if record.expects is not None:
                expected[facts.candidate] = record.expects
        if record.has_failed_for_good and record.kind == "evaluate" and record.candidate is not None:
            given_up[record.candidate] = record.message
        if record.has_failed_for_good and record.kind == "blend":
            lost_blends[record.attempt] = record.message
    return Facts(
        prepare=prepare,
        baseline=baseline,
        pretrains=pretrains,
        blends=blends,
        blend_folders=blend_folders,
        measures=measures,
        expected=expected,
        given_up=given_up,
        dropped_evaluations=frozenset(
            work.candidate
            for work in ledger.dropped_work()
            if work.stage == "evaluate" and work.candidate is not None
        ),
        lost_blends=lost_blends,
        replay_fraction=ledger.replay_fraction,
        is_pretraining_recorded="pretrain" in ledger.started_kinds(),
        attempts=ledger.attempts,
        ranks=ranks,
    )


def measure_of_row(base: Measure, row: CheckpointFacts | BlendRow) -> Measure:
    """Return the losses of a checkpoint or a blend as a measure without scores.

    The held-out text is the base model's, so its numbers of tokens and bytes are too.
    """

    def half(reference: Perplexity, nats: float, error: int | None = None) -> Perplexity:
        return Perplexity(
            nll_nats=nats * reference.tokens,
            tokens=reference.tokens,
            bytes=reference.bytes,
            difference_standard_error_nats=error_of_row(error),
        )

    return Measure(
        digest=row.weights_digest,
        domain=SidePerplexity(
            a=half(base.domain.a, row.domain_a_nats),
            b=half(base.domain.b, row.domain_b_nats, row.domain_b_error),
        ),
        general=SidePerplexity(
            a=half(base.general.a, row.general_a_nats),
            b=half(base.general.b, row.general_b_nats, row.general_b_error),
        ),
    )
