"""Defines verify, which compares the base, the chosen and the final model on all measures after all training."""

import re

from pydantic import Field

from dapt_contract.base import Contract, DigestText, ShortText
from dapt_contract.measure import Measure
from dapt_contract.stages.common import EvaluationConfig, ModelReference, ModelSpread, RecordedDigests


class NamedModel(Contract):
    """Names one of the models that verify compares."""

    name: str
    """`base`, `chosen`, `final`; with DPO also `finetuned`, the model before it."""
    model: ModelReference
    recorded: RecordedDigests = RecordedDigests()
    """What was recorded of the weights."""


class VerifyConfig(Contract):
    """Configures the comparison of the models on all measures and on answers to sample prompts."""

    models: tuple[NamedModel, ...]
    evaluation: EvaluationConfig
    base_items_path: str
    reuse_paths: tuple[tuple[str, str], ...] = ()
    """(model name, lineage folder) of stages that measured the same model: equal digests are not scored again."""
    sample_prompts: int = 3
    sample_new_tokens: int = 48
    base_items_digest: DigestText | None = None
    """SHA-256 of the base model's items, which are refused if they have another. None: their report has it."""
    base_losses_digest: DigestText | None = None
    """SHA-256 of the base model's losses by document, which this model's are paired with. None: it has none."""
    prepared_digest: DigestText | None = None
    """`PrepareFacts.data_digest`: prepared data with another digest is refused. None: not known."""
    spread: ModelSpread = ModelSpread()
    """How the ranks divide the model."""


class NamedMeasure(Contract):
    """Holds one model's measure under its name."""

    name: str
    measure: Measure


class Sample(Contract):
    """Holds one prompt and the answer of each model to it (greedy decoding)."""

    prompt: str
    answers: tuple[tuple[str, str], ...]
    """(model name, generated text)"""
    expected: str | None = None
    """The right answer, where the prompt is a question of a task. None: there is none."""

    def is_right(self, model: str) -> bool | None:
        """Return whether a model's answer has the right one in it, word for word; None where that is not known."""
        answer = dict(self.answers).get(model)
        if self.expected is None or answer is None:
            return None
        return f" {_words(self.expected)} " in f" {_words(answer)} "


def _words(text: str) -> str:
    """Return the words alone, in small letters: an answer may have a capital, a full stop or an article more."""
    return " ".join(re.findall(r"\w+", text.casefold()))


class VerifyFacts(Contract):
    """Holds the final model's measure. The digests show that base and chosen model are those measured before."""

    final: Measure
    digests: tuple[tuple[ShortText, DigestText], ...] = Field(max_length=16)
    """(model name, digest of its weights)"""


class VerifyReport(Contract):
    """Adds every model's measure and the generated samples to the facts."""

    facts: VerifyFacts
    measures: tuple[NamedMeasure, ...] = ()
    samples: tuple[Sample, ...] = ()
