"""Checks of documents against held-out text: the same in any window and any process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from dapt_contract.stages.prepare import TextSource
from dapt_trainer.data.analysis import AnalysisSettings, Analyst
from dapt_trainer.data.dedup.contamination import ContaminationIndex
from dapt_trainer.data.dedup.held_out_neighbours import HeldOutShingles
from dapt_trainer.data.reading.text_batches import Counts
from dapt_trainer.data.slices import held_out_checks
from dapt_trainer.data.slices.held_out_checks import CONTAINED, NEAR, HeldOutChecks, HeldOutText
from dapt_trainer.data.slices.spooled_source import SpooledSource, StoredRuns
from support.toy_corpus import documents


def spooled(folder: Path, tokenizer: Tokenizer, files: list[list[str]]) -> SpooledSource:
    """Spool texts as several slices would leave them."""
    analyst = Analyst(AnalysisSettings(tokenizer.to_str(), None, 0, ContaminationIndex()))
    analyses = [analyst(texts) for texts in files]

    def runs(name: str, dtype: str) -> StoredRuns:
        paths, firsts, counts = [], [], []
        for number, analysis in enumerate(analyses):
            values = analysis.tokens if name == "tokens" else analysis.shingles
            sizes = analysis.token_counts if name == "tokens" else analysis.shingle_counts
            paths.append(folder / f"{name}-{number}")
            values.astype(dtype).tofile(paths[-1])
            firsts.append(np.cumsum(sizes) - sizes)
            counts.append(sizes)
        sizes_of_files = tuple(len(texts) for texts in files)
        return StoredRuns(
            tuple(paths), np.dtype(dtype), sizes_of_files, np.concatenate(firsts), np.concatenate(counts)
        )

    tokens = runs("tokens", "<u2")
    return SpooledSource(
        side="domain",
        index=0,
        config=TextSource(source="file://x"),
        counts=Counts(),
        token_counts=tokens.counts,
        keys=np.arange(len(tokens.counts), dtype=np.uint64),
        tokens=tokens,
        sketches=runs("sketches", "<u8"),
    )


def test_windows_and_processes_find_the_same(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out, *others = documents(30)
    words = held_out.split()
    near, part = " ".join(["new", *words[1:]]), " ".join(words[10:18])
    spool = spooled(tmp_path, tokenizer, [[*others[:9], near], [], [part, *others[9:]]])
    text = HeldOutText(HeldOutShingles([held_out]), tokenizer.decode)
    is_checked = np.ones(31, dtype=np.bool_)
    is_checked[-1] = False
    whole = HeldOutChecks(text).findings(spool, is_checked, lambda _: None)
    assert whole.tolist() == [0] * 9 + [NEAR, CONTAINED] + [0] * 20
    monkeypatch.setattr(held_out_checks, "WINDOW_DOCUMENTS", 7)
    shares: list[float] = []
    with HeldOutChecks(text, processes=2, inline_documents=0) as checks:
        assert checks.findings(spool, is_checked, shares.append).tolist() == whole.tolist()
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
