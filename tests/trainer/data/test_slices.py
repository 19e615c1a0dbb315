"""Slices of a corpus: however it is cut and whoever reads it, prepare ends with the same files."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dapt_contract.run_identity import RunIdentity
from dapt_contract.stage_file import StageFile, write_report
from dapt_contract.stages.prepare import PrepareConfig, PrepareReport, TextSource
from dapt_trainer.context import StageContext
from dapt_trainer.data.reading.sources import resolve
from dapt_trainer.data.slices import cut, shared_reading
from dapt_trainer.data.slices.cut import CorpusSlice, CorpusSource, slices_of
from dapt_trainer.data.slices.read_slice import SliceReader
from dapt_trainer.data.slices.records import SliceRecord
from dapt_trainer.digests import sha256_of_file
from dapt_trainer.errors import InputError, StopRequested
from dapt_trainer.stages.prepare import run
from support.toy_corpus import Board, documents, write_jsonl

Prepare = Callable[..., PrepareReport]


@pytest.fixture
def corpus(config: PrepareConfig, tmp_path: Path) -> PrepareConfig:
    """Two files of domain text that share documents."""
    texts = documents(120)
    write_jsonl(tmp_path / "d/1.jsonl", texts[:80])
    write_jsonl(tmp_path / "d/2.jsonl", [*texts[60:], texts[0].upper()])
    domain = (TextSource(source=f"file://{tmp_path}/d/*.jsonl"),)
    return config.model_copy(update={"domain": domain, "deduplicate": "near"})


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the corpus into about ten slices."""
    monkeypatch.setattr(cut, "SLICE_BYTES", 10_000)


