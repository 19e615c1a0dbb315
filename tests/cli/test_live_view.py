"""The live view and the plain lines as pure functions of status and progress."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO

from rich.console import Console

from dapt_contract.pod.progress import Progress
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus, StageStatus, Usage
from dapt_operator.cli.display.live_view import bar, progress_line, render
from dapt_operator.cli.display.screen import PlainLog
from dapt_operator.cli.display.stage_rows import Snapshot, stage_rows

NOW = datetime(2026, 1, 31, 12, 10, 0, tzinfo=UTC)
KINDS = ("prepare", "baseline", "pretrain", "evaluate", "verify", "publish")


def stage(kind: str, state: str, **fields: object) -> StageStatus:
    return StageStatus.model_validate(
        {"name": kind, "kind": kind, "state": state, "runKey": f"key-{kind}"} | fields
    )


PREPARED = stage(
    "prepare",
    "Succeeded",
    startTime="2026-01-31T12:00:00Z",
    completionTime="2026-01-31T12:01:05Z",
    message="60,210 tokens of domain text in 118 sequences",
)
MEASURED = stage(
    "baseline", "Succeeded", startTime="2026-01-31T12:01:05Z", completionTime="2026-01-31T12:01:50Z"
)
TRAINING = stage("pretrain", "Running", startTime="2026-01-31T12:02:00Z")
READING = Progress(
    run_key="key-pretrain",
    stage="pretrain",
    activity="training",
    fraction=0.5,
    step=12,
    total_steps=24,
    tokens=24_576,
    tokens_per_second=141.2,
    loss_nats=2.30712,
    domain_perplexity=11.482,
    general_perplexity=20.06,
    eta_seconds=184.0,
)


def snapshot(*stages: StageStatus, reading: Progress | None = None, **status: object) -> Snapshot:
    return Snapshot(
        name="quickstart",
        status=DomainAdaptationStatus.model_validate({"phase": "Pretraining", **status}).model_copy(
            update={"stages": stages}
        ),
        kinds=KINDS,
        progress={} if reading is None else {reading.run_key: reading},
        now=NOW,
        elapsed_seconds=600.0,
    )


def text(of: Snapshot, width: int = 150) -> list[str]:
    out = StringIO()
    Console(file=out, width=width, color_system=None, legacy_windows=False).print(render(of))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_the_view_shows_every_stage_and_the_reading_of_the_running_one() -> None:
    assert text(snapshot(PREPARED, MEASURED, TRAINING, reading=READING)) == [
        "quickstart  Pretraining  00:10:00",
        "✓  prepare   1 min 05 s  60,210 tokens of domain text in 118 sequences",
        "✓  baseline  45 s",
        "▶  pretrain  8 min 00 s  ██████████░░░░░░░░░░  50 %  training · step 12/24 · 141 tokens/s · loss 2.307 · last"
        " perplexity domain 11.48, general 20.06 ·",
        "                         3 min 04 s left",
        "·  evaluate",
        "·  verify",
        "·  publish",
    ]


def test_a_forecast_stands_behind_the_reading_in_both_views() -> None:
    expected = {"forgetting": 0.128, "least": 0.101, "most": 0.162, "step": 9}
    shown = snapshot(TRAINING, reading=READING, progress={"forecast": expected})
    sentence = "general perplexity at the end about +12.8 % (+10.1 % to +16.2 %)"
    assert any(line.endswith(f"3 min 04 s left · {sentence}") for line in text(shown, width=250))
    assert any(line.endswith(sentence) for line in PlainLog().lines(shown))
    assert sentence not in " ".join(text(snapshot(TRAINING, progress={"forecast": expected}), width=250))


def test_before_anything_started_the_chain_is_shown() -> None:
    assert text(Snapshot("new", DomainAdaptationStatus(), KINDS)) == [
        "new  Pending",
        *(f"·  {kind}" for kind in KINDS),
    ]


def test_a_failure_keeps_its_sentence_and_restarts_are_counted() -> None:
    failed = stage(
        "prepare",
        "Failed",
        startTime="2026-01-31T12:00:00Z",
        completionTime="2026-01-31T12:00:03Z",
        message="corpus.jsonl:7: not JSON",
    )
    lines = text(
        snapshot(failed).__class__(
            "q", snapshot(failed).status.model_copy(update={"usage": Usage(restarts=2)})
        )
    )
    assert lines[2] == "✗  prepare      3 s  corpus.jsonl:7: not JSON"
    assert lines[-1] == "2 restarts after faults"


def test_new_run_replaces_the_row_of_the_old_one() -> None:
    first = stage("pretrain", "Failed", message="lost a peer")
    second = stage("pretrain", "Running", **{"try": 2, "startTime": "2026-01-31T12:09:00Z"})
    rows = [row for row in stage_rows(snapshot(first, second)) if row.title.startswith("pretrain")]
    assert [(row.title, row.state, row.seconds) for row in rows] == [("pretrain, run 2", "Running", 60.0)]


def test_tuning_data_that_was_corrected_replaces_the_row_of_the_wrong_file() -> None:
    wrong = stage("tuning_data", "Failed", candidate="instructions-0123456789ab", **{"try": 2})
    right = stage("tuning_data", "Succeeded", candidate="instructions-ba9876543210")
    pairs = stage("tuning_data", "Succeeded", candidate="preferences-ba9876543210")
    rows = [row for row in stage_rows(snapshot(wrong, right, pairs)) if row.state != "Pending"]
    assert [(row.title, row.state) for row in rows] == [
        ("tuning data instructions", "Succeeded"),
        ("tuning data preferences", "Succeeded"),
    ]


def test_plain_log_prints_the_end_of_corrected_tuning_data_once() -> None:
    log = PlainLog()
    wrong = stage("tuning_data", "Failed", candidate="instructions-0123456789ab")
    right = stage("tuning_data", "Succeeded", candidate="instructions-ba9876543210")
    assert log.lines(snapshot(wrong, right)) == ["[00:10:00] tuning data instructions: done"]
    assert log.lines(snapshot(wrong, right)) == []


def test_each_candidate_has_its_line() -> None:
    first = stage("evaluate", "Succeeded", candidate="a1-s24", startTime="2026-01-31T12:09:00Z")
    second = stage("evaluate", "Running", candidate="a1-s18")
    rows = [(row.title, row.state) for row in stage_rows(snapshot(first, second))]
    assert rows[3:5] == [("evaluate a1-s24", "Succeeded"), ("evaluate a1-s18", "Waiting")]


def test_many_finished_evaluations_share_a_line_of_the_live_view() -> None:
    times = {"startTime": "2026-01-31T12:08:00Z", "completionTime": "2026-01-31T12:08:30Z"}
    done = [stage("evaluate", "Succeeded", candidate=f"a1-s{step}", **times) for step in (6, 12, 18, 24)]
    failed = stage("evaluate", "Failed", candidate="a1-s30", message="no room")
    lines = text(snapshot(*done, failed))
    assert [line for line in lines if "evaluate" in line] == [
        "✓  evaluate 4 candidates  2 min 00 s",
        "✗  evaluate a1-s30                    no room",
    ]
    assert sum("evaluate" in line for line in text(snapshot(*done[:3]))) == 3


def test_the_bar_stays_in_its_bounds() -> None:
    assert bar(-1.0) == "░" * 20 + "   0 %"
    assert bar(1.0) == "█" * 20 + " 100 %"
    assert len(bar(0.333)) == len(bar(1.0))


def test_progress_line_shows_only_known_fields() -> None:
    assert (
        progress_line(Progress(run_key="k", stage="prepare", activity="tokenizing domain[0]"))
        == "tokenizing domain[0]"
    )
    assert progress_line(Progress(run_key="k", stage="prepare")) == ""


def test_plain_log_prints_each_change_once() -> None:
    log = PlainLog()
    assert log.lines(snapshot(PREPARED)) == [
        "[00:10:00] prepare: done in 1 min 05 s: 60,210 tokens of domain text in 118 sequences"
    ]
    assert log.lines(snapshot(PREPARED)) == []
    assert log.lines(snapshot(PREPARED, MEASURED, TRAINING, reading=READING)) == [
        "[00:10:00] baseline: done in 45 s",
        "[00:10:00] pretrain: running",
        "[00:10:00] pretrain: 50 % · training · step 12/24 · 141 tokens/s · loss 2.307 · last perplexity domain 11.48,"
        " general 20.06 · 3 min 04 s left",
    ]


def test_plain_log_says_how_far_a_stage_is_when_nothing_was_new_for_ten_seconds() -> None:
    log = PlainLog()

    def lines_at(seconds: float) -> list[str]:
        return log.lines(replace(snapshot(TRAINING, reading=READING), elapsed_seconds=seconds))

    (_, said) = lines_at(600.0)
    assert lines_at(609.0) == []
    assert lines_at(610.0) == [said.replace("00:10:00", "00:10:10")]
    assert lines_at(619.0) == []
    lines_at(36_000.0)
    assert lines_at(36_300.0) == [], "a hundredth of ten hours is six minutes"
    assert len(lines_at(36_370.0)) == 1


def test_a_stage_ends_before_the_one_that_follows_it_starts() -> None:
    times = {"startTime": "2026-01-31T12:08:00Z", "completionTime": "2026-01-31T12:08:30Z"}
    tuned = stage("finetune", "Succeeded", candidate="a1-s24", **times)
    read_again = stage("tuning_data", "Pending", candidate="preferences-1a2b")
    log = PlainLog()
    log.lines(snapshot())
    assert log.lines(snapshot(tuned, read_again)) == [
        "[00:10:00] finetune a1-s24: done in 30 s",
        "[00:10:00] tuning data preferences: starting",
    ]


def test_plain_lines_of_training_come_every_twentieth_of_the_work_and_at_each_measurement() -> None:
    log = PlainLog()
    log.lines(snapshot(TRAINING, reading=READING))

    def said(**changes: object) -> list[str]:
        return log.lines(snapshot(TRAINING, reading=READING.model_copy(update=changes)))

    assert said(fraction=0.54, step=13) == []
    assert len(said(fraction=0.56, step=14)) == 1
    assert said(fraction=0.56, step=14) == []
    assert len(said(fraction=0.58, step=15, domain_perplexity=11.0)) == 1
    assert len(said(fraction=0.58, step=15, activity="saving")) == 1
