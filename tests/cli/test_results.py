"""The closing table and the answers before and after, from the reports on a work volume."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from dapt_contract.base import Contract
from dapt_contract.measure import Measure, Perplexity, Score, SidePerplexity
from dapt_contract.run_identity import RunIdentity
from dapt_contract.stage_file import StageFile, write_report
from dapt_contract.stages.baseline import BaselineConfig, BaselineFacts, BaselineReport
from dapt_contract.stages.common import EvaluationConfig, ModelReference
from dapt_contract.stages.evaluate import EvaluateConfig, EvaluateFacts, EvaluateReport
from dapt_contract.stages.verify import NamedMeasure, Sample, VerifyConfig, VerifyFacts, VerifyReport
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus, SelectedStatus
from dapt_operator.cli.display.results import attempts_table, read_results, results_table, sample_lines

MODEL = ModelReference(weights="model")
EVALUATION = EvaluationConfig(context_length_tokens=64)


def side(nats: float) -> SidePerplexity:
    half = Perplexity(nll_nats=nats * 100, tokens=100, bytes=400)
    return SidePerplexity(a=half, b=half)


def measure(domain: float, general: float, score: float, difference: float | None = None) -> Measure:
    row = Score(
        name="coding",
        side="domain",
        items=250,
        score=score,
        standard_error=0.031,
        difference=difference,
        difference_standard_error=None if difference is None else 0.02,
    )
    return Measure(digest="d" * 64, domain=side(domain), general=side(general), scores=(row,))


BASE = measure(3.0, 2.0, 0.4)
CHOSEN = measure(2.5, 2.05, 0.46, 0.06)
FINAL = measure(2.55, 2.1, 0.5, 0.1)
SELECTED = DomainAdaptationStatus(selected=SelectedStatus(id="a1-s24", reason="largest gain of 2"))


def finished(work: Path, kind: str, config: Contract, report: Contract, candidate: str | None = None) -> None:
    run = RunIdentity(
        namespace="n", name="x", uid="u", stage=kind, attempt=1, candidate=candidate, try_number=1, fence=1
    )
    write_report(work, StageFile(run=run, kind=kind, config=config), report)


def baseline(work: Path) -> None:
    config = BaselineConfig(model=MODEL, evaluation=EVALUATION)
    finished(work, "baseline", config, BaselineReport(facts=BaselineFacts(measure=BASE)))


def evaluated(work: Path, candidate: str, result: Measure) -> None:
    config = EvaluateConfig(
        candidate=candidate, model=MODEL, evaluation=EVALUATION, base_items_path="stages/x"
    )
    report = EvaluateReport(facts=EvaluateFacts(candidate=candidate, measure=result))
    finished(work, "evaluate", config, report, candidate)


def verified(work: Path, candidate: str = "a1-s24", samples: tuple[Sample, ...] = ()) -> None:
    report = VerifyReport(
        facts=VerifyFacts(final=FINAL, digests=()),
        measures=tuple(
            NamedMeasure(name=name, measure=one)
            for name, one in (("base", BASE), ("chosen", CHOSEN), ("final", FINAL))
        ),
        samples=samples
        or (
            Sample(prompt="Same?", answers=(("base", "yes"), ("final", "yes"))),
            Sample(
                prompt="What is  A00?", answers=(("base", "a road"), ("chosen", "x"), ("final", "Cholera."))
            ),
        ),
    )
    finished(
        work,
        "verify",
        VerifyConfig(models=(), evaluation=EVALUATION, base_items_path="stages/x"),
        report,
        candidate,
    )


def lines(work: Path) -> list[str]:
    table = results_table(read_results(work, SELECTED))
    assert table is not None
    out = StringIO()
    Console(file=out, width=140, color_system=None).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_three_models_side_by_side(tmp_path: Path) -> None:
    baseline(tmp_path)
    evaluated(tmp_path, "a1-s24", CHOSEN)
    verified(tmp_path)
    assert lines(tmp_path) == [
        "                                base            chosen a1-s24                     final",
        "domain perplexity              20.09          12.18 (-39.3 %)           12.81 (-36.2 %)",
        "domain bits per byte           1.082                    0.902                     0.920",
        "general perplexity              7.39            7.77 (+5.1 %)            8.17 (+10.5 %)",
        "general bits per byte          0.721                    0.739                     0.757",
        "domain task coding (250)  40.0 ± 3.1  46.0 ± 3.1 (+6.0 ± 2.0)  50.0 ± 3.1 (+10.0 ± 2.0)",
    ]


def test_the_chosen_one_is_the_selected_candidate(tmp_path: Path) -> None:
    baseline(tmp_path)
    evaluated(tmp_path, "a1-s12", FINAL)
    evaluated(tmp_path, "a1-s24", CHOSEN)
    outcome = read_results(tmp_path, SELECTED)
    assert [name for name, _ in outcome.measures] == ["base", "chosen"]
    assert outcome.measure("chosen") == CHOSEN


def test_the_model_between_chosen_and_final_has_its_column(tmp_path: Path) -> None:
    baseline(tmp_path)
    named = (("base", BASE), ("chosen", CHOSEN), ("finetuned", CHOSEN), ("final", FINAL))
    report = VerifyReport(
        facts=VerifyFacts(final=FINAL, digests=()),
        measures=tuple(NamedMeasure(name=name, measure=one) for name, one in (*named, ("other", BASE))),
    )
    config = VerifyConfig(models=(), evaluation=EVALUATION, base_items_path="stages/x")
    finished(tmp_path, "verify", config, report, "a1-s24")
    assert lines(tmp_path)[0].split() == ["base", "chosen", "a1-s24", "fine-tuned", "final"]


def test_attempts_table_shows_what_ended_each_attempt() -> None:
    first = {
        "number": 1,
        "learningRate": 2.5e-2,
        "replayFraction": 0.0,
        "endedBy": "Diverged",
        "reason": "nan",
    }
    one = DomainAdaptationStatus.model_validate({"attempts": [first]})
    assert attempts_table(one) is None
    second = {"number": 2, "learningRate": 2.5e-3, "replayFraction": 0.25, "start": "a1-s10"}
    table = attempts_table(DomainAdaptationStatus.model_validate({"attempts": [first, second]}))
    out = StringIO()
    Console(file=out, width=140, color_system=None).print(table)
    assert [line.split() for line in out.getvalue().splitlines()] == [
        ["attempt", "learning", "rate", "replay", "started", "from", "ended", "by"],
        ["1", "0.025", "0.0", "%", "base", "model", "Diverged", "nan"],
        ["2", "0.0025", "25.0", "%", "a1-s10", "running"],
    ]


def test_nothing_measured_makes_no_table(tmp_path: Path) -> None:
    assert results_table(read_results(tmp_path, DomainAdaptationStatus())) is None


def test_one_answer_before_and_after(tmp_path: Path) -> None:
    verified(tmp_path)
    assert sample_lines(read_results(tmp_path, SELECTED)) == [
        "asked:  What is A00?",
        "before: a road",
        "after:  Cholera.",
    ]


def test_answers_to_questions_are_marked_and_the_right_one_is_next_to_each(tmp_path: Path) -> None:
    verified(
        tmp_path,
        samples=(
            Sample(
                prompt="A00?", answers=(("base", "a road"), ("final", "It is cholera.")), expected="Cholera"
            ),
            Sample(prompt="B01?", answers=(("base", ""), ("final", "Cholerae")), expected="Cholera"),
            Sample(prompt="Go on", answers=(("base", "a"), ("final", "b"))),
        ),
    )
    assert sample_lines(read_results(tmp_path, SELECTED)) == [
        "asked:  A00?",
        "right:  Cholera",
        "before: a road (wrong)",
        "after:  It is cholera. (right)",
        "",
        "asked:  B01?",
        "right:  Cholera",
        "before: (nothing) (wrong)",
        "after:  Cholerae (wrong)",
        "",
        "0 of 2 answers have the right one in them before, 1 after; so few prove nothing: the table has the"
        " measurements",
    ]


@pytest.mark.parametrize("answer", ["", "  \n "])
def test_an_answer_without_words_is_the_final_models_all_the_same(tmp_path: Path, answer: str) -> None:
    sample = Sample(
        prompt="What is A00?",
        answers=(("base", "a road"), ("chosen", "x"), ("finetuned", "y"), ("final", answer)),
    )
    verified(tmp_path, samples=(sample,))
    assert sample_lines(read_results(tmp_path, SELECTED)) == [
        "asked:  What is A00?",
        "before: a road",
        "after:  (nothing)",
    ]


def test_no_other_models_answer_stands_in_for_a_missing_one(tmp_path: Path) -> None:
    sample = Sample(prompt="What is A00?", answers=(("base", ""), ("chosen", "x")))
    verified(tmp_path, samples=(sample,))
    assert sample_lines(read_results(tmp_path, SELECTED)) == ["asked:  What is A00?", "before: (nothing)"]


def test_a_sample_in_which_only_another_model_differs_is_not_preferred(tmp_path: Path) -> None:
    same = Sample(prompt="1?", answers=(("base", "a"), ("chosen", "b"), ("final", "a")))
    other = Sample(prompt="2?", answers=(("base", "a"), ("chosen", "a"), ("final", "c")))
    verified(tmp_path, samples=(same, other))
    assert sample_lines(read_results(tmp_path, SELECTED))[0] == "asked:  2?"


def test_what_an_earlier_selection_verified_is_not_shown(tmp_path: Path) -> None:
    baseline(tmp_path)
    verified(tmp_path, candidate="a1-s9")
    evaluated(tmp_path, "a1-s9", FINAL)
    results = read_results(tmp_path, SELECTED)
    assert [name for name, _ in results.measures] == ["base"]
    assert results.samples == ()
    undecided = read_results(tmp_path, DomainAdaptationStatus())
    assert [name for name, _ in undecided.measures] == ["base"]


def test_a_chosen_candidate_that_was_not_evaluated_has_the_measure_of_verify(tmp_path: Path) -> None:
    baseline(tmp_path)
    verified(tmp_path)
    assert read_results(tmp_path, SELECTED).measure("chosen") == CHOSEN
