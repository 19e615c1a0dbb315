"""Builds penalties for a model that is whole in one process."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch

from dapt_contract.stages.pretrain import RegularizationConfig
from dapt_trainer.modeling.attention import Batch
from dapt_trainer.training.regularization.fisher import estimate_fisher, scaled_to_mean_one
from dapt_trainer.training.regularization.kl import BaseModel, GeneralBatches, KlPenalty
from dapt_trainer.training.regularization.low_rank import LayerTerm, LowRankPenalty, adapted_layers
from dapt_trainer.training.regularization.optimizer_slices import plain_weights
from dapt_trainer.training.regularization.penalty import (
    Penalty,
    causal_predictions,
    labelled,
    penalized_names,
)
from dapt_trainer.training.regularization.quadratic import QuadraticPenalty, Term


def single_process_penalty(
    config: RegularizationConfig,
    model: torch.nn.Module,
    *,
    general: Sequence[Batch] = (),
    kl_rows: int = 1,
    fisher: Mapping[str, torch.Tensor] | None = None,
    seed: int = 0,
) -> Penalty:
    """Return the configured penalty, anchored at the weights that the model has now.

    The weights of a PEFT model are its effective weights.

    Args:
        config: kind, strength and group of weights.
        model: the module that is trained; all its trained weights are penalized, or those of the group.
        general: general training sequences, each with a first dimension of 1. ewc takes the first `samples`; klToBase
            takes `kl_rows` for each step, one after the other, and begins again at the end.
        kl_rows: sequences of a step that the divergence is taken on.
        fisher: by the weights' names, already scaled; None: estimated here.
        seed: of the labels that are drawn for the Fisher information.

    Raises:
        InputError: the group is empty.
    """
    if config.kind == "klToBase":
        # A copy, because the model itself will be trained away from its anchor.
        base = copy.deepcopy(model).eval().requires_grad_(False)

        def rows_of_step(step: int) -> list[Batch]:
            return [general[(step * kl_rows + number) % len(general)] for number in range(kl_rows)]

        return KlPenalty(
            config.strength,
            model,
            BaseModel(
                lambda rows: causal_predictions(base, rows),
                sum(weight.nbytes for weight in base.parameters()),
            ),
            GeneralBatches(
                rows_of_step, lambda step: sum(int(labelled(row).sum()) for row in rows_of_step(step))
            ),
        )
    layers = adapted_layers(model)
    weights = plain_weights(model)
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    # A PEFT model is penalized by its layers: the adapters' own weights say nothing of the distance to the base model.
    trained = [layer.name for layer in layers] or [weight.name for weight in weights]
    names = penalized_names(trained, config.parameters, model_type=model_type)
    if config.kind == "ewc" and fisher is None:
        name_in_model = {layer.name: layer.weight_name for layer in layers}
        estimated = _estimated(
            model,
            general[: config.samples],
            [name_in_model.get(name, name) for name in names],
            seed,
        )
        fisher = {name: estimated[name_in_model.get(name, name)] for name in names}
    penalized = set(names)
    if layers:
        layers = [layer for layer in layers if layer.name in penalized]
        importances = fisher or {}
        return LowRankPenalty(
            config.strength,
            [LayerTerm(layer, importances.get(layer.name), None) for layer in layers],
            layers,
            weights,
        )
    terms = [
        Term(weight, weight.master().clone(), None if fisher is None else fisher[weight.name].reshape(-1))
        for weight in weights
        if weight.name in penalized
    ]
    return QuadraticPenalty(config.strength, terms)


def _estimated(
    model: torch.nn.Module, rows: Sequence[Batch], names: Sequence[str], seed: int
) -> dict[str, torch.Tensor]:
    # Without dropout: the gradients would be those of a thinned model.
    was_training = model.training
    model.eval()
    try:
        sums = estimate_fisher(model, list(enumerate(rows)), names, seed=seed)
    finally:
        model.train(was_training)
    return scaled_to_mean_one(sums)
