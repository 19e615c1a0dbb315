"""Tests the message of each gate, word for word."""

from __future__ import annotations

import math

import pytest

from dapt_contract.measure import Measure
from dapt_contract.stages.baseline import BaselineFacts
from dapt_operator.api.v1alpha1.spec import DomainAdaptation, DomainAdaptationSpec
from dapt_operator.plan.gates import GATES, GateFacts, Verdict, minimal_gain, perplexity, task_drop
from dapt_operator.plan.gates.gain import gain
from dapt_operator.plan.ledger.stage_facts import Facts
from dapt_operator.plan.selection.candidates import candidates
from dapt_operator.plan.selection.choose import breach_on_a
from support.builders import adaptation, base_measure, checkpoint, measure, pretrain_facts, score


def spec(**gates: object) -> DomainAdaptationSpec:
    return DomainAdaptation.model_validate(adaptation(gates=gates)).spec


def facts(measured: Measure, base: Measure | None = None) -> GateFacts:
    return GateFacts("a1-s40", base or base_measure(), measured)


def with_loss(measured: Measure, side: str, half: str, nats: float) -> Measure:
    """The measure with another loss of one half of a side."""
    halves = getattr(measured, side)
    changed = getattr(halves, half).model_copy(update={"nll_nats": nats})
    return measured.model_copy(update={side: halves.model_copy(update={half: changed})})


def with_score(measured: Measure, name: str, **over: object) -> Measure:
    """The measure with other numbers of one score."""
    scores = (score.model_copy(update=over) if score.name == name else score for score in measured.scores)
    return measured.model_copy(update={"scores": tuple(scores)})


def without_score(measured: Measure, name: str) -> Measure:
    return measured.model_copy(update={"scores": tuple(s for s in measured.scores if s.name != name)})


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


def with_error(measured: Measure, side: str, nats: float) -> Measure:
    """The measure with a standard error of its loss on half B of a side."""
    halves = getattr(measured, side)
    changed = halves.b.model_copy(update={"difference_standard_error_nats": nats})
    return measured.model_copy(update={side: halves.model_copy(update={"b": changed})})


PPL = "general perplexity of a1-s40 on half B is"


@pytest.mark.parametrize(
    ("rise", "reason", "message"),
    [
        (0.05, "WithinLimit", f"{PPL} +5.0% ± 1.1% against the base model's, within the limit of +15.0%"),
        (
            0.14,
            "WithinNoise",
            f"{PPL} +14.0% ± 1.1% against the base model's, within the limit of +15.0% but within noise; about 14.2 k"
            " tokens of held-out general text would settle it",
        ),
        (
            0.16,
            "LimitExceeded",
            f"{PPL} +16.0% ± 1.2% against the base model's, over the limit of +15.0% but within noise; about 14.4 k"
            " tokens of held-out general text would settle it",
        ),
        (0.21, "LimitExceeded", f"{PPL} +21.0% ± 1.2% against the base model's, over the limit of +15.0%"),
    ],
)
def test_general_perplexity_is_judged_by_its_reading_and_says_where_chance_may_decide(
    rise: float, reason: str, message: str
) -> None:
    verdict = only(perplexity.judge(spec(), facts(with_error(measure(increase=rise), "general", 0.01))))
    assert (verdict.passed, verdict.reason, verdict.message) == (rise <= 0.15, reason, message)
    assert verdict.numbers["standardError"] == pytest.approx(0.01 * (1 + rise))


@pytest.mark.parametrize(
    ("rise", "passed", "message"),
    [
        (
            0.12,
            True,
            f"{PPL} +12.0% ± 1.1% against the base model's, at most +13.9% with 95% confidence, within the limit of"
            " +15.0%",
        ),
        (
            0.14,
            False,
            f"{PPL} +14.0% ± 1.1% against the base model's, at most +15.9% with 95% confidence (about 14.2 k tokens of"
            " held-out general text would settle it), over the limit of +15.0%",
        ),
        (
            0.16,
            False,
            f"{PPL} +16.0% ± 1.2% against the base model's, at most +17.9% with 95% confidence, over the limit of"
            " +15.0%",
        ),
    ],
)
def test_with_confidence_the_bound_of_general_perplexity_must_keep_the_limit(
    rise: float, passed: bool, message: str
) -> None:
    asked = spec(confidence=0.95)
    verdict = only(perplexity.judge(asked, facts(with_error(measure(increase=rise), "general", 0.01))))
    assert (verdict.passed, verdict.message) == (passed, message)


def test_perplexities_of_before_their_errors_were_known_are_judged_by_their_readings() -> None:
    for gates in ({}, {"confidence": 0.95}):
        verdict = only(perplexity.judge(spec(**gates), facts(measure(increase=0.149))))
        assert (verdict.passed, verdict.reason) == (True, "WithinLimit")
        assert only(minimal_gain.judge(spec(**gates), facts(measure(domain_nats=2.999)))).reason == "Gained"


