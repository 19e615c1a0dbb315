"""Tests verdicts: yes for planted numbers that hold the claim, no for others, open while a run is missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest
from science.chain import Chain
from science.experiments import (
    EXPERIMENTS,
    best,
    defaults,
    gates,
    interpolation,
    penalty,
    replay,
    rows,
    schedule,
)
from science.experiments.common import (
    SEEDS,
    Experiment,
    Records,
    Sample,
    above_zero,
    effect,
    forgetting_at,
    pooled,
)
from science.settings import Adaptation

from science import controller

BASE = {"domain_a": 3.6, "domain_b": 3.6, "general_a": 2.5, "general_b": 2.5}
WEAK = BASE | {"domain_a": 3.0, "domain_b": 3.0}
BASES = {"strong": BASE, "weak": WEAK}
NOISE = (-0.002, 0.0, 0.002)
"""By seed, over and over: a deviation of 0.002 nats."""
Pair = tuple[float, float]


def noise_of(seed: int) -> float:
    return NOISE[(seed - 1) % len(NOISE)]


def losses(domain: str, gain: float, forgetting: float) -> dict[str, float]:
    base = BASES["weak" if domain == "weak" else "strong"]
    moved = {"domain": -gain, "general": forgetting}
    return {name: value + moved[name.partition("_")[0]] for name, value in base.items()}


def record(
    settings: Adaptation, points: Sequence[Pair], blends: Mapping[str, Pair] | None = None
) -> dict[str, Any]:
    """A run with these (gain, forgetting) at its readings; the seed's noise is on both."""
    noise = noise_of(settings.seed)

    def of(point: Pair) -> dict[str, float]:
        return losses(settings.domain, point[0] - noise, point[1] + noise)

    steps = [round((number + 1) * settings.steps / len(points)) for number in range(len(points))]
    return {
        "settings": asdict(settings),
        "readings": [{"step": step, **of(point)} for step, point in zip(steps, points, strict=True)],
        "blends": [{"name": name, **of(point)} for name, point in (blends or {}).items()],
        "domain_epochs": 1.0,
    }


def verdicts(experiment: Experiment, make: Callable[[Any], dict[str, Any]]) -> dict[str, bool | None]:
    records = Records([make(settings) for settings in experiment.runs(SEEDS)], BASES)
    return {verdict.name: verdict.holds for verdict in experiment.judge(records).verdicts}


def only_last(values: Callable[[Adaptation], Pair]) -> Callable[[Adaptation], dict[str, Any]]:
    def make(settings: Adaptation) -> dict[str, Any]:
        return record(settings, [values(settings)], {f"i{share:g}": (0.1, 0.01) for share in settings.shares})

    return make


def test_an_effect_is_a_gap_over_the_pooled_deviation() -> None:
    low, high = Sample((1.0, 2.0, 3.0)), Sample((4.0, 6.0, 8.0))
    assert pooled(low, high) == pytest.approx(math.sqrt((1.0 + 4.0) / 2))
    assert effect(low, high) == pytest.approx(4.0 / math.sqrt(2.5))
    assert effect(high, low) == -effect(low, high)
    assert effect(Sample((1.0, 1.0)), Sample((2.0, 2.0))) == math.inf
    assert above_zero(Sample((1.0, 2.0, 3.0))) == pytest.approx(2.0)


def test_forgetting_at_a_gain_lies_on_the_line_between_two_runs_and_nowhere_outside() -> None:
    curve = [(0.5, 0.1), (1.0, 0.5)]
    assert forgetting_at(curve, 0.75) == pytest.approx(0.3)
    assert forgetting_at(curve, 1.1) is None


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_every_experiment_is_open_without_runs_and_names_all_its_claims(experiment: Experiment) -> None:
    outcome = experiment.judge(Records([], BASES))
    assert tuple(verdict.name for verdict in outcome.verdicts) == experiment.claims
    assert {verdict.holds for verdict in outcome.verdicts} == {None}
    assert outcome.tables


def replayed(settings: Adaptation) -> Pair:
    if settings.domain == "shuffled":
        return 0.1, 0.3
    strength = 1.0 if settings.domain == "strong" else 0.4
    return strength * (1.0 - 0.2 * settings.replay), strength * 0.5 * (1.0 - settings.replay) ** 4


def test_replay_holds_where_forgetting_falls_and_gain_stays() -> None:
    assert set(verdicts(replay.EXPERIMENT, only_last(replayed)).values()) == {True}


