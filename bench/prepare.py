"""Tokenizing and packing against the bare batch encoder, on the same text and cores; and how full the rows are.

Text: the Python files of this installation, one document a file, under a byte-level BPE trained here. Ours is all that
prepare does with a source: reading JSON lines, normalizing, deduplicating, looking for evaluation items, shingles,
tokenizing, spooling, packing, writing shards. Bare is `Tokenizer.encode_batch_fast` of the `tokenizers` package over
texts in memory, on all cores. All are run in turns; the best of each counts. The speed with `deduplicate: near` is told
as a share of the speed without; its bar is a floor, not a promise.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

TEXT_CHARACTERS = 96_000_000
"""A throughput: starting the processes costs about a second and a half, a third of the time at 16 M characters."""
VOCABULARY = 16_384
SEQUENCE_LENGTH = 2048
TURNS = 3


def python_files() -> list[str]:
    """Texts of about `TEXT_CHARACTERS` in all, from the standard library and the installed packages."""
    texts: list[str] = []
    size = 0
    for root in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")):
        for path in sorted(Path(root).rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="replace")
            if 200 < len(text) < 400_000:
                texts.append(text)
                size += len(text)
            if size >= TEXT_CHARACTERS:
                return texts
    return texts


def bare_seconds(tokenizer_json: str, texts: list[str]) -> tuple[float, int]:
    """(seconds, tokens) of the batch encoder alone."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    started = time.perf_counter()
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    seconds = time.perf_counter() - started
    return seconds, sum(len(item) for item in encoded)


def our_seconds(
    tokenizer_json: str, source: Path, folder: Path, *, near: bool = False, processes: int | None = None
) -> tuple[float, int, float]:
    """(seconds, tokens, fill) from the file to the shard; with `deduplicate: near` when asked for."""
    import numpy as np

    from dapt_contract.stages.prepare import TextSource
    from dapt_trainer.data.analysis import AnalysisPool, AnalysisSettings
    from dapt_trainer.data.dedup.contamination import EvaluationItem, contamination_index
    from dapt_trainer.data.dedup.held_out_neighbours import HeldOutShingles
    from dapt_trainer.data.input_problems import Problems
    from dapt_trainer.data.pack_source import PackingRules, pack_source
    from dapt_trainer.data.plain_tokenizer import plain_tokenizer
    from dapt_trainer.data.reading.sources import resolve
    from dapt_trainer.data.slices.board import SliceBoard
    from dapt_trainer.data.slices.cut import CorpusSource, slices_of
    from dapt_trainer.data.slices.held_out_checks import HeldOutChecks, HeldOutText
    from dapt_trainer.data.slices.merge import MergedSide
    from dapt_trainer.data.slices.read_slice import ReadingRules
    from dapt_trainer.data.slices.shared_reading import ReadingProgress, SharedReading, read_slices
    from dapt_trainer.data.slices.spooled_source import mark_repeats

    question = "Which of the following words is not found in any of the files that are read here"
    index = contamination_index(
        [EvaluationItem("task", f"{question} {n}?", f"word {n}") for n in range(1000)]
    )
    rules = ReadingRules(17, True, 0.005, 0.0, "uint16", 1, index.tasks, keeps_signatures=near)
    config = TextSource(source=f"file://{source}")
    started = time.perf_counter()
    problems = Problems()
    settings = AnalysisSettings(tokenizer_json, None, 0, index, computes_signatures=near)
    corpus_source = CorpusSource("domain", 0, config, resolve(config.source, "source"))
    slices, board = slices_of(corpus_source), SliceBoard(folder / "corpus")
    shared = SharedReading.of(board, rules, settings, "uid", "")
    progress = ReadingProgress(corpus_source.size_bytes, lambda *_: None)
    with AnalysisPool(settings, processes=processes) as pool:
        read_slices(shared, slices, progress, pool, lambda: None, processes=processes)
    side = MergedSide("domain", rules)
    spooled = side.add(corpus_source, slices, [board.spool(entry) for entry in slices], problems)
    problems.raise_if_any()
    if near:
        (spooled,) = mark_repeats([spooled], folder / "bands", lambda: None)
    held_out = sorted(side.candidates, key=lambda candidate: candidate.key)[:4]
    packing = PackingRules(
        held_out_keys=np.array(sorted(candidate.key for candidate in held_out), dtype=np.uint64),
        sequence_length_tokens=SEQUENCE_LENGTH,
        token_type="uint16",
        end_of_text_id=0,
    )
    texts = [side.candidate_text(candidate) for candidate in held_out]
    checks = HeldOutChecks(
        HeldOutText(HeldOutShingles(texts), plain_tokenizer(tokenizer_json).decode), processes=processes
    )
    packed = pack_source(
        spooled,
        folder / "shard",
        packing,
        checks,
        held_out=[candidate.document for candidate in held_out],
        progress=lambda _: None,
    )
    seconds = time.perf_counter() - started
    shard = packed.manifest
    return seconds, int(spooled.token_counts.sum()), shard.filled_positions / shard.positions


def main() -> None:
    """Print the two figures."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    texts = list(dict.fromkeys(python_files()))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts[::8], trainer)
    bare, ours, near, fill = [], [], [], 1.0
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "texts.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        for turn in range(TURNS):
            seconds, tokens = bare_seconds(tokenizer.to_str(), texts)
            bare.append(tokens / seconds)
            seconds, tokens, fill = our_seconds(tokenizer.to_str(), source, Path(temporary) / str(turn))
            ours.append(tokens / seconds)
            folder = Path(temporary) / f"near-{turn}"
            seconds, tokens, _ = our_seconds(tokenizer.to_str(), source, folder, near=True)
            near.append(tokens / seconds)
            print(
                f"turn {turn}: bare {bare[-1]:,.0f} tokens/s, prepare {ours[-1]:,.0f}, near {near[-1]:,.0f}",
                file=sys.stderr,
            )
    ratio = max(ours) / max(bare)
    print(f"prepare.tokenize_and_pack_share {ratio:.3f} 0.8 {'ok' if ratio >= 0.8 else 'short'}")
    slowed = max(near) / max(ours)
    print(f"prepare.near_duplicates_speed {slowed:.3f} 0.4 {'ok' if slowed >= 0.4 else 'short'}")
    print(f"prepare.fill_fraction {fill:.5f} 0.995 {'ok' if fill >= 0.995 else 'short'}")


if __name__ == "__main__":
    main()
