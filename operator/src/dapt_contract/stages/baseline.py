"""baseline: the frozen base model's measure, which every other model is compared with."""

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
    """The measure, and where its items are stored (`items.jsonl`: one line an item with its correctness)."""

    facts: BaselineFacts
    items_path: str = ""
    key: str = ""
    """Digest of model, data and settings: a report with the same key has the same numbers."""
    reused_from: str = ""
    """Lineage folder of the baseline whose results these are; empty when they were measured here."""
