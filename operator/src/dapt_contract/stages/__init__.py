"""Defines the configuration, facts and report of each kind of stage, and the map from a kind to them.

A new kind of stage needs a module here, a module of the same name in dapt_trainer/stages, and one line in `KINDS`.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapt_contract.base import Contract
from dapt_contract.stages.align import AlignConfig, AlignFacts, AlignReport
from dapt_contract.stages.baseline import BaselineConfig, BaselineFacts, BaselineReport
from dapt_contract.stages.blend import BlendConfig, BlendFacts, BlendReport
from dapt_contract.stages.destination import DestinationConfig, DestinationFacts, DestinationReport
from dapt_contract.stages.evaluate import EvaluateConfig, EvaluateFacts, EvaluateReport
from dapt_contract.stages.finetune import FinetuneConfig, FinetuneFacts, FinetuneReport
from dapt_contract.stages.prepare import PrepareConfig, PrepareFacts, PrepareReport
from dapt_contract.stages.pretrain import PretrainConfig, PretrainFacts, PretrainReport
from dapt_contract.stages.publish import PublishConfig, PublishFacts, PublishReport
from dapt_contract.stages.tuning_data import TuningDataConfig, TuningDataFacts, TuningDataReport
from dapt_contract.stages.verify import VerifyConfig, VerifyFacts, VerifyReport


@dataclass(frozen=True)
class StageKind:
    """Holds the three models of one kind of stage. Every report has its facts under `facts`."""

    config: type[Contract]
    facts: type[Contract]
    report: type[Contract]


KINDS: dict[str, StageKind] = {
    "destination": StageKind(DestinationConfig, DestinationFacts, DestinationReport),
    "prepare": StageKind(PrepareConfig, PrepareFacts, PrepareReport),
    "baseline": StageKind(BaselineConfig, BaselineFacts, BaselineReport),
    "pretrain": StageKind(PretrainConfig, PretrainFacts, PretrainReport),
    "blend": StageKind(BlendConfig, BlendFacts, BlendReport),
    "evaluate": StageKind(EvaluateConfig, EvaluateFacts, EvaluateReport),
    "tuning_data": StageKind(TuningDataConfig, TuningDataFacts, TuningDataReport),
    "finetune": StageKind(FinetuneConfig, FinetuneFacts, FinetuneReport),
    "align": StageKind(AlignConfig, AlignFacts, AlignReport),
    "verify": StageKind(VerifyConfig, VerifyFacts, VerifyReport),
    "publish": StageKind(PublishConfig, PublishFacts, PublishReport),
}
"""In the order in which the stages run; tuning_data precedes align too, and runs only where data was changed."""
