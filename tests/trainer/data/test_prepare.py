"""The whole stage on tiny corpora."""

from __future__ import annotations

from pathlib import Path


def test_small_corpus_ends_as_shards_held_out_text_and_model(config, prepare, tmp_path: Path, board) -> None:
    report = prepare(config)
    facts = report.facts
    print(report.model_dump_json(indent=1))
    assert (tmp_path / "work/data/manifest.json").is_file()
