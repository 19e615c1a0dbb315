"""A penalty for a model that lies whole in one process."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dapt_contract.stages.pretrain import RegularizationConfig
from dapt_trainer.training.regularization.fisher import estimate_fisher, scaled_to_mean_one
from dapt_trainer.training.regularization.kl import KlPenalty
from dapt_trainer.training.regularization.low_rank import LayerTerm, LowRankPenalty, adapted_layers
from dapt_trainer.training.regularization.optimizer_slices import plain_weights
from dapt_trainer.training.regularization.penalty import (
    Penalty,
    Predictions,
    Row,
    causal_predictions,
    held_back,
    labelled,
)
from dapt_trainer.training.regularization.quadratic import QuadraticPenalty, Term


def build(
    config: RegularizationConfig,
    model: Any,
    *,
    general: Sequence[Row] = (),
    kl_rows: int = 1,
    fisher: Mapping[str, torch.Tensor] | None = None,
    seed: int = 0,
    predictions: Predictions = causal_predictions,
) -> Penalty:
    """The configured penalty, anchored at the weights that the model has now; a PEFT model's are its effective weights.

    Args:
        config: which, how strong, on what.
        model: the module that is trained; all its trained weights are held back, or those of the group.
        general: general training sequences, each with a first dimension of 1. ewc takes the first `samples`; klToBase
            takes `kl_rows` for each step, one after the other, and begins again at the end.
        kl_rows: sequences a step that the divergence is taken on.
        fisher: by the weights' names, already scaled; None: estimated here.
        seed: of the labels that are drawn for the Fisher information.
        predictions: the logits of a sequence.

    Raises:
        InputError: the group is empty.
    """
    if config.kind == "klToBase":
        base = copy.deepcopy(model).eval().requires_grad_(False)

        def rows_of_step(step: int) -> list[Row]:
            return [general[(step * kl_rows + number) % len(general)] for number in range(kl_rows)]

        return KlPenalty(
            config.strength,
            model,
            lambda rows: predictions(base, rows),
            rows_of_step,
            lambda step: sum(int(labelled(row).sum()) for row in rows_of_step(step)),
            predictions=predictions,
            held_bytes=sum(weight.nbytes for weight in base.parameters()),
        )
    layers = adapted_layers(model)
    weights = plain_weights(model)
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    trained = [layer.name for layer in layers] or [weight.name for weight in weights]
    names = held_back(trained, config.parameters, model_type=model_type)
    if config.kind == "ewc" and fisher is None:
        places = {layer.name: layer.place for layer in layers}
        estimated = _estimated(
            model, general[: config.samples], [places.get(name, name) for name in names], seed, predictions
        )
        fisher = {name: estimated[places.get(name, name)] for name in names}
    held = set(names)
    if layers:
        layers = [layer for layer in layers if layer.name in held]
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
        if weight.name in held
    ]
    return QuadraticPenalty(config.strength, terms)


def _estimated(
    model: Any, rows: Sequence[Row], names: Sequence[str], seed: int, predictions: Predictions
) -> dict[str, torch.Tensor]:
    was_training = model.training
    model.eval()
    try:
        sums = estimate_fisher(model, list(enumerate(rows)), names, seed=seed, predictions=predictions)
    finally:
        model.train(was_training)
    return scaled_to_mean_one(sums)
