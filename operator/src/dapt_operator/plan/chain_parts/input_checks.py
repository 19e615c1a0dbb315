"""Gives stages the digests that were recorded of what they read, so that they refuse what has changed since.

The facts of finished stages have them, and the ledger holds those where nobody with a work volume can change them: of
the prepared data, of the base model, of each checkpoint, of what tuning wrote, and of the models that were measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from dapt_contract.layout import EXTENDED_MODEL
from dapt_contract.layout import MODEL as BASE_MODEL
from dapt_contract.stages.align import AlignFacts
from dapt_contract.stages.baseline import BaselineConfig
from dapt_contract.stages.blend import BlendConfig
from dapt_contract.stages.common import Member, ModelReference, RecordedDigests, TrainingConfig
from dapt_contract.stages.evaluate import EvaluateConfig
from dapt_contract.stages.finetune import FinetuneFacts
from dapt_contract.stages.prepare import PrepareConfig
from dapt_contract.stages.pretrain import PretrainConfig
from dapt_contract.stages.publish import PublishConfig
from dapt_contract.stages.tuning_data import TuningDataConfig
from dapt_contract.stages.verify import NamedModel, VerifyConfig, VerifyFacts
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.plan.ledger.stage_facts import Facts
from dapt_operator.plan.selection.candidates import Candidate
from dapt_operator.plan.stage_parts.stage_plan import StagePlan
from dapt_operator.plan.stage_parts.weights import checkpoint_folder

_CONTENT_PREFIX: Final = "sha256:"
_FINAL: Final = "final"
_READS_DATA: Final = (
    BaselineConfig,
    BlendConfig,
    EvaluateConfig,
    PrepareConfig,
    PretrainConfig,
    TuningDataConfig,
    VerifyConfig,
)
"""Configurations of stages that read what prepare wrote besides the model; prepare itself does when it runs again."""


def with_input_checks(
    stage: StagePlan, facts: Facts, candidates: tuple[Candidate, ...], ledger: Ledger
) -> StagePlan:
    """Return the plan of a stage with everything that is recorded of its inputs; unchanged where it reads none.

    Args:
        stage: as it was planned.
        facts: of the finished stages.
        candidates: all that there are.
        ledger: with the facts of the stages after the selection.
    """
    config = stage.config
    if not isinstance(config, (*_READS_DATA, TrainingConfig, PublishConfig)):
        return stage
    known = _Records(stage, facts, candidates, ledger)
    checks: dict[str, object] = {}
    if isinstance(config, TrainingConfig | BaselineConfig | EvaluateConfig):
        checks["recorded"] = known.of(config.model)
    elif isinstance(config, PublishConfig):
        recipes = [] if config.adapter is None else [config.adapter.recipe]
        checks["recorded"] = known.of_final(config.model, recipes)
    elif isinstance(config, BlendConfig):
        checks["recorded"] = known.of_folders(blend.model for blend in config.blends)
    elif isinstance(config, VerifyConfig):
        checks["models"] = tuple(
            NamedModel(name=named.name, model=named.model, recorded=known.of(named.model))
            for named in config.models
        )
    if isinstance(config, _READS_DATA) and facts.prepare is not None:
        checks["prepared_digest"] = facts.prepare.data_digest
    if isinstance(config, EvaluateConfig | VerifyConfig) and facts.baseline is not None:
        checks["base_items_digest"] = facts.baseline.items_digest or None
    pairs_losses = isinstance(config, PretrainConfig | BlendConfig | EvaluateConfig | VerifyConfig)
    if pairs_losses and facts.baseline is not None:
        checks["base_losses_digest"] = facts.baseline.losses_digest or None
    return replace(stage, config=type(config).model_validate({**config.__dict__, **checks}))


class _Records:
    """Looks up what is recorded of the models that a stage reads."""

    def __init__(
        self, stage: StagePlan, facts: Facts, candidates: tuple[Candidate, ...], ledger: Ledger
    ) -> None:
        self._facts = facts
        self._candidate = next((known for known in candidates if known.id == stage.candidate), None)
        attempt, candidate = stage.attempt, stage.candidate
        tuned = ledger.facts(FinetuneFacts, "finetune", attempt, candidate)
        aligned = ledger.facts(AlignFacts, "align", attempt, candidate)
        verified = ledger.facts(VerifyFacts, "verify", attempt, candidate)
        self._final = dict(verified.digests).get(_FINAL) if verified is not None else None
        self._folders = {
            _newest_folder(written.model): written.weights_digest
            for written in (tuned, aligned)
            if written is not None
        }
        if facts.base is not None:
            self._folders[BASE_MODEL] = facts.base.digest
        elif facts.prepare is not None:
            self._folders[BASE_MODEL] = facts.prepare.model.digest.removeprefix(_CONTENT_PREFIX)
        if facts.prepare is not None and facts.prepare.tokenizer is not None:
            self._folders[EXTENDED_MODEL] = facts.prepare.tokenizer.model_digest or ""
        for number, pretrain_facts in facts.pretrains.items():
            for row in pretrain_facts.checkpoints:
                self._folders[checkpoint_folder(number, row)] = row.weights_digest
        for rows in facts.blends.values():
            for blend in rows:
                if (folder := facts.blend_folders.get(blend.candidate)) is not None:
                    self._folders[folder] = blend.weights_digest

    def of(self, model: ModelReference) -> RecordedDigests:
        """Return what is recorded of a model."""
        return RecordedDigests(recipe=self._recipe(model) or None, folders=self._known_folders([model]))

    def of_final(self, model: ModelReference, recipes: Iterable[ModelReference]) -> RecordedDigests:
        """Return what is recorded of the last model of the chain, which verify has measured, and of its recipes."""
        return RecordedDigests(recipe=self._final or None, folders=self._known_folders([model, *recipes]))

    def of_folders(self, models: Iterable[ModelReference]) -> RecordedDigests:
        """Return what is recorded of the folders of several models."""
        return RecordedDigests(folders=self._known_folders(models))

    def _recipe(self, model: ModelReference) -> str | None:
        candidate = self._candidate
        if candidate is None or candidate.model != model:
            return None
        if candidate.is_evaluated:
            return candidate.measure.digest
        # The row of a checkpoint has the digest of its own folder, which is not that of a chain of adapters.
        return candidate.digest if candidate.step is None else None

    def _known_folders(self, models: Iterable[ModelReference]) -> tuple[tuple[str, str], ...]:
        folders: dict[str, None] = {}
        for model in models:
            parts: tuple[ModelReference | Member, ...] = (model, *model.averaged_with)
            names = [name for part in parts for name in (part.weights, *part.adapters)]
            folders |= dict.fromkeys((*names, model.origin, *model.tuned))
        return tuple((name, self._folders[name]) for name in folders if self._folders.get(name))


def _newest_folder(model: ModelReference) -> str:
    """Return the folder that a tuning stage wrote: its adapter, or the whole weights."""
    return model.tuned[-1] if model.tuned else model.weights
