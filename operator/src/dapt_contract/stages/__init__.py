"""Maps each kind of stage to its configuration, facts and report.

A new kind of stage needs a module here, a module of the same name in dapt_trainer/stages, and a function with its line
in `_MODELS` below. The modules are imported when a kind is looked up: the API's modules import this package for a few
bounds, and a command that starts no stage needs none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from dapt_contract.base import Contract


@dataclass(frozen=True)
class StageKind:
    """Holds the three models of one kind of stage. Every report has its facts under `facts`."""

    config: type[Contract]
    facts: type[Contract]
    report: type[Contract]


def _destination() -> StageKind:
    from dapt_contract.stages.destination import DestinationConfig, DestinationFacts, DestinationReport

    return StageKind(DestinationConfig, DestinationFacts, DestinationReport)


def _prepare() -> StageKind:
    from dapt_contract.stages.prepare import PrepareConfig, PrepareFacts, PrepareReport

    return StageKind(PrepareConfig, PrepareFacts, PrepareReport)


def _baseline() -> StageKind:
    from dapt_contract.stages.baseline import BaselineConfig, BaselineFacts, BaselineReport

    return StageKind(BaselineConfig, BaselineFacts, BaselineReport)


def _pretrain() -> StageKind:
    from dapt_contract.stages.pretrain import PretrainConfig, PretrainFacts, PretrainReport

    return StageKind(PretrainConfig, PretrainFacts, PretrainReport)


def _blend() -> StageKind:
    from dapt_contract.stages.blend import BlendConfig, BlendFacts, BlendReport

    return StageKind(BlendConfig, BlendFacts, BlendReport)


def _evaluate() -> StageKind:
    from dapt_contract.stages.evaluate import EvaluateConfig, EvaluateFacts, EvaluateReport

    return StageKind(EvaluateConfig, EvaluateFacts, EvaluateReport)


def _tuning_data() -> StageKind:
    from dapt_contract.stages.tuning_data import TuningDataConfig, TuningDataFacts, TuningDataReport

    return StageKind(TuningDataConfig, TuningDataFacts, TuningDataReport)


def _finetune() -> StageKind:
    from dapt_contract.stages.finetune import FinetuneConfig, FinetuneFacts, FinetuneReport

    return StageKind(FinetuneConfig, FinetuneFacts, FinetuneReport)


def _align() -> StageKind:
    from dapt_contract.stages.align import AlignConfig, AlignFacts, AlignReport

    return StageKind(AlignConfig, AlignFacts, AlignReport)


def _verify() -> StageKind:
    from dapt_contract.stages.verify import VerifyConfig, VerifyFacts, VerifyReport

    return StageKind(VerifyConfig, VerifyFacts, VerifyReport)


def _publish() -> StageKind:
    from dapt_contract.stages.publish import PublishConfig, PublishFacts, PublishReport

    return StageKind(PublishConfig, PublishFacts, PublishReport)


_MODELS: Final[dict[str, Callable[[], StageKind]]] = {
    "destination": cache(_destination),
    "prepare": cache(_prepare),
    "baseline": cache(_baseline),
    "pretrain": cache(_pretrain),
    "blend": cache(_blend),
    "evaluate": cache(_evaluate),
    "tuning_data": cache(_tuning_data),
    "finetune": cache(_finetune),
    "align": cache(_align),
    "verify": cache(_verify),
    "publish": cache(_publish),
}
"""In the order in which the stages run; tuning_data precedes align too, and runs only where data was changed."""


class _Kinds(Mapping[str, StageKind]):
    """Imports the models of a kind when they are first looked up; the names are known without."""

    def __getitem__(self, kind: str) -> StageKind:
        return _MODELS[kind]()

    def __contains__(self, kind: object) -> bool:
        return kind in _MODELS

    def __iter__(self) -> Iterator[str]:
        return iter(_MODELS)

    def __len__(self) -> int:
        return len(_MODELS)


KINDS: Final[Mapping[str, StageKind]] = _Kinds()
"""The models of each kind of stage, in the order in which the stages run."""
