"""Facts of finished stages, read once from the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dapt_contract.measure import Measure, Perplexity, SidePerplexity
from dapt_contract.stages.align import AlignFacts
from dapt_contract.stages.baseline import BaselineFacts
from dapt_contract.stages.blend import BlendFacts, BlendRow
from dapt_contract.stages.evaluate import EvaluateFacts
from dapt_contract.stages.finetune import FinetuneFacts
from dapt_contract.stages.prepare import PrepareFacts
from dapt_contract.stages.pretrain import CheckpointFacts, PretrainFacts
from dapt_contract.stages.publish import PublishFacts
from dapt_contract.stages.verify import VerifyFacts
from dapt_operator.api.v1alpha1.ledger import AttemptRecord, Ledger, RunRecord
from dapt_operator.plan.ledger.compaction import closed_run_counts, stored_measures
from dapt_operator.plan.ledger.records import facts_of, find


@dataclass(frozen=True)
class Facts:
    """None and empty where a stage has not finished."""

    prepare: PrepareFacts | None = None
    baseline: BaselineFacts | None = None
    pretrains: Mapping[int, PretrainFacts] = field(default_factory=dict)
    """By attempt. Also after the forgetting limit, divergence or a reached budget: then with the checkpoints so far;
    and of a running pretraining what its readings told of complete checkpoints."""
    blends: Mapping[int, tuple[BlendRow, ...]] = field(default_factory=dict)
    """Perplexities of averages and interpolations, by attempt."""
    measures: Mapping[str, Measure] = field(default_factory=dict)
    """Evaluated candidates by id."""
    expected: Mapping[str, str] = field(default_factory=dict)
    """Digest of the weights that an evaluation was told to score, by candidate."""
    given_up: Mapping[str, str] = field(default_factory=dict)
    """Evaluations that failed for good, by candidate, with what they said last."""
    closed: frozenset[str] = frozenset()
    """Candidates whose evaluation has ended and of which there is no record any more."""
    lost_blends: Mapping[int, str] = field(default_factory=dict)
    """Blend runs that failed for good, by attempt, with what they said last."""
    attempts: tuple[AttemptRecord, ...] = ()
    """Attempts after the first."""

    @property
    def base(self) -> Measure | None:
        """The base model's measure."""
        return self.baseline.measure if self.baseline else None

    @property
    def attempt(self) -> int:
        """Number of the newest attempt."""
        return 1 + len(self.attempts)

    @property
    def pretrain(self) -> PretrainFacts | None:
        """Of the newest attempt."""
        return self.pretrains.get(self.attempt)


def read_facts(ledger: Ledger) -> Facts:
    """Facts that do not depend on the selected candidate."""
    prepare = facts_of(find(ledger, "prepare", 1, None))
    baseline = facts_of(find(ledger, "baseline", 1, None))
    pretrains: dict[int, PretrainFacts] = {}
    blends: dict[int, tuple[BlendRow, ...]] = {}
    base = baseline.measure if isinstance(baseline, BaselineFacts) else None
    measures: dict[str, Measure] = dict(stored_measures(ledger, base))
    expected: dict[str, str] = {
        one.candidate: one.expects for one in ledger.measures if one.expects is not None
    }
    given_up: dict[str, str] = {}
    lost_blends: dict[int, str] = {}
    for record in ledger.runs:
        facts = facts_of(record)
        if isinstance(facts, PretrainFacts):
            pretrains[record.attempt] = facts
        elif isinstance(facts, BlendFacts) and record.state == "Succeeded":
            blends[record.attempt] = (*blends.get(record.attempt, ()), *facts.rows)
        elif isinstance(facts, EvaluateFacts) and record.state == "Succeeded":
            measures[facts.candidate] = facts.measure
            if record.expects is not None:
                expected[facts.candidate] = record.expects
        if record.kind == "evaluate" and is_given_up(record) and record.candidate is not None:
            given_up[record.candidate] = record.message
        if record.kind == "blend" and is_given_up(record):
            lost_blends[record.attempt] = record.message
    return Facts(
        prepare=prepare if isinstance(prepare, PrepareFacts) else None,
        baseline=baseline if isinstance(baseline, BaselineFacts) else None,
        pretrains=pretrains,
        blends=blends,
        measures=measures,
        expected=expected,
        given_up=given_up,
        closed=frozenset(
            candidate
            for stage, _, candidate in closed_run_counts(ledger)
            if stage == "evaluate" and candidate is not None
        ),
        lost_blends=lost_blends,
        attempts=ledger.attempts,
    )


def is_given_up(record: RunRecord) -> bool:
    """Whether its last try failed and no other follows by itself."""
    return record.state == "Failed" and not record.retry


def finetuned(ledger: Ledger, candidate: str, attempt: int = 1) -> FinetuneFacts | None:
    """The tuned model made from a candidate."""
    facts = facts_of(find(ledger, "finetune", attempt, candidate))
    return facts if isinstance(facts, FinetuneFacts) else None


def aligned(ledger: Ledger, candidate: str, attempt: int = 1) -> AlignFacts | None:
    """The preference-tuned model made from a candidate."""
    facts = facts_of(find(ledger, "align", attempt, candidate))
    return facts if isinstance(facts, AlignFacts) else None


def verified(ledger: Ledger, candidate: str, attempt: int = 1) -> VerifyFacts | None:
    """The finished model's measure."""
    facts = facts_of(find(ledger, "verify", attempt, candidate))
    return facts if isinstance(facts, VerifyFacts) else None


def published(ledger: Ledger, candidate: str, attempt: int = 1) -> PublishFacts | None:
    """What lies at the destination."""
    facts = facts_of(find(ledger, "publish", attempt, candidate))
    return facts if isinstance(facts, PublishFacts) else None


def measure_of_row(base: Measure, row: CheckpointFacts | BlendRow) -> Measure:
    """What was measured with a checkpoint or a blend, as a measure without scores.

    The held-out text is the base model's, so its numbers of tokens and bytes are too.
    """

    def half(reference: Perplexity, nats: float) -> Perplexity:
        return Perplexity(nll_nats=nats * reference.tokens, tokens=reference.tokens, bytes=reference.bytes)

    return Measure(
        digest=row.weights_digest,
        domain=SidePerplexity(
            a=half(base.domain.a, row.domain_a_nats), b=half(base.domain.b, row.domain_b_nats)
        ),
        general=SidePerplexity(
            a=half(base.general.a, row.general_a_nats), b=half(base.general.b, row.general_b_nats)
        ),
    )
