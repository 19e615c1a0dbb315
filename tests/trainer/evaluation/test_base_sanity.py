"""A base model that predicts by chance, or nothing at all, is refused before anything is measured against it."""

# ruff: noqa: E501 (a sentence stands in one piece)

from __future__ import annotations

import math

import pytest

from dapt_contract.measure import Measure, Perplexity, SidePerplexity
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.base_model.sanity import check_base

VOCABULARY = 32_000


def measured(domain: float, general: float) -> Measure:
    """Perplexities of both sides; NaN for a loss that is no number."""

    def side(perplexity: float) -> SidePerplexity:
        half = Perplexity(nll_nats=math.log(perplexity) * 100, tokens=100, bytes=400)
        return SidePerplexity(a=half, b=half)

    return Measure(digest="0", domain=side(domain), general=side(general))


@pytest.mark.parametrize(
    "perplexities", [(12.0, 9.0), (31_000.0, 20.0), (20.0, 90_000.0), (28_000.0, 29_000.0)]
)
def test_a_model_that_knows_one_side_is_accepted(perplexities: tuple[float, float]) -> None:
    check_base(measured(*perplexities), VOCABULARY)


@pytest.mark.parametrize("perplexities", [(31_500.0, 30_500.0), (32_010.0, 32_004.0), (1e9, 4e7)])
def test_a_model_that_guesses_is_refused(perplexities: tuple[float, float]) -> None:
    with pytest.raises(InputError) as caught:
        check_base(measured(*perplexities), VOCABULARY)
    domain, general = (f"{value:,.0f}" for value in perplexities)
    assert str(caught.value) == (
        f"spec.model.source: the base model has a perplexity of {domain} on domain and {general} on general text, as if "
        "it guessed among its 32,000 tokens: it is not trained, or its configuration or tokenizer is another model's; use "
        "a trained model with its own files"
    )


@pytest.mark.parametrize(
    ("perplexities", "sides"),
    [((math.nan, 3.0), "domain"), ((3.0, math.inf), "general"), ((math.nan, math.nan), "domain and general")],
)
def test_a_perplexity_that_is_no_number_is_refused(perplexities: tuple[float, float], sides: str) -> None:
    with pytest.raises(InputError) as caught:
        check_base(measured(*perplexities), VOCABULARY)
    assert str(caught.value) == (
        f"spec.model.source: the base model's perplexity on held-out {sides} text is not a number: its weights or its "
        "configuration are damaged; use another checkpoint of the model"
    )
