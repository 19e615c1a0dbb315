"""baseline, evaluate and verify: measures of models, nothing but measures."""

from __future__ import annotations

from dapt_contract.base import Contract
from dapt_contract.measure import Measure
from dapt_contract.stages.common import EvaluationConfig, ModelReference


class BaselineConfig(Contract):
    """Measure the frozen base model once; its items are stored for paired comparison."""

    model: ModelReference
    evaluation: EvaluationConfig


class BaselineFacts(Contract):
    """The base model's measure."""

    measure: Measure


class BaselineReport(Contract):
    """With the path of the stored items (`items.jsonl`: one line an item with its correctness)."""

    facts: BaselineFacts
    items_path: str = ""
    key: str = ""
    """Digest of model, data and settings: a report with the same key has the same numbers."""
    reused_from: str = ""
    """Lineage folder of the baseline whose results these are; empty when they were measured here."""


class EvaluateConfig(Contract):
    """Measure one candidate; scores are paired with the base model's items."""

    candidate: str
    model: ModelReference
    evaluation: EvaluationConfig
    base_items_path: str
    """Lineage folder of the baseline, relative to the work volume: its newest report names the items."""
    expected_digest: str | None = None
    """First 12 hexadecimal digits of the recipe's digest, or of its newest part's (the `weights_digest` of a row of
    checkpoints or blends); a model with another digest is not scored. None: whatever lies there is scored."""


class EvaluateFacts(Contract):
    """One candidate's measure."""

    candidate: str
    measure: Measure


class EvaluateReport(Contract):
    """With the path of the stored items."""

    facts: EvaluateFacts
    items_path: str = ""


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
    """With every model's measure and the generated samples."""

    facts: VerifyFacts
    measures: tuple[NamedMeasure, ...] = ()
    samples: tuple[Sample, ...] = ()
