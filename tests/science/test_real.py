"""Tests of the campaign on a real model: which pieces there are, how it continues, and its page. Nothing is trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from science.intervals import half_width, with_interval
from science.real import page, pieces, runs, texts
from science.real.manifests import LAST, manifest
from science.real.pieces import Piece

from dapt_contract.measure import Measure, Perplexity, Score, SidePerplexity
from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation, DomainAdaptationSpec
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from science import store

DOCS = Path(__file__).parents[2] / "docs"
FIRST = pieces.all_pieces()[0]


def spec_of(piece: Piece) -> DomainAdaptationSpec:
    profile, adaptation = manifest(piece, Path("/data"), Path("/out"))
    AdaptationProfile.model_validate(profile)
    return DomainAdaptation.model_validate(adaptation).spec


def measure(domain: float, general: float, change: float | None = None) -> Measure:
    def side(nats: float) -> SidePerplexity:
        half = Perplexity(nll_nats=100 * nats, tokens=100, bytes=400, difference_standard_error_nats=0.01)
        return SidePerplexity(a=half, b=half)

    error = None if change is None else 0.02
    score = Score(
        name="facts", side="general", items=60, score=0.5 + (change or 0.0), standard_error=0.05,
        difference=change, difference_standard_error=error,
    )  # fmt: skip
    return Measure(digest="d", domain=side(domain), general=side(general), scores=(score,))


def record(piece: Piece, gain: float, forgetting: float, *, passes: bool = True) -> dict[str, Any]:
    measures = {"base": measure(3.0, 2.8)}
    if passes:
        measures["final"] = measure(3.0 - gain, 2.8 + forgetting, -0.05)
    resolved = {"replayFraction": 0.25, "learningRate": 1e-4}
    attempts = [{"number": 1, "totalSteps": pieces.STEPS}]
    status = DomainAdaptationStatus.model_validate(
        {"resolved": resolved, "attempts": attempts, "selected": {"id": LAST, "reason": "pinned"}}
    )
    return pieces.with_settings(piece, runs.record_of(status, measures, 600.0))


def keep(results: Path, piece: Piece, gain: float = 0.5, forgetting: float = 0.1, **over: Any) -> None:
    store.write_record(pieces.record_path(results, piece), record(piece, gain, forgetting, **over))


def test_every_piece_has_a_name_of_its_own_and_the_recipes_of_a_setting_follow_each_other() -> None:
    found = pieces.all_pieces()
    assert len({piece.name for piece in found}) == len(found) == 36
    assert [piece.recipe for piece in found[:3]] == ["plain", "rival", "dapt"]
    assert len({(piece.seed, piece.domain, piece.method) for piece in found[:3]}) == 1


def test_pieces_with_a_record_are_not_done_again(tmp_path: Path) -> None:
    assert pieces.missing(tmp_path) == pieces.all_pieces()
    keep(tmp_path, pieces.all_pieces()[1])
    assert pieces.missing(tmp_path) == (FIRST, *pieces.all_pieces()[2:])
    assert list(pieces.recorded(tmp_path)) == [pieces.all_pieces()[1]]


def test_the_time_left_follows_the_recorded_runs_of_the_same_method_and_recipe(tmp_path: Path) -> None:
    assert pieces.minutes_left(pieces.all_pieces(), {}) == 18 * (15 + 25)
    slow, fast = ({"seconds": 1200}, {"seconds": 600})
    records = {Piece(1, "cloud", "lora", "dapt"): slow, Piece(1, "cloud", "lora", "plain"): fast}
    left = [Piece(2, "cloud", "lora", recipe) for recipe in ("dapt", "plain", "rival")]
    assert pieces.minutes_left(left, records) == 20 + 10 + 15
    assert pieces.estimate(left, records).startswith("3 of 36 runs are left, about 0.8 hours on two cores")
    assert pieces.estimate((), records) == "all 36 runs are done"


@pytest.mark.parametrize("piece", pieces.all_pieces()[:12], ids=lambda piece: piece.name)
def test_recipes_differ_in_replay_and_choice_alone(piece: Piece) -> None:
    spec = spec_of(piece)
    assert spec.pretraining.budget.steps == pieces.STEPS
    assert (spec.pretraining.method.lora is not None) == (piece.method == "lora")
    use, replay, pin = {
        "plain": ("measure", None, LAST),
        "rival": ("train", 0.05, LAST),
        "dapt": ("train", None, None),
    }[piece.recipe]
    assert (spec.corpus.general_use, spec.corpus.replay_fraction, spec.selection.pin) == (use, replay, pin)
    assert spec.gates.on_breach == ("Rollback" if piece.recipe == "dapt" else "Warn")
    assert spec.seed == piece.seed


def test_a_record_has_half_b_and_comes_back_as_it_was_written(tmp_path: Path) -> None:
    keep(tmp_path, FIRST)
    read = pieces.recorded(tmp_path)[FIRST]
    assert read["settings"] == {
        "seed": 1, "domain": "clinical", "method": "lora", "recipe": "plain", "tokens": pieces.TOKENS,
    }  # fmt: skip
    assert page.point(read) == pytest.approx((0.5, 0.1))
    assert read["final"]["scores"] == {"facts": ["general", 60, 0.45, -0.05, 0.02]}


def test_a_run_that_dapt_refuses_names_the_piece(tmp_path: Path) -> None:
    with pytest.raises(runs.PieceError, match=r"clinical-lora-plain-1 ended with \d before it began"):
        runs.perform(FIRST, tmp_path / "runs", tmp_path / "no data")


def test_the_page_is_generated_from_the_committed_records() -> None:
    assert (DOCS / page.PAGE).read_text() == page.text(pieces.RESULTS), "run: python -m science.real --page"


def test_the_page_says_first_how_much_was_done(tmp_path: Path) -> None:
    keep(tmp_path, FIRST)
    lines = page.text(tmp_path).splitlines()
    assert lines[2].startswith("**1 of 36 runs are done.**")
    assert "VERDICT real.clinical.lora: open - 1 of its 6 runs were done" in lines


@pytest.mark.parametrize(
    ("gain", "forgetting", "holds"), [(0.49, 0.02, True), (0.47, 0.02, False), (0.49, 0.03, False)]
)
def test_the_verdict_asks_for_gain_and_for_less_forgetting(
    tmp_path: Path, gain: float, forgetting: float, holds: bool
) -> None:
    for seed in pieces.SEEDS:
        keep(tmp_path, Piece(seed, "cloud", "full", "plain"), 0.5, 0.1)
        keep(tmp_path, Piece(seed, "cloud", "full", "dapt"), gain, forgetting)
    found = {verdict.name: verdict for verdict in page.verdicts(pieces.recorded(tmp_path))}
    assert found["real.cloud.full"].holds is holds


def test_the_verdict_is_no_where_nothing_passes_the_gates(tmp_path: Path) -> None:
    for seed in pieces.SEEDS:
        keep(tmp_path, Piece(seed, "cloud", "full", "plain"))
        keep(tmp_path, Piece(seed, "cloud", "full", "dapt"), passes=seed != 2)
    found = {verdict.name: verdict for verdict in page.verdicts(pieces.recorded(tmp_path))}
    assert found["real.cloud.full"].line == (
        "VERDICT real.cloud.full: no - nothing passes the gates for 1 of 3 seeds"
    )
    assert "nothing passes" in page.text(tmp_path)


def test_an_interval_of_few_values_is_students() -> None:
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3**0.5)
    assert with_interval([1.0, 2.0, 3.0], "+.2f") == "+2.00 ± 2.48 (3)"
    assert (with_interval([1.0], "+.2f"), with_interval([])) == ("+1.00 (1)", "-")


def service() -> dict[str, Any]:
    names = [
        f"{verb}{noun}" for verb in ("Create", "Delete", "Describe") for noun in ("Queue", "Topic", "Rule")
    ]
    names += [f"ListThings{number}" for number in range(40)]
    said = "<p>Makes something of the <code>request</code> that is long enough to be asked about.</p>"
    return {
        "metadata": {"serviceFullName": "Example Service"},
        "operations": {name: {"documentation": said, "input": {"shape": "Request"}} for name in names},
        "shapes": {
            "Request": {"members": {"Name": {"documentation": "<p>The name &amp; more. " + "word " * 40}}}
        },
    }


def test_no_document_names_an_operation_that_is_asked_about() -> None:
    made = service()
    questions = texts.operation_questions([made])
    asked = {question["choices"][question["answer"]] for question in questions}
    assert asked
    assert all(map(texts.is_held_away, asked))
    said = " ".join(texts.cloud_documents([made]))
    assert not asked & set(re.findall(r"\w+", said))
    assert all(len(set(question["choices"])) == texts.CHOICES for question in questions)


def test_documents_are_plain_text() -> None:
    text = texts.document(service(), "CreateQueue")
    assert text.startswith("Example Service: CreateQueue\nMakes something of the request that is long enough")
    assert "Name: The name & more." in text
    assert "<" not in text
