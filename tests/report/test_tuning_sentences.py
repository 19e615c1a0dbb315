"""The page says what each tuning stage learned from and what came of it, and by what the final model was made."""

from __future__ import annotations

import pytest

from dapt_contract.stages.align import AlignFacts, AlignReport
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.finetune import FinetuneFacts, FinetuneReport
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.report.inputs import ReportInputs
from dapt_operator.report.summary import tuned_by, tuning_sentences

MODEL = ModelReference(weights="model")
FINETUNE = FinetuneReport(
    facts=FinetuneFacts(
        model=MODEL,
        weights_digest="d",
        steps=95,
        examples=190,
        response_tokens=9,
        first_loss_nats=4.01,
        last_loss_nats=2.794,
    )
)
ALIGN = AlignReport(
    facts=AlignFacts(
        model=MODEL,
        weights_digest="d",
        steps=25,
        pairs=1,
        first_loss_nats=0.6931,
        last_loss_nats=0.689,
        reward_accuracy=0.75,
        reward_margin=0.01,
    )
)
TUNED = "Fine-tuning: 95 steps on 190 examples, loss 4.010 → 2.794."
ALIGNED = (
    "Preference tuning: 25 steps on 1 pair, loss 0.693 → 0.689; at the end the chosen answer has the larger reward in"
    " 75.0\N{NARROW NO-BREAK SPACE}% of the pairs (half of them by chance)."
)


@pytest.mark.parametrize(
    ("finetune", "align", "sentences", "made_by"),
    [
        (None, None, [], "fine-tuned"),
        (FINETUNE, None, [TUNED], "fine-tuned"),
        (None, ALIGN, [ALIGNED], "preference-tuned"),
        (FINETUNE, ALIGN, [TUNED, ALIGNED], "preference-tuned"),
    ],
)
def test_tuning_sentences_name_what_has_finished(
    finetune: FinetuneReport | None, align: AlignReport | None, sentences: list[str], made_by: str
) -> None:
    inputs = ReportInputs("tiny", DomainAdaptationStatus(), finetune=finetune, align=align)
    assert tuning_sentences(inputs) == sentences
    assert tuned_by(inputs) == made_by