def test_more_text_that_settles_a_perplexity_does_settle_it() -> None:
    unsettled = with_error(measure(increase=0.14), "general", 0.01)
    verdict = only(perplexity.judge(spec(), facts(unsettled)))
    more = verdict.numbers["tokensNeeded"] / base_measure().general.both.tokens
    settled = with_error(measure(increase=0.14), "general", 0.01 / math.sqrt(more * 1.001))
    assert only(perplexity.judge(spec(), facts(settled))).reason == "WithinLimit"


@pytest.mark.parametrize(
    ("domain_nats", "gates", "passed", "reason", "message"),
    [
        (
            2.99,
            {},
            True,
            "WithinNoise",
            "domain perplexity of a1-s40 on half B is -1.0% ± 1.0% against the base model's, a gain of 0.210 but within"
            " noise of the required 0.0%; about 10.8 k tokens of held-out domain text would settle it",
        ),
        (
            2.99,
            {"minDomainPerplexityDecrease": 0.02},
            False,
            "LimitMissed",
            "domain perplexity of a1-s40 on half B is -1.0% ± 1.0% against the base model's, and a decrease of at least"
            " 2.0% is required (within noise; about 10.4 k tokens of held-out domain text would settle it)",
        ),
        (
            2.99,
            {"confidence": 0.95},
            False,
            "LimitMissed",
            "domain perplexity of a1-s40 on half B is -1.0% ± 1.0% against the base model's, with 95% confidence a"
            " decrease of -0.6% at least (about 10.8 k tokens of held-out domain text would settle it), and a decrease"
            " of at least 0.0% is required",
        ),
        (
            2.6,
            {"confidence": 0.95},
            True,
            "Gained",
            "domain perplexity of a1-s40 on half B is -33.0% ± 0.7% against the base model's, a gain of 0.600",
        ),
    ],
)
def test_the_fall_of_domain_perplexity_is_judged_with_its_error(
    domain_nats: float, gates: dict[str, float], passed: bool, reason: str, message: str
) -> None:
    measured = with_error(measure(domain_nats=domain_nats), "domain", 0.01)
    verdict = only(minimal_gain.judge(spec(**gates), facts(measured)))
    assert (verdict.passed, verdict.reason, verdict.message) == (passed, reason, message)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["general", "domain"])
def test_a_perplexity_that_is_not_finite_fails_on_either_side(side: str, value: float) -> None:
    gate = perplexity if side == "general" else minimal_gain
    broken = only(gate.judge(spec(), facts(with_loss(measure(), side, "b", value))))
    assert (broken.passed, broken.reason, broken.message) == (
        False,
        "NotFinite",
        f"{side} perplexity of a1-s40 on half B is not a finite number",
    )
    broken_base = with_loss(base_measure(), side, "b", value)
    of_base = only(gate.judge(spec(), facts(measure(), broken_base)))
    assert (of_base.passed, of_base.message) == (
        False,
        f"{side} perplexity of the base model on half B is not a finite number",
    )
    assert not perplexity.passes_on(spec(), with_loss(base_measure(), "general", "a", value), measure(), "a")


def test_a_loss_that_is_not_finite_on_the_half_that_ranks_is_said_as_such() -> None:
    candidate = next(iter(candidates(spec(), Facts(
        baseline=BaselineFacts(measure=base_measure()),
        pretrains={1: pretrain_facts([checkpoint(10, increase=math.inf)])},
    ))))  # fmt: skip
    assert not candidate.passes_a
    assert breach_on_a(spec(), base_measure(), candidate) == (
        "general perplexity of a1-s10 on half A is not a finite number"
    )


def test_the_other_half_does_not_judge() -> None:
    measured, bad = measure(increase=0.05), measure(increase=0.5)
    mixed = measured.model_copy(update={"general": measured.general.model_copy(update={"a": bad.general.a})})
    assert only(perplexity.judge(spec(), facts(mixed))).passed


@pytest.mark.parametrize(
    ("drop", "error", "passed", "message"),
    [
        (-0.02, 0.01, True, "general of a1-s40 lost nothing on 400 items, within the limit of 3.0"),
        (0.025, 0.01, True, "general of a1-s40 lost 2.5 points on 400 items, within the limit of 3.0"),
        (
            0.035,
            0.025,
            True,
            "general of a1-s40 lost 3.5 points on 400 items, over the limit of 3.0 but within noise (chance explains"
            " 4.1); about 553 items would settle it",
        ),
        (
            0.05,
            0.025,
            False,
            "general of a1-s40 lost 5.0 points on 400 items (chance explains 4.1), over the limit of 3.0",
        ),
    ],
)
def test_a_task_fails_when_its_drop_is_over_the_limit_and_real(
    drop: float, error: float, passed: bool, message: str
) -> None:
    verdict = only(task_drop.judge(spec(), facts(measure(general_drop=drop, error=error))))
    assert (verdict.passed, verdict.message) == (passed, message)