@pytest.fixture
def read_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the names of the slices that are read."""
    names: list[str] = []
    read = SliceReader.read

    def noted(reader: SliceReader, corpus_slice: CorpusSlice, *args: Path, **options: object) -> SliceRecord:
        names.append(corpus_slice.name)
        return read(reader, corpus_slice, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(SliceReader, "read", noted)
    return names


def files(work: Path) -> dict[str, str]:
    return {
        str(path.relative_to(work)): sha256_of_file(path)
        for folder in ("data", "held-out")
        for path in sorted((work / folder).rglob("*.bin")) + sorted((work / folder).rglob("*.jsonl"))
    }


class Stopper(Board):
    """Requests a stop once this number of slices is finished."""

    def __init__(self, work: Path, slices: int) -> None:
        super().__init__()
        self._work, self._slices = work, slices

    def stop_requested(self) -> bool:
        """Return whether this number of slices is finished."""
        return len(list(self._work.glob("stages/*/*/corpus/slices/*/slice.json"))) >= self._slices


def context(
    config: PrepareConfig, work: Path, board: Board, *, number: int = 1, rank: int = 0
) -> StageContext:
    identity = RunIdentity(
        namespace="default", name="toy", uid="u", stage="prepare", attempt=1, try_number=number, fence=1
    )
    stage = StageFile(run=identity, kind="prepare", config=config)
    work.mkdir(exist_ok=True)
    return StageContext(
        stage=stage, work=work, scratch=work, progress=board, rank=rank, world_size=2 if rank else 1
    )


def test_large_files_are_cut_and_small_ones_are_joined(tmp_path: Path, small_slices: None) -> None:
    write_jsonl(tmp_path / "a.jsonl", documents(60))
    for name in "bcd":
        write_jsonl(tmp_path / f"{name}.jsonl", documents(8))
    config = TextSource(source=f"file://{tmp_path}")
    slices = slices_of(CorpusSource("domain", 0, config, resolve(config.source, "f")))
    parts = [[(Path(part.file.path).name, part.first_byte) for part in entry.parts] for entry in slices]
    assert parts[:2] == [[("a.jsonl", 0)], [("a.jsonl", 10_000)]]
    assert parts[-1][-1] == ("d.jsonl", 0)
    assert any(len(names) > 1 for names in parts)
    assert sum(entry.size_bytes for entry in slices) == sum(p.stat().st_size for p in tmp_path.iterdir())


def test_slices_of_another_size_leave_the_same_data(
    corpus: PrepareConfig, prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(corpus, work=tmp_path / "whole")
    monkeypatch.setattr(cut, "SLICE_BYTES", 10_000)
    assert prepare(corpus, work=tmp_path / "cut").facts == whole.facts
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_processes_leave_the_same_data(
    corpus: PrepareConfig,
    prepare: Prepare,
    tmp_path: Path,
    small_slices: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = prepare(corpus, work=tmp_path / "one")
    monkeypatch.setattr(shared_reading, "MIN_SHARED_BYTES", 0)
    assert prepare(corpus, work=tmp_path / "many").facts == alone.facts
    assert files(tmp_path / "many") == files(tmp_path / "one")


def test_a_run_after_a_stop_reads_only_what_is_left(
    corpus: PrepareConfig, prepare: Prepare, tmp_path: Path, small_slices: None, read_names: list[str]
) -> None:
    whole = prepare(corpus, work=tmp_path / "whole")
    all_names, work = list(read_names), tmp_path / "work"
    read_names.clear()
    with pytest.raises(StopRequested):
        run(corpus, context(corpus, work, Stopper(work, 3)))
    assert read_names == all_names[:3]
    read_names.clear()
    assert prepare(corpus, work=work, try_number=2).facts == whole.facts
    assert read_names == all_names[3:]
    assert files(work) == files(tmp_path / "whole")
    assert [path for path in (work / "stages").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("change", ["altered", "forged", "reported", "source"])
def test_what_a_stopped_run_left_is_not_believed_after_a_change(
    corpus: PrepareConfig,
    prepare: Prepare,
    tmp_path: Path,
    small_slices: None,
    read_names: list[str],
    change: str,
) -> None:
    work = tmp_path / "work"
    with pytest.raises(StopRequested):
        run(corpus, context(corpus, work, Stopper(work, 2)))
    read_names.clear()
    first = work / "stages/prepare-a1/try-1/corpus/slices/domain-0-00000"
    if change == "altered":
        (first / "tokens.bin").write_bytes(bytes((first / "tokens.bin").stat().st_size))
    elif change == "forged":
        # By somebody who writes to the volume, and does not know the uid of the adaptation.
        (first / "tokens.bin").write_bytes(bytes((first / "tokens.bin").stat().st_size))
        record = json.loads((first / "slice.json").read_text())
        for file in record["body"]["files"]:
            file["sha256"] = sha256_of_file(first / file["name"])
        (first / "slice.json").write_text(json.dumps(record))
    elif change == "reported":
        corpus = corpus.model_copy(update={"prepared_digest": "manifest-sha256:0"})
    else:
        source = tmp_path / "d/1.jsonl"
        source.write_bytes(source.read_bytes().replace(b"ater", b"alks"))
    prepare(corpus, work=work, try_number=2)
    assert read_names[0] == "domain-0-00000"


def test_other_pods_read_slices_and_end(
    corpus: PrepareConfig, prepare: Prepare, tmp_path: Path, small_slices: None, read_names: list[str]
) -> None:
    whole = prepare(corpus, work=tmp_path / "whole")
    work, ends = tmp_path / "work", list[object]()
    helper = threading.Thread(target=lambda: ends.append(run(corpus, context(corpus, work, Board(), rank=1))))
    helper.start()
    first = context(corpus, work, Board())
    report = run(corpus, StageContext(**{**vars(first), "world_size": 2}))
    assert isinstance(report, PrepareReport)
    write_report(work, first.stage, report)
    helper.join(timeout=60)
    assert len(ends) == 1
    assert report.facts == whole.facts
    assert len(read_names) == 2 * len(set(read_names))  # nothing twice in either run
    assert files(work) == files(tmp_path / "whole")


def test_bad_records_are_named_by_their_lines_in_any_slice(
    corpus: PrepareConfig, prepare: Prepare, tmp_path: Path, small_slices: None
) -> None:
    path = tmp_path / "d/2.jsonl"
    path.write_bytes(path.read_bytes() + b"{\n")
    with pytest.raises(InputError) as caught:
        prepare(corpus)
    assert f"spec.corpus.domain[0]: {path}:62: not JSON" in str(caught.value)
    assert "1 of 142 records read are bad" in str(caught.value)