def test_replay_fails_where_two_shares_forget_alike_or_gain_is_lost_or_shuffled_text_teaches() -> None:
    def alike(settings: Adaptation) -> Pair:
        return replayed(replace(settings, replay=0.01) if settings.replay == 0.05 else settings)

    def lost(settings: Adaptation) -> Pair:
        gain, forgetting = replayed(settings)
        return gain * (1.0 - settings.replay), forgetting

    def taught(settings: Adaptation) -> Pair:
        return replayed(replace(settings, domain="strong") if settings.domain == "shuffled" else settings)

    assert verdicts(replay.EXPERIMENT, only_last(alike))["replay.strong"] is False
    assert verdicts(replay.EXPERIMENT, only_last(lost))["replay.weak"] is False
    assert verdicts(replay.EXPERIMENT, only_last(taught))["replay.control"] is False


def test_verdict_with_a_missing_seed_is_open_and_counts_the_runs_done() -> None:
    runs = [only_last(replayed)(settings) for settings in replay.EXPERIMENT.runs(SEEDS[:2])]
    strong = replay.EXPERIMENT.judge(Records(runs, BASES)).verdicts[0]
    assert strong.line == "VERDICT replay.strong: open - 10 of its 15 runs were done"


def scheduled(settings: Adaptation) -> Pair:
    scale = {2e-4: 0.7, 5e-4: 0.85, 1e-3: 1.0, 2e-3: 1.1}[settings.rate.peak]
    is_constant = settings.rate.schedule == "constant"
    gain = (0.9 if is_constant else 1.0) * min(scale, 1.0 if is_constant else scale)
    return gain, scale * (0.6 if is_constant else 0.4) * (1.0 if settings.replay == 0.0 else 0.5)


def test_schedules_hold_where_each_factor_helps() -> None:
    assert set(verdicts(schedule.EXPERIMENT, only_last(scheduled)).values()) == {True}


def test_schedules_fail_where_one_constant_rate_learns_more_or_a_factor_does_nothing() -> None:
    def learns_more(settings: Adaptation) -> Pair:
        gain, forgetting = scheduled(settings)
        return gain + 0.2 * (settings.rate == schedule.constant(2e-3).rate), forgetting

    def idle(settings: Adaptation) -> Pair:
        gain, _ = scheduled(settings)
        return gain, 0.4 * (1.0 if settings.replay == 0.0 else 0.5)

    found = verdicts(schedule.EXPERIMENT, only_last(learns_more))
    assert found["schedule.dominates"] is False
    found = verdicts(schedule.EXPERIMENT, only_last(idle))
    assert found == {"schedule.dominates": True, "schedule.alone": False, "schedule.peak": False}


def penalized(excess: Mapping[str, float]) -> Callable[[Adaptation], Pair]:
    """Every method on one curve of forgetting = gain squared, lifted by its excess."""

    def values(settings: Adaptation) -> Pair:
        share = settings.replay
        if settings.penalty is None:
            gain = 1.0 - share
            return gain, gain**2 + (0.2 if settings.steps > 300 else 0.0)
        gain = 0.85 - 0.1 * math.log10(settings.penalty.strength / 0.003) - 0.2 * share
        kind = settings.penalty.kind + ("+replay" if share else "")
        return gain, gain**2 + excess.get(kind, 0.0)

    return values


def test_penalties_are_compared_at_the_same_gain() -> None:
    usual = {"ewc": 0.1, "ewc+replay": -0.1, "l2sp": 0.2, "klToBase": 0.1}
    assert set(verdicts(penalty.EXPERIMENT, only_last(penalized(usual))).values()) == {True}
    other = {"ewc": -0.1, "ewc+replay": 0.1, "l2sp": -0.2, "klToBase": 0.3}
    assert verdicts(penalty.EXPERIMENT, only_last(penalized(other))) == {
        "penalty.ewc": True,
        "penalty.replay-beats-ewc": False,
        "penalty.ewc-adds-to-replay": False,
        "penalty.ewc-beats-l2sp": False,
        "penalty.kl-beats-replay": False,
    }


def bent(power: float) -> Callable[[Adaptation], dict[str, Any]]:
    """Interpolations on the curve forgetting = end x (gain / end) ** power of each run."""

    def make(settings: Adaptation) -> dict[str, Any]:
        gain, forgetting = 1.0 - 0.2 * settings.replay, 0.6 * (1.0 - settings.replay)
        if settings.rate.peak < 1e-3:
            gain, forgetting = 0.8, 0.4
        if settings.replay == 0.5:
            gain, forgetting = 0.9, 0.39
        blends = {f"i{share:g}": (gain * share, forgetting * share**power) for share in settings.shares}
        return record(settings, [(gain, forgetting)], blends)

    return make


