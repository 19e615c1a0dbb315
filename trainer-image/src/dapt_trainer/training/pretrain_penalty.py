"""Prepares and attaches the penalty of a pretraining run: before the model is loaded, and once it is in its engine."""

from __future__ import annotations

from dapt_contract.stages.pretrain import PretrainConfig
from dapt_trainer.context import StageContext, keep_alive
from dapt_trainer.distributed import Ranks
from dapt_trainer.training.regularization.attach import TrainedModel, build_penalty, require_supported
from dapt_trainer.training.regularization.fisher_of_run import measured_fisher
from dapt_trainer.training.regularization.fisher_store import StoredFisher
from dapt_trainer.training.step_trainer import StepTrainer


def prepare_fisher(config: PretrainConfig, context: StageContext, ranks: Ranks) -> StoredFisher | None:
    """Return the Fisher information of the run; None where its penalty needs none.

    Call it before the trained model is loaded: it loads the base model.

    Raises:
        InputError: this model, data or distribution does not support the penalty.
        StopRequested, InfrastructureError: as `measured_fisher`.
    """
    if config.regularization is None:
        return None
    require_supported(config.distribution)
    if config.regularization.kind != "ewc":
        return None
    fisher = measured_fisher(config, config.regularization, context, ranks)
    context.progress.update(activity="loading model and data")
    return fisher


def attach_penalty(
    trainer: StepTrainer,
    config: PretrainConfig,
    context: StageContext,
    ranks: Ranks,
    fisher: StoredFisher | None,
) -> None:
    """Give the trainer its penalty, where one is configured; the engine must have divided the weights already.

    Raises:
        InputError: as `build_penalty`.
    """
    if config.regularization is None:
        return
    with keep_alive(context.progress):
        trained = TrainedModel(
            config,
            context.work,
            ranks,
            engine=trainer.model_wrapped,
            model=trainer.model,
            backward=trainer.further_backward,
            collate=trainer.data_collator,
        )
        penalty = build_penalty(trained, config.regularization, fisher)
    trainer.add_penalty(penalty)
