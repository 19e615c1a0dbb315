"""Where the pretrain stage meets the penalties: before the trained model is loaded, and once it is in its engine."""

from __future__ import annotations

from typing import Any

from dapt_contract.stages.pretrain import PretrainConfig
from dapt_trainer.context import StageContext, beating
from dapt_trainer.distributed import Ranks
from dapt_trainer.training.regularization.attach import attached, require_supported
from dapt_trainer.training.regularization.fisher_of_run import measured_fisher
from dapt_trainer.training.regularization.fisher_store import StoredFisher


def fisher_of_run(config: PretrainConfig, context: StageContext, ranks: Ranks) -> StoredFisher | None:
    """What a penalty must know of the base model, made before the trained model takes the memory; None: nothing.

    Raises:
        InputError: the penalty cannot be had with this model, data or distribution.
        StopRequested, InfrastructureError: see `measured_fisher`.
    """
    if config.regularization is None:
        return None
    require_supported(config.distribution)
    if config.regularization.kind != "ewc":
        return None
    fisher = measured_fisher(config, context, ranks)
    context.progress.update(activity="loading model and data")
    return fisher


def hold_back(
    trainer: Any, config: PretrainConfig, context: StageContext, ranks: Ranks, fisher: StoredFisher | None
) -> None:
    """Give the trainer its penalty, where one is asked for; the engine has shared out the weights.

    Raises:
        InputError: see `attached`.
    """
    if config.regularization is None:
        return
    with beating(context.progress):
        penalty = attached(
            config,
            context.work,
            ranks,
            trainer.model_wrapped,
            trainer.model,
            fisher=fisher,
            backward=trainer.further_backward,
            collate=trainer.data_collator,
        )
    trainer.hold_back(penalty)