def test_interpolation_holds_where_its_curve_sags_and_fails_where_it_is_straight_or_worse() -> None:
    assert set(verdicts(interpolation.EXPERIMENT, bent(4.0)).values()) == {True}
    found = verdicts(interpolation.EXPERIMENT, bent(0.5))
    assert found["interpolation.beats-lower-rate"] is False
    assert found["interpolation.beats-more-replay"] is False


def test_the_hypervolume_is_the_area_that_a_front_dominates() -> None:
    points = [(1.0, 0.5), (0.5, 0.2), (0.4, 0.3)]
    assert interpolation.front(points) == [0, 1]
    assert interpolation.volume(points, worst=0.7) == pytest.approx(0.5 * 0.5 + 0.5 * 0.2)
    assert interpolation.volume([(1.0, 0.9)], worst=0.7) == 0.0


def gated(
    rises: Mapping[float, Sequence[float]], chain: Mapping[str, Any]
) -> Callable[[Any], dict[str, Any]]:
    def make(settings: Any) -> dict[str, Any]:
        if isinstance(settings, Chain):
            return {"settings": asdict(settings), "budget_steps": 300, **chain}
        return record(settings, [(0.5, math.log1p(rise)) for rise in rises[settings.replay]])

    return make


ATTEMPT = {"rate": 3e-3, "replay": 0.1, "start": None, "steps": 60, "reason": "stopped"}
HOME = {
    "attempts": [ATTEMPT, ATTEMPT | {"steps": 300, "reason": ""}],
    "chosen": "a2-s300",
    "steps_trained": 360,
}
HEALTHY_THEN_LOST = {0.25: (0.22, 0.23, 0.13), 0.5: (0.18, 0.1, 0.05), 0.0: (0.9, 1.2), 0.1: (0.5, 0.4)}


def test_gates_hold_where_healthy_runs_end_and_the_lost_one_is_stopped() -> None:
    assert set(verdicts(gates.EXPERIMENT, gated(HEALTHY_THEN_LOST, HOME)).values()) == {True}


def test_gates_fail_where_a_healthy_run_is_stopped_or_a_lost_one_is_not() -> None:
    rising = HEALTHY_THEN_LOST | {0.25: (0.32, 0.36, 0.13), 0.0: (0.1, 0.1)}
    stuck = HOME | {"attempts": [ATTEMPT], "chosen": None}
    assert set(verdicts(gates.EXPERIMENT, gated(rising, stuck)).values()) == {False}


def test_a_stop_is_judged_by_the_contracts_rule_with_the_defaults_of_the_spec() -> None:
    readings = [
        {"step": 30 * n, **losses("strong", 0.5, math.log1p(rise))} for n, rise in enumerate((0.4, 0.5), 1)
    ]
    stopped = controller.stops_at(controller.spec(), BASE, readings)
    assert stopped is not None
    assert stopped[0] == 60
    assert stopped[1].message == (
        "general perplexity is +50.0% over the base model's, above +30.0%, twice the limit, at 2 checkpoints in a row "
        "and not falling"
    )


def placed(shapes: Mapping[str, Sequence[Pair]]) -> Callable[[Adaptation], dict[str, Any]]:
    def make(settings: Adaptation) -> dict[str, Any]:
        kind = next(
            name for name, kind in best.KINDS.items() if replace(kind.run, seed=settings.seed) == settings
        )
        return record(settings, shapes[kind])

    return make


ENDS = ((0.5, 0.05), (0.7, 0.05), (0.8, 0.05))
INSIDE = ((0.5, 0.05), (0.8, 0.05), (0.6, 0.05))
OVER_THE_LIMIT_AT_LAST = ((0.5, 0.05), (0.7, 0.1), (0.8, 0.2))


def test_the_best_checkpoint_is_found_where_it_was_planted() -> None:
    usual = {"cosine": ENDS, "constant rate": OVER_THE_LIMIT_AT_LAST, "many epochs": INSIDE}
    assert set(verdicts(best.EXPERIMENT, placed(usual)).values()) == {True}
    other = {"cosine": INSIDE, "constant rate": ENDS, "many epochs": OVER_THE_LIMIT_AT_LAST}
    assert verdicts(best.EXPERIMENT, placed(other)) == {
        "best.cosine-ends-best": False,
        "best.constant-rate-inside": False,
        "best.many-epochs-inside": False,
        "best.selector": True,
    }


