"""One sentence on what each kind of stage came to."""

from __future__ import annotations

import pytest

from dapt_contract.base import Contract
from dapt_contract.metric import Measure, Perplexity, SidePerplexity
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.evaluate import BaselineFacts, VerifyFacts
from dapt_contract.stages.finetune import FinetuneFacts
from dapt_contract.stages.pretrain import PretrainFacts
from dapt_contract.stages.publish import PublishFacts
from dapt_operator.api.ledger import Ledger, RunRecord
from dapt_operator.api.status import DomainAdaptationStatus, StageStatus
from dapt_operator.cli.notes import facts_note, stage_note
from dapt_operator.plan.history import compact


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


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (BaselineFacts(measure=measure()), "perplexity domain 7.39, general 7.39"),
        (VerifyFacts(final=measure(), digests=()), "perplexity domain 7.39, general 7.39"),
        (
            PretrainFacts(
                ended_by="Completed", steps=24, tokens=49_152, checkpoints=(), tokens_per_second=141.2
            ),
            "24 steps, 49.2 k tokens, 0 checkpoints, 141 tokens/s",
        ),
        (TUNED, "40 steps on 1 example, loss 2.500 to 1.250"),
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
        facts=compact(TUNED),
    )
    status = DomainAdaptationStatus(ledger=Ledger(runs=(record,)))
    assert stage_note(status, stage) == "40 steps on 1 example, loss 2.500 to 1.250"
    assert stage_note(status, stage.model_copy(update={"message": "said itself"})) == "said itself"
    still = DomainAdaptationStatus(ledger=Ledger(runs=(record.model_copy(update={"state": "Open"}),)))
    assert stage_note(still, stage) == ""
    assert stage_note(DomainAdaptationStatus(), stage) == ""
