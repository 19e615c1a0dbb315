"""docs/science.md is what the committed records make of it, and nothing was written by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from science.experiments import EXPERIMENTS
from science.experiments.common import SEEDS
from science.kinds import cost

from science import page, store

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_generated_from_the_committed_results() -> None:
    assert (DOCS / page.PAGE).read_text() == page.text(store.RESULTS), "run: python -m science --page"


def test_every_figure_of_the_page_is_there_and_none_is_left_over() -> None:
    named = set(re.findall(r"\]\(science/([\w.-]+)\)", (DOCS / page.PAGE).read_text()))
    there = {path.name for path in (DOCS / page.FIGURES).glob("*")}
    assert named == there
    assert all((DOCS / page.FIGURES / name).read_bytes().startswith(b"\x89PNG") for name in named)


def test_a_picture_is_drawn_again_only_when_its_data_have_changed(tmp_path: Path) -> None:
    drawn = tmp_path / "drawn.json"

    def write(**data: str) -> None:
        wanted = {f"{name}.png": page.Figure(digest, digest.encode) for name, digest in data.items()}
        page.write_figures(wanted, tmp_path, drawn)

    def content(name: str) -> bytes:
        return (tmp_path / f"{name}.png").read_bytes()

    write(one="a", two="b")
    for name in ("one", "two"):
        (tmp_path / f"{name}.png").write_bytes(b"drawn by another version")
    write(one="a", two="c")
    assert (content("one"), content("two")) == (b"drawn by another version", b"c")
    (tmp_path / "one.png").unlink()
    write(one="a", two="c")
    assert content("one") == b"a"


def test_the_pictures_are_those_of_the_committed_results() -> None:
    drawn = json.loads((store.RESULTS / page.DRAWN).read_text())
    assert drawn == {name: figure.digest for name, figure in page.figures(store.RESULTS).items()}


def test_summary_lists_every_claim_with_its_verdict() -> None:
    text = (DOCS / page.PAGE).read_text()
    for experiment in EXPERIMENTS:
        for verdict in page.outcome_of(store.RESULTS, experiment).verdicts:
            assert verdict.line in text
            assert f"| [{verdict.name}](#" in text


def test_what_was_moved_after_a_result_stands_under_its_own_heading() -> None:
    text = (DOCS / page.PAGE).read_text()
    for experiment in EXPERIMENTS:
        heading = f"### Moved after a result: {experiment.name}"
        assert (heading in text) == bool(experiment.moved)
        for question in experiment.moved:
            assert f"- {question}" in text.split(heading)[1].split("```")[0]
        assert not set(experiment.moved) & set(experiment.thresholds)


def test_science_page_without_runs_reports_no_experiment_and_open_verdicts(tmp_path: Path) -> None:
    text = page.text(tmp_path)
    assert "No experiment was run yet." in text
    assert text.count("VERDICT ") == sum(len(experiment.claims) for experiment in EXPERIMENTS)
    assert text.count(": open - not run yet") == text.count("VERDICT ")


def test_a_record_is_read_as_it_was_written_but_for_digits(tmp_path: Path) -> None:
    run = {"settings": {"seed": 1, "shares": (0.2, 0.4)}, "value": 1.23456789, "none": None}
    store.write_results(tmp_path, "some", {"base": "x", "losses": {"a": 2.000000049}}, [run])
    facts, runs = store.read_results(tmp_path, "some")
    assert facts == {"base": "x", "losses": {"a": 2.0}}
    assert runs == [{"settings": {"seed": 1, "shares": [0.2, 0.4]}, "value": 1.23457, "none": None}]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_no_two_runs_of_an_experiment_are_the_same(experiment: page.Experiment) -> None:
    names = [store.name_of(settings) for settings in experiment.runs(SEEDS)]
    assert len(set(names)) == len(names)


def test_the_estimate_counts_each_different_run_once() -> None:
    facts = {"measure_cpu_seconds": 2.0, "base_cpu_seconds": 600.0}
    runs = {store.name_of(settings): settings for e in EXPERIMENTS for settings in e.runs(SEEDS)}
    steps, measures = (sum(cost(settings)[place] for settings in runs.values()) for place in (0, 1))
    minutes = (0.1 * steps + 2.0 * measures) / 60
    told = page.estimate(facts, 0.1)
    assert told.startswith(
        f"Everything together is {len(runs)} different runs of {steps:,} steps and {measures:,} "
    )
    assert f"{minutes:.0f} CPU minutes by these figures, so {minutes / 2:.0f} minutes on two cores" in told
    assert "10 minutes more (one thread) for the base model" in told


def test_a_full_run_stays_within_eighty_minutes_on_two_cores_by_the_measured_figures() -> None:
    found = re.search(
        r"so (\d+) minutes on two cores .* and (\d+) minutes more", (DOCS / page.PAGE).read_text()
    )
    assert found is not None
    assert int(found[1]) <= 80
    assert int(found[1]) + int(found[2]) <= 110