def test_the_selector_fails_where_half_a_misleads_it_and_where_nothing_passes() -> None:
    def misled(settings: Adaptation) -> dict[str, Any]:
        made = record(settings, ENDS)
        made["readings"][0]["domain_a"] = 1.0
        return made

    assert verdicts(best.EXPERIMENT, misled)["best.selector"] is False
    forgets = {"cosine": ENDS, "constant rate": ((0.5, 0.5), (0.6, 0.6)), "many epochs": INSIDE}
    assert verdicts(best.EXPERIMENT, placed(forgets))["best.selector"] is False


def compared(dapt: Pair, plain: Pair) -> Callable[[Adaptation], dict[str, Any]]:
    def make(settings: Adaptation) -> dict[str, Any]:
        if settings.rate.schedule == "constant":
            return record(settings, [plain])
        return record(settings, [dapt], {"i0.8": dapt, "i0.6": dapt, "avg3": dapt})

    return make


def test_defaults_hold_where_they_forget_less_for_nearly_the_same_gain() -> None:
    shares = dict(defaults.REPLAY)
    weak = 0.05 + 0.4 * min(0.5, WEAK["domain_a"] - WEAK["general_a"])
    assert controller.default_replay(BASE) == shares["strong"]
    found = verdicts(defaults.EXPERIMENT, compared((0.95, 0.1), (1.0, 0.5)))
    assert found["defaults.strong"] is True
    assert found["defaults.weak"] is (round(weak, 2) == shares["weak"])


@pytest.mark.parametrize("dapt", [(0.8, 0.1), (0.95, 0.5)])
def test_defaults_fail_where_they_learn_less_or_forget_as_much(dapt: Pair) -> None:
    assert (
        verdicts(defaults.EXPERIMENT, compared(dapt, (1.0, 0.1 if dapt[1] == 0.1 else 0.5)))[
            "defaults.strong"
        ]
        is False
    )


def begun(values: Mapping[tuple[str, str], Sequence[float]]) -> Callable[[Any], dict[str, Any]]:
    def make(settings: Any) -> dict[str, Any]:
        bits = [value + noise_of(settings.seed) for value in values[settings.words, settings.beginning]]
        readings = [
            {"step": step, "bits_per_byte": value}
            for step, value in zip(rows.READING_STEPS, bits, strict=True)
        ]
        return {"settings": asdict(settings), "readings": readings, "held_out_tokens": 100}

    return make


def test_rows_hold_where_means_begin_lower_and_foreign_words_tie() -> None:
    values = {(words, start): (1.6, 1.5, 1.4) for words in rows.WORDS for start in rows.BEGINNINGS}
    values["known", "random"], values["known", "random-head"] = (2.4, 1.7, 1.4), (2.2, 1.6, 1.4)
    assert set(verdicts(rows.EXPERIMENT, begun(values)).values()) == {True}
    values["known", "random"], values["known", "random-head"] = (2.4, 1.5, 1.4), (1.7, 1.5, 1.4)
    values["foreign", "random"] = (2.0, 1.9, 1.5)
    assert set(verdicts(rows.EXPERIMENT, begun(values)).values()) == {False}


PLANTED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "replay": only_last(replayed),
    "schedule": only_last(scheduled),
    "penalty": only_last(penalized({})),
    "interpolation": bent(4.0),
    "gates": gated(HEALTHY_THEN_LOST, HOME),
    "best": placed({"cosine": ENDS, "constant rate": OVER_THE_LIMIT_AT_LAST, "many epochs": INSIDE}),
    "defaults": compared((0.95, 0.1), (1.0, 0.5)),
    "rows": begun({(words, start): (1.6, 1.5, 1.4) for words in rows.WORDS for start in rows.BEGINNINGS}),
}


@pytest.mark.parametrize("seeds", [SEEDS, SEEDS[:1]], ids=["all seeds", "one seed"])
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_figures_and_tables_are_made_of_whatever_runs_there_are(
    experiment: Experiment, seeds: tuple[int, ...]
) -> None:
    runs = [PLANTED[experiment.name](settings) for settings in experiment.runs(seeds)]
    for known in (runs, runs[:1]):
        records = Records(known, BASES)
        assert experiment.figure is not None
        assert experiment.figure(records).startswith(b"\x89PNG")
        for table in experiment.judge(records).tables:
            assert table.rows
            assert {len(row) for row in table.rows} == {len(table.header)}
