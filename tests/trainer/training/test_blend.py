"""Tests blend: rows have the perplexities of their recipes' models, and the folders of the best stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.base import Contract
from dapt_contract.envelope import write_envelope
from dapt_contract.pod.message import MAX_MESSAGE_BYTES, RunEnd, decode_message, encode_message
from dapt_contract.stages.blend import (
    Blend,
    BlendConfig,
    BlendFacts,
    BlendReport,
    BlendRow,
    KeepRule,
    blend_folder,
)
from dapt_contract.stages.common import Member, ModelReference
from dapt_trainer.context import SilentProgress
from dapt_trainer.data.packing.held_out import read_held_out
from dapt_trainer.digests import reference_digest, weights_digest
from dapt_trainer.errors import InputError, StopRequested
from dapt_trainer.evaluation.perplexity import HeldOutScoring, held_out_perplexity
from dapt_trainer.stages import blend
from support.toy_training import (
    END_OF_TEXT,
    FILTERS,
    SEQUENCE_LENGTH,
    make_context,
    make_model,
    make_work_volume,
    store_base_losses,
)
from support.written import load_recipe

pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]

FULL = ModelReference(weights="full-1")
BLENDS = (
    Blend(candidate="a1-s4-i0.6", model=FULL.model_copy(update={"interpolation": 0.6})),
    Blend(candidate="a1-avg2", model=FULL.model_copy(update={"averaged_with": (Member(weights="full-2"),)})),
    Blend(candidate="a1-s4-i0.8", model=FULL.model_copy(update={"interpolation": 0.8})),
)
CONFIG = BlendConfig(blends=BLENDS, context_length_tokens=SEQUENCE_LENGTH)


class Recorder(SilentProgress):
    """Keeps what was told; asks to stop at an activity."""

    def __init__(self, stop_at: str = "") -> None:
        self.readings: list[dict[str, Any]] = []
        self._stop_at = stop_at

    def update(self, **fields: Any) -> None:
        self.readings.append(fields)

    def stop_requested(self) -> bool:
        return bool(self._stop_at) and any(one.get("activity") == self._stop_at for one in self.readings)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = make_work_volume(tmp_path_factory.mktemp("work"), sequences=2)
    make_model(work / "full-1", seed=11)
    make_model(work / "full-2", seed=12)
    return work


def measured(work: Path, config: BlendConfig = CONFIG, progress: Any = None) -> BlendReport:
    return blend.run(config, make_context(work, work / "scratch", config, kind="blend", progress=progress))


def test_each_row_is_the_perplexity_of_its_recipe(work: Path) -> None:
    report = measured(work)
    assert [row.candidate for row in report.facts.rows] == ["a1-s4-i0.6", "a1-avg2", "a1-s4-i0.8"]
    for row, one in zip(report.facts.rows, BLENDS, strict=True):
        model = load_recipe(work, one.model)
        for side, half, found in (
            ("domain", "a", row.domain_a_nats),
            ("domain", "b", row.domain_b_nats),
            ("general", "a", row.general_a_nats),
            ("general", "b", row.general_b_nats),
        ):
            documents = read_held_out(work, side, half)  # type: ignore[arg-type]
            alone = held_out_perplexity(
                model, documents, HeldOutScoring(SEQUENCE_LENGTH), end_of_text_id=END_OF_TEXT
            )
            assert found == alone.loss_nats
        assert row.weights_digest == reference_digest(work, one.model)[:12]
    assert len({row.domain_a_nats for row in report.facts.rows}) == 3


def test_progress_names_what_is_done_with_each_blend(work: Path) -> None:
    board = Recorder()
    measured(work, progress=board)
    activities = [one["activity"] for one in board.readings if "activity" in one]
    assert activities == ["checking the weights"] + [
        f"{candidate}: {what}"
        for candidate in ("a1-s4-i0.6", "a1-avg2", "a1-s4-i0.8")
        for what in ("writing the weights", "domain held-out text", "general held-out text")
    ]
    perplexities = [one["domain_perplexity"] for one in board.readings if "domain_perplexity" in one]
    assert [value is None for value in perplexities] == [
        True,
        False,
    ] * 3  # none until the model's own is measured
    fractions = [one["fraction"] for one in board.readings if "fraction" in one]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert fractions[-1] == 1.0


def test_a_stop_request_ends_the_stage_between_batches(work: Path) -> None:
    with pytest.raises(StopRequested) as caught:
        measured(work, progress=Recorder("a1-s4-i0.6: general held-out text"))
    assert str(caught.value) == (
        "stopped during a1-s4-i0.6: general held-out text; the next run measures what is missing"
    )


def run_number(work: Path, number: int, config: BlendConfig = CONFIG, progress: Any = None) -> BlendReport:
    """Measure as the run of this number, whose folder is its own."""
    context = make_context(work, work / "scratch", config, kind="blend", progress=progress)
    attempt = 2 + number // 10  # of its own for each test, so that no other test has measured anything for it
    run = context.stage.run.model_copy(update={"try_number": number, "stage": "blend", "attempt": attempt})
    return blend.run(config, replace(context, stage=context.stage.model_copy(update={"run": run})))


def made(board: Recorder) -> list[str]:
    what = ": writing the weights"
    activities = [str(one.get("activity", "")) for one in board.readings]
    return [activity.removesuffix(what) for activity in activities if activity.endswith(what)]


def test_the_run_after_a_stop_measures_only_what_is_missing(work: Path) -> None:
    whole = measured(work)
    stopped, resumed = Recorder("a1-avg2: domain held-out text"), Recorder()
    with pytest.raises(StopRequested):
        run_number(work, 2, progress=stopped)
    assert made(stopped) == ["a1-s4-i0.6", "a1-avg2"]
    assert run_number(work, 3, progress=resumed) == whole
    assert made(resumed) == ["a1-avg2", "a1-s4-i0.8"]
    fractions = [one["fraction"] for one in resumed.readings if "fraction" in one]
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)


def test_rows_of_another_model_length_or_file_are_measured_again(work: Path) -> None:
    one = CONFIG.model_copy(update={"blends": BLENDS[:1]})
    run_number(work, 11, one)
    longer, board = one.model_copy(update={"context_length_tokens": SEQUENCE_LENGTH // 2}), Recorder()
    run_number(work, 12, longer, board)
    assert made(board) == ["a1-s4-i0.6"]
    other = Blend(candidate="a1-s4-i0.6", model=FULL.model_copy(update={"interpolation": 0.7}))
    board = Recorder()
    run_number(work, 13, one.model_copy(update={"blends": (other,)}), board)
    assert made(board) == ["a1-s4-i0.6"]
    for path in work.glob("stages/*/try-*/measured.json"):
        path.write_bytes(path.read_bytes()[:-20])
    board = Recorder()
    run_number(work, 14, one, board)
    assert made(board) == ["a1-s4-i0.6"]


KEEPING = CONFIG.model_copy(update={"keeps": KeepRule(most=2, general_limit_a_nats=100.0)})


def folders(work: Path, attempt: int) -> set[str]:
    """Blends of an attempt that are on the volume."""
    return {str(path.relative_to(work)) for path in work.glob(f"stages/blend-a{attempt}/try-*/blends/*")}


def test_without_a_rule_no_folder_stays(work: Path) -> None:
    report = run_number(work, 21)
    assert folders(work, 4) == set()
    assert {row.try_number for row in report.facts.rows} == {None}


def test_the_best_blends_stay_as_ordinary_folders(work: Path) -> None:
    report = run_number(work, 31, KEEPING)
    best = sorted(report.facts.rows, key=lambda row: row.domain_a_nats)[:2]
    names = {row.candidate: blend_folder(row, 5, None) for row in best}
    assert folders(work, 5) == set(names.values())
    recipes = {blend.candidate: reference_digest(work, blend.model)[:12] for blend in BLENDS}
    for row in report.facts.rows:
        folder = names.get(row.candidate)
        digest = recipes[row.candidate] if folder is None else weights_digest(work / folder)[:12]
        assert (row.weights_digest, row.try_number) == (digest, None if folder is None else 31)


def test_the_next_run_adopts_the_folders_that_are_as_they_were_measured(work: Path) -> None:
    first = run_number(work, 41, KEEPING)
    kept = sorted(folders(work, 6))
    (work / kept[0] / "config.json").write_text("{}")
    (work / "stages/blend-a6/try-41/blends/half.partial").mkdir()
    board = Recorder()
    second = run_number(work, 42, KEEPING, board)
    assert made(board) == []
    assert folders(work, 6) == {kept[1]}
    changed = kept[0].rpartition("/")[2]
    for before, now in zip(first.facts.rows, second.facts.rows, strict=True):
        assert now.domain_a_nats == before.domain_a_nats
        assert now.try_number == (None if now.candidate == changed else before.try_number)


def test_a_blend_over_the_limit_never_stays(work: Path) -> None:
    rows = run_number(work, 51, KEEPING).facts.rows
    limit = sorted(row.general_a_nats for row in rows)[0]
    strict = KEEPING.model_copy(update={"keeps": KeepRule(most=2, general_limit_a_nats=limit)})
    run_number(work, 52, strict)
    assert len(folders(work, 7)) <= 1
    not_a_number = rows[0].model_copy(update={"domain_a_nats": float("nan")})
    assert KeepRule(most=2, general_limit_a_nats=100.0).kept([not_a_number]) == frozenset()


def test_a_missing_part_is_named(work: Path) -> None:
    lost = Blend(
        candidate="a1-avg2", model=FULL.model_copy(update={"averaged_with": (Member(weights="no"),)})
    )
    with pytest.raises(InputError) as caught:
        measured(work, CONFIG.model_copy(update={"blends": (lost,)}))
    assert str(caught.value) == f"{work}/no: no *.safetensors file to name the model by"


def test_rows_have_the_errors_of_their_differences_from_the_base_model(work: Path) -> None:
    update = {"blends": BLENDS[:1], "base_losses_digest": store_base_losses(work)}
    (row,) = run_number(work, 91, CONFIG.model_copy(update=update)).facts.rows
    assert row.domain_b_error
    assert row.general_b_error
    with pytest.raises(InputError, match="the work volume changed since"):
        run_number(work, 101, CONFIG.model_copy(update=update | {"base_losses_digest": "0" * 64}))


def test_thirty_rows_fit_into_a_message() -> None:
    rows = tuple(
        BlendRow(
            candidate=f"a10-s{10**9 + number}-i0.8{'x' * 22}"[:40],
            domain_a_nats=0.0123456789,
            domain_b_nats=1.23456789,
            general_a_nats=1.23456789,
            general_b_nats=1.23456789,
            weights_digest="a" * 12,
            try_number=10**9,
            domain_b_error=9999,
            general_b_error=9999,
        )
        for number in range(30)
    )
    text = encode_message("b" * 64, "blend", RunEnd(message="s" * 5000), facts=BlendFacts(rows=rows))
    assert len(text.encode()) <= MAX_MESSAGE_BYTES
    parsed = decode_message(text).parsed_facts()
    assert isinstance(parsed, BlendFacts)
    assert parsed.rows[29].general_b_nats == 1.23457


class RowsOfBefore(Contract):
    """What an earlier version has kept: rows with the digests of their recipes, and no folders."""

    context_length_tokens: int
    rows: tuple[BlendRow, ...]


def test_what_an_earlier_version_has_measured_is_not_measured_again(work: Path) -> None:
    rows = run_number(work, 61).facts.rows
    path = work / "stages/blend-a8/try-61/measured.json"
    before = RowsOfBefore(context_length_tokens=SEQUENCE_LENGTH, rows=rows)
    key = make_context(work, work / "scratch", CONFIG, kind="blend").signing_key
    write_envelope(path, "dapt.measured-blends", before, key=key)
    board = Recorder()
    assert run_number(work, 62, KEEPING, board).facts.rows == rows
    assert made(board) == []
