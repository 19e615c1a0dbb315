"""Defines baseline, which measures the frozen base model, so that every other model can be compared with it."""

from __future__ import annotations

from dapt_contract.base import Contract
from dapt_contract.measure import Measure
from dapt_contract.stages.common import EvaluationConfig, ModelReference


class BaselineConfig(Contract):
    """Configures the one measurement of the base model, whose items are stored for paired comparison."""

    model: ModelReference
    evaluation: EvaluationConfig


class BaselineFacts(Contract):
    """Holds the base model's measure."""

    measure: Measure


class BaselineReport(Contract):
    """Adds the path of the stored items to the facts, and what is needed to use them again."""

    facts: BaselineFacts
    items_path: str = ""
    """File of JSON lines, one for each item with the value that the model got."""
    key: str = ""
    """Digest of model, data and settings: a report with the same key has the same numbers."""
    reused_from: str = ""
    """Lineage folder of the baseline that measured these results; empty when this run did."""
