"""Tests the Fisher information against its definition, where it has a closed form."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_trainer.training.regularization.fisher import estimate_fisher, scaled_to_mean_one

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch
CLASSES, FEATURES, PLACES = 4, 3, 3


def softmax_regression() -> Any:
    torch.manual_seed(2)
    return torch.nn.Linear(FEATURES, CLASSES)


def inputs(count: int) -> list[dict[str, Any]]:
    """Sequences of places whose labels are independent given the features."""
    generator = torch.Generator().manual_seed(4)
    return [{"features": torch.randn(PLACES, FEATURES, generator=generator)} for _ in range(count)]


def predictions(model: Any, row: Any) -> Any:
    return model(row["features"])


def closed_form(model: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """F of W[v, j] is the mean over sequences of sum_t p_v (1 - p_v) x_j^2, and of b[v] the same without x.

    The gradient of log p(y | x) by W is sum_t (e_y - p) x^T; labels are drawn independently, so products of different
    places vanish on average, and the variance of [y = v] is p_v (1 - p_v).
    """
    weight, bias = torch.zeros(CLASSES, FEATURES), torch.zeros(CLASSES)
    with torch.no_grad():
        for row in rows:
            probabilities = model(row["features"]).softmax(-1)
            variance = probabilities * (1 - probabilities)
            weight += variance.T @ row["features"] ** 2
            bias += variance.sum(0)
    return {"weight": weight / len(rows), "bias": bias / len(rows)}


def error_with(draws: int) -> float:
    """Largest relative error of the estimate when each sequence's labels are drawn so many times."""
    model, rows = softmax_regression(), inputs(8)
    samples = [(number, rows[number % 8]) for number in range(8 * draws)]
    sums = estimate_fisher(model, samples, ["weight", "bias"], seed=1, predictions=predictions)
    wanted = closed_form(model, rows)
    return max(
        float((sums[name] / (8 * draws) / wanted[name] - 1).abs().max()) for name in ("weight", "bias")
    )


def test_the_estimate_converges_to_the_closed_form_of_softmax_regression() -> None:
    assert error_with(400) < 0.08
    assert error_with(4) > 0.08


def test_labels_depend_on_the_number_alone_and_gradients_are_freed() -> None:
    model, rows = softmax_regression(), inputs(6)
    whole = estimate_fisher(model, list(enumerate(rows)), ["weight"], seed=1, predictions=predictions)
    halves = [
        estimate_fisher(model, list(enumerate(rows))[half::2], ["weight"], seed=1, predictions=predictions)[
            "weight"
        ]
        for half in (0, 1)
    ]
    torch.testing.assert_close(whole["weight"], halves[0] + halves[1])
    other = estimate_fisher(model, list(enumerate(rows)), ["weight"], seed=2, predictions=predictions)
    assert not torch.equal(whole["weight"], other["weight"])
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def test_the_mean_over_the_group_is_one_whatever_the_length_of_a_sequence() -> None:
    model = softmax_regression()
    rows = inputs(4)
    longer = [{"features": row["features"].repeat(5, 1)} for row in rows]
    for some in (rows, longer):
        scaled = scaled_to_mean_one(
            estimate_fisher(model, list(enumerate(some)), ["weight", "bias"], seed=1, predictions=predictions)
        )
        numbers = torch.cat([one.flatten() for one in scaled.values()])
        assert float(numbers.mean()) == pytest.approx(1.0, abs=1e-6)


def test_a_group_that_no_gradient_reaches_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"the Fisher information of 1 weights is 0 on average"):
        scaled_to_mean_one({"weight": torch.zeros(3)})
