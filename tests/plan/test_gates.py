"""Tests the message of each gate, word for word."""

from __future__ import annotations

import math

import pytest

from dapt_contract.measure import Measure
from dapt_operator.api.v1alpha1.spec import DomainAdaptation, DomainAdaptationSpec
from dapt_operator.plan.gates import GATES, GateFacts, Verdict, minimal_gain, perplexity, task_drop
from dapt_operator.plan.gates.gain import gain
from support.builders import adaptation, base_measure, measure, score


def spec(**gates: object) -> DomainAdaptationSpec:
    return DomainAdaptation.model_validate(adaptation(gates=gates)).spec


def facts(measured: Measure) -> GateFacts:
    return GateFacts("a1-s40", base_measure(), measured)


def only(verdicts: tuple[Verdict, ...]) -> Verdict:
    (verdict,) = verdicts
    return verdict


def test_general_perplexity_within_the_limit_passes() -> None:
    verdict = only(perplexity.judge(spec(), facts(measure(increase=0.149))))
    assert verdict.passed
    assert verdict.message == (
        "general perplexity of a1-s40 on half B is +14.9% against the base model's, within the limit of +15.0%"
    )


def test_general_perplexity_over_the_limit_fails() -> None:
    verdict = only(perplexity.judge(spec(), facts(measure(increase=0.21))))
    assert not verdict.passed
    assert verdict.reason == "LimitExceeded"
    assert verdict.message == (
        "general perplexity of a1-s40 on half B is +21.0% against the base model's, over the limit of +15.0%"
    )
    assert verdict.numbers["increase"] == pytest.approx(0.21, abs=1e-6)


def test_a_perplexity_that_is_not_a_number_fails() -> None:
    measured = measure()
    broken = measured.model_copy(
        update={"general": measured.general.model_copy(update={"b": measured.general.b.model_copy(
            update={"nll_nats": math.nan})})}
    )  # fmt: skip
    assert not only(perplexity.judge(spec(), facts(broken))).passed


def test_the_other_half_does_not_judge() -> None:
    measured, bad = measure(increase=0.05), measure(increase=0.5)
    mixed = measured.model_copy(update={"general": measured.general.model_copy(update={"a": bad.general.a})})
    assert only(perplexity.judge(spec(), facts(mixed))).passed


@pytest.mark.parametrize(
    ("drop", "error", "passed", "message"),
    [
        (-0.02, 0.01, True, "general of a1-s40 lost nothing on half B, within the limit of 3.0"),
        (0.025, 0.01, True, "general of a1-s40 lost 2.5 points on half B, within the limit of 3.0"),
        (
            0.035,
            0.01,
            True,
            "general of a1-s40 lost 3.5 points on half B, over the limit of 3.0 but within noise (standard error 1.0);"
            " about 800 items would settle it",
        ),
        (
            0.05,
            0.01,
            False,
            "general of a1-s40 lost 5.0 points on half B (standard error 1.0), over the limit of 3.0",
        ),
    ],
)
def test_a_drop_counts_when_it_exceeds_the_limit_by_more_than_the_paired_error(
    drop: float, error: float, passed: bool, message: str
) -> None:
    verdict = only(task_drop.judge(spec(), facts(measure(general_drop=drop, error=error))))
    assert (verdict.passed, verdict.message) == (passed, message)


def test_without_halves_the_whole_task_judges() -> None:
    whole = score("general", "general", 0.45, -0.05).model_copy(
        update={"difference_b": None, "difference_b_standard_error": None}
    )
    measured = measure().model_copy(update={"scores": (whole,)})
    verdict = only(task_drop.judge(spec(), facts(measured)))
    assert not verdict.passed
    assert verdict.numbers["items"] == 400


def test_a_general_task_that_was_not_compared_fails() -> None:
    measured = measure().model_copy(update={"scores": (score("general", "general", 0.5),)})
    verdict = only(task_drop.judge(spec(), facts(measured)))
    assert (verdict.passed, verdict.message) == (
        False,
        "general of a1-s40 was not compared with the base model's",
    )


def test_gain_is_the_weighted_sum_of_both_parts() -> None:
    weights = spec().selection.weights
    assert gain(weights, base_measure(), measure(domain_nats=2.6, domain_gain=0.1), "a") == pytest.approx(
        0.4 + 0.2
    )
    heavier = weights.model_copy(update={"domain_perplexity": 2.0, "domain_tasks": 0.5})
    assert gain(heavier, base_measure(), measure(domain_nats=2.6, domain_gain=0.1), "b") == pytest.approx(
        0.8 + 0.1
    )


def test_domain_gain_above_zero_passes() -> None:
    verdict = only(minimal_gain.judge(spec(), facts(measure(domain_nats=2.9))))
    assert verdict.passed
    assert verdict.message == (
        "domain perplexity of a1-s40 on half B is -9.5% against the base model's, a gain of 0.300"
    )


def test_too_small_a_decrease_fails() -> None:
    verdict = only(minimal_gain.judge(spec(minDomainPerplexityDecrease=0.2), facts(measure(domain_nats=2.9))))
    assert verdict.reason == "LimitMissed"
    assert verdict.message == (
        "domain perplexity of a1-s40 on half B is -9.5% against the base model's, and a decrease of at"
        " least 20.0% is required"
    )


def test_no_gain_on_the_half_that_judges_fails() -> None:
    verdict = only(minimal_gain.judge(spec(), facts(measure(domain_nats=2.99, domain_gain=-0.1))))
    assert verdict.reason == "NoGain"
    assert verdict.message == (
        "domain perplexity of a1-s40 on half B is -1.0% against the base model's and the gain there is"
        " -0.190, not above zero"
    )


def test_the_list_gives_the_order() -> None:
    verdicts = [v.gate for gate in GATES for v in gate.judge(spec(), facts(measure()))]
    assert verdicts == ["generalPerplexity", "generalScoreDrop", "domainGain"]
