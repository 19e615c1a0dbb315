"""One sentence on what each kind of stage came to."""

from __future__ import annotations

import pytest

from dapt_contract.base import Contract
from dapt_contract.measure import Measure, Perplexity, SidePerplexity
from dapt_contract.stages.align import AlignFacts
from dapt_contract.stages.baseline import BaselineFacts
from dapt_contract.stages.blend import BlendFacts, BlendRow
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.finetune import FinetuneFacts
from dapt_contract.stages.pretrain import PretrainFacts
from dapt_contract.stages.publish import PublishFacts
from dapt_contract.stages.verify import VerifyFacts
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus, StageStatus
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord
from dapt_operator.api.v1alpha1.stored.stored_facts import compact_facts
from dapt_operator.cli.display.stage_rows import facts_note, stage_note


def measure() -> Measure:
    half = Perplexity(nll_nats=200.0, tokens=100, bytes=400)
    return Measure(digest="d", domain=SidePerplexity(a=half, b=half), general=SidePerplexity(a=half, b=half))


TUNED = FinetuneFacts(
    model=ModelReference(weights="model"),
    weights_digest="d",
    steps=40,
    examples=1,
    response_tokens=9,
    first_loss_nats=2.5,
    last_loss_nats=1.25,
)


BLEND = BlendRow(
    candidate="a1-avg3",
    domain_a_nats=1.0,
    domain_b_nats=1.0,
    general_a_nats=1.0,
    general_b_nats=1.0,
    weights_digest="d",
)


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (BaselineFacts(measure=measure()), "perplexity domain 7.39, general 7.39"),
        (VerifyFacts(final=measure(), digests=()), "final model: perplexity domain 7.39, general 7.39"),
        (
            PretrainFacts(
                ended_by="Completed", steps=24, tokens=49_152, checkpoints=(), tokens_per_second=141.2
            ),
            "24 steps, 49.2 k tokens, 0 checkpoints, 141 tokens/s",
        ),
        (TUNED, "40 steps on 1 example, loss 2.500 to 1.250"),
        (
            AlignFacts(
                model=ModelReference(weights="model"),
                weights_digest="d",
                steps=4,
                pairs=30,
                first_loss_nats=0.6931,
                last_loss_nats=0.5,
                reward_accuracy=0.75,
                reward_margin=0.4,
            ),
            "4 steps on 30 pairs, loss 0.693 to 0.500, 75 % of pairs in the right order at the end",
        ),
        (BlendFacts(rows=(BLEND,) * 2), "2 averages and interpolations measured"),
        (
            PublishFacts(destination="file:///x", digest="d", files=8, size_bytes=270 * 2**20),
            "8 files, 270.0 MiB",
        ),
        (Contract(), ""),
    ],
)
def test_facts_become_a_sentence(facts: Contract, sentence: str) -> None:
    assert facts_note(facts) == sentence


def test_the_note_of_a_stage_comes_from_the_ledger_once_it_succeeded() -> None:
    stage = StageStatus(name="finetune", kind="finetune", candidate="a1-s24")
    record = RunRecord(
        stage="finetune",
        kind="finetune",
        candidate="a1-s24",
        fence=5,
        state="Succeeded",
        facts=compact_facts(TUNED),
    )
    status = DomainAdaptationStatus(ledger=Ledger(runs=(record,)))
    assert stage_note(status, stage) == "40 steps on 1 example, loss 2.500 to 1.250"
    assert stage_note(status, stage.model_copy(update={"message": "said itself"})) == "said itself"
    still = DomainAdaptationStatus(ledger=Ledger(runs=(record.model_copy(update={"state": "Open"}),)))
    assert stage_note(still, stage) == ""
    assert stage_note(DomainAdaptationStatus(), stage) == ""
