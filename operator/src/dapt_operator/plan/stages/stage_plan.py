"""Spec, profile and the facts of finished stages -> the configuration and resources of every stage.

One function a stage. What a configuration needs of an earlier stage is an argument, so that nothing can be planned
before it is known.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapt_contract.base import Contract
from dapt_contract.layout import MODEL as BASE_MODEL
from dapt_contract.layout import STAGES
from dapt_contract.stages.common import ModelReference
from dapt_operator.stage_run import RunResources

BASE_REFERENCE = ModelReference(weights=BASE_MODEL)
BASELINE_LINEAGE = f"{STAGES}/baseline-a1"


@dataclass(frozen=True)
class StagePlan:
    """A stage that could run now."""

    stage: str
    kind: str
    attempt: int
    candidate: str | None
    config: Contract
    resources: RunResources
    secret_names: tuple[str, ...] = ()
    signs_checkpoints: bool = False
    claims: tuple[str, ...] = ()
