"""verify: the base, chosen and finished model compared on everything, after all training."""

from __future__ import annotations

from dapt_contract.base import Contract
from dapt_contract.measure import Measure
from dapt_contract.stages.common import EvaluationConfig, ModelReference


class NamedModel(Contract):
    """One of the models that verify compares."""

    name: str
    """`base`, `chosen`, `final`; with DPO also `finetuned`, the model before it."""
    model: ModelReference


class VerifyConfig(Contract):
    """Compare base, chosen checkpoint and final model on everything, and let each answer the sample prompts."""

    models: tuple[NamedModel, ...]
    evaluation: EvaluationConfig
    base_items_path: str
    reuse_paths: tuple[tuple[str, str], ...] = ()
    """(model name, lineage folder) of stages that measured the same model: equal digests are not scored again."""
    sample_prompts: int = 3
    sample_new_tokens: int = 48


class NamedMeasure(Contract):
    """One model's measure under its name."""

    name: str
    measure: Measure


class Sample(Contract):
    """One prompt and what each model answered (greedy decoding)."""

    prompt: str
    answers: tuple[tuple[str, str], ...]
    """(model name, generated text)"""


class VerifyFacts(Contract):
    """The final model's measure; base and chosen were measured before, their digests say that they are the same."""

    final: Measure
    digests: tuple[tuple[str, str], ...]
    """(model name, digest of its weights)"""


class VerifyReport(Contract):
    """The facts, every model's measure and the generated samples."""

    facts: VerifyFacts
    measures: tuple[NamedMeasure, ...] = ()
    samples: tuple[Sample, ...] = ()