@pytest.mark.parametrize(("tasks", "passes"), [(1, False), (8, True)])
def test_with_more_tasks_a_drop_must_be_clearer(tasks: int, passes: bool) -> None:
    dropped = [score("t0", "general", 0.455, -0.045, error=0.02)]
    dropped += [score(f"t{number}", "general", 0.5, 0.0, error=0.02) for number in range(1, tasks)]
    base = tuple(score(one.name, "general", 0.5) for one in dropped)
    given = facts(
        measure().model_copy(update={"scores": tuple(dropped)}),
        base_measure().model_copy(update={"scores": base}),
    )
    verdicts = task_drop.judge(spec(), given)
    by_name = {verdict.message.split()[0]: verdict for verdict in verdicts}
    assert by_name["t0"].passed is passes


@pytest.mark.parametrize(
    ("drop", "error", "passed", "message"),
    [
        (
            0.01,
            0.01,
            True,
            "general of a1-s40 lost 1.0 points on 400 items, at most 2.6 with 95% confidence, within the limit of 3.0",
        ),
        (
            0.02,
            0.01,
            False,
            "general of a1-s40 lost 2.0 points on 400 items, at most 3.6 with 95% confidence (about 1083 items would"
            " settle it), over the limit of 3.0",
        ),
    ],
)
def test_with_a_confidence_the_bound_of_the_drop_is_judged(
    drop: float, error: float, passed: bool, message: str
) -> None:
    verdict = only(task_drop.judge(spec(confidence=0.95), facts(measure(general_drop=drop, error=error))))
    assert (verdict.passed, verdict.message) == (passed, message)


def test_all_items_of_a_general_task_judge() -> None:
    """Half B shows no loss, all items do; and a general task without halves is judged the same."""
    lost = score("general", "general", 0.45, -0.05)
    for halves in ({"difference_b": 0.0}, {"difference_b": None, "difference_b_standard_error": None}):
        measured = measure().model_copy(update={"scores": (lost.model_copy(update=halves),)})
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


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"items": 0}, "general of a1-s40 has 0 items, and the base model's has 400"),
        ({"items": 100}, "general of a1-s40 has 100 items, and the base model's has 400"),
        ({"difference": None}, "general of a1-s40 was not compared with the base model's"),
        ({"difference_standard_error": None}, "general of a1-s40 was not compared with the base model's"),
        ({"difference": math.nan}, "general of a1-s40 or of the base model is not a finite number"),
        ({"difference": math.inf}, "general of a1-s40 or of the base model is not a finite number"),
        (
            {"difference": -0.05, "difference_standard_error": math.inf},
            "general of a1-s40 or of the base model is not a finite number",
        ),
    ],
)
def test_a_general_score_that_says_less_than_the_base_models_fails(
    over: dict[str, object], message: str
) -> None:
    verdict = only(task_drop.judge(spec(), facts(with_score(measure(), "general", **over))))
    assert (verdict.passed, verdict.reason, verdict.message) == (False, "NotMeasured", message)


def test_a_task_that_only_one_of_the_models_was_scored_on_fails() -> None:
    missing = only(task_drop.judge(spec(), facts(without_score(measure(), "general"))))
    assert (missing.passed, missing.message) == (False, "general was not measured on a1-s40")
    unknown, uncompared = task_drop.judge(spec(), facts(measure(), without_score(base_measure(), "general")))
    assert (unknown.passed, unknown.message) == (False, "general was not measured on the base model")
    assert not uncompared.passed


def test_a_candidate_that_was_not_evaluated_is_not_judged_by_its_tasks() -> None:
    known = GateFacts(
        "a1-s40", base_measure(), measure().model_copy(update={"scores": ()}), is_evaluated=False
    )
    assert task_drop.judge(spec(), known) == ()
    assert only(minimal_gain.judge(spec(), known)).passed


def test_a_gain_of_fewer_tasks_than_the_base_model_has_fails() -> None:
    short = without_score(measure(), "codes")
    verdict = only(minimal_gain.judge(spec(), facts(short)))
    assert (verdict.passed, verdict.reason, verdict.message) == (
        False,
        "NotMeasured",
        "codes was not measured on a1-s40",
    )
    assert gain(spec().selection.weights, base_measure(), short, "b") == -math.inf
    broken = with_score(measure(), "codes", score=math.nan, difference_b=math.nan)
    assert not only(minimal_gain.judge(spec(), facts(broken))).passed
    assert gain(spec().selection.weights, base_measure(), broken, "b") == -math.inf


def test_a_drop_that_is_barely_over_the_limit_is_within_noise() -> None:
    verdict = only(task_drop.judge(spec(maxGeneralScoreDrop=0.0), facts(measure(general_drop=1e-200))))
    assert verdict.passed
    assert verdict.reason == "WithinNoise"


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
