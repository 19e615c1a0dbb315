"""Facts of finished stages, read once from the ledger."""

from __future__ import annotations

from dataclasses import dataclass, field

from dapt_contract.metric import Measure, Perplexity, SidePerplexity
from dapt_contract.stages.evaluate import BaselineFacts, EvaluateFacts, VerifyFacts
from dapt_contract.stages.finetune import FinetuneFacts
from dapt_contract.stages.prepare import PrepareFacts
from dapt_contract.stages.pretrain import CheckpointFacts, PretrainFacts
from dapt_contract.stages.publish import PublishFacts
from dapt_operator.api.ledger import Ledger
from dapt_operator.plan.history import facts_of, find


@dataclass(frozen=True)
class Facts:
    """None and empty where a stage has not finished."""

    prepare: PrepareFacts | None = None
    baseline: BaselineFacts | None = None
    pretrain: PretrainFacts | None = None
    """Also after the forgetting limit, divergence or a reached budget: then with the checkpoints so far."""
    measures: dict[str, Measure] = field(default_factory=dict)
    """Evaluated candidates by id."""

    @property
    def base(self) -> Measure | None:
        """The base model's measure."""
        return self.baseline.measure if self.baseline else None


def read_facts(ledger: Ledger, attempt: int = 1) -> Facts:
    """Facts that do not depend on the selected candidate."""
    prepare = facts_of(find(ledger, "prepare", 1, None))
    baseline = facts_of(find(ledger, "baseline", 1, None))
    pretrain = facts_of(find(ledger, "pretrain", attempt, None))
    measures = {}
    for record in ledger.runs:
        facts = facts_of(record) if record.kind == "evaluate" and record.state == "Succeeded" else None
        if isinstance(facts, EvaluateFacts):
            measures[facts.candidate] = facts.measure
    return Facts(
        prepare=prepare if isinstance(prepare, PrepareFacts) else None,
        baseline=baseline if isinstance(baseline, BaselineFacts) else None,
        pretrain=pretrain if isinstance(pretrain, PretrainFacts) else None,
        measures=measures,
    )


def finetuned(ledger: Ledger, candidate: str, attempt: int = 1) -> FinetuneFacts | None:
    """The tuned model made from a candidate."""
    facts = facts_of(find(ledger, "finetune", attempt, candidate))
    return facts if isinstance(facts, FinetuneFacts) else None


def verified(ledger: Ledger, candidate: str, attempt: int = 1) -> VerifyFacts | None:
    """The finished model's measure."""
    facts = facts_of(find(ledger, "verify", attempt, candidate))
    return facts if isinstance(facts, VerifyFacts) else None


def published(ledger: Ledger, candidate: str, attempt: int = 1) -> PublishFacts | None:
    """What lies at the destination."""
    facts = facts_of(find(ledger, "publish", attempt, candidate))
    return facts if isinstance(facts, PublishFacts) else None


def measure_of_checkpoint(base: Measure, row: CheckpointFacts) -> Measure:
    """What pretraining measured at a checkpoint, as a measure without scores.

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
