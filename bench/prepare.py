"""Tokenizing and packing against the bare batch encoder, on the same text and cores; and how full the rows are.

Text: the Python files of this installation, one document a file, under a byte-level BPE trained here. Ours is all that
prepare does with a source: reading JSON lines, normalizing, deduplicating, looking for evaluation items, shingles,
tokenizing, spooling, packing, writing shards. Bare is `Tokenizer.encode_batch_fast` of the `tokenizers` package over
texts in memory, on all cores. All are run in turns; the best of each counts. The speed with `deduplicate: near` is told
as a share of the speed without; its bar is a floor, not a promise.

Two figures come from processes of their own, each with one thread: the speed of two processes that read slices against
one, and the largest resident memory of any of them at 500 MB of text against 50 MB. The text is repeated for that, each
copy of a document under a line of its own, so that none is a duplicate.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT_CHARACTERS = 96_000_000
"""A throughput: starting the processes costs about a second and a half, a third of the time at 16 M characters."""
VOCABULARY = 16_384
SEQUENCE_LENGTH = 2048
TURNS = 3
SHARE_BAR = 0.9
TWO_PROCESSES_BAR = 1.8
MEMORY_BAR = 1.25
"""Most resident memory at `MANY_CHARACTERS` of text, in parts of the one at `FEW_CHARACTERS`."""
FEW_CHARACTERS, MANY_CHARACTERS = 50_000_000, 500_000_000
ALONE = """
import pathlib, resource, sys
from bench.prepare import our_seconds
tokenizer, source, folder = map(pathlib.Path, sys.argv[1:4])
seconds, tokens, _ = our_seconds(tokenizer.read_text(), source, folder, processes=int(sys.argv[4]))
whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
print(tokens / seconds, max(resource.getrusage(who).ru_maxrss for who in whose) / 1024)
"""


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


def alone(tokenizer: Path, source: Path, folder: Path, processes: int) -> tuple[float, float]:
    """Return (tokens a second, MiB of the largest process) of a run in a process of its own."""
    one_thread = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ALONE, str(tokenizer), str(source), str(folder), str(processes)]
    done = subprocess.run(
        command, env=os.environ | one_thread, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    speed, memory_mib = map(float, done.stdout.split())
    return speed, memory_mib


def write_copies(texts: list[str], path: Path, characters: int) -> None:
    """Write documents of this many characters, copies of the texts, of which no two are equal."""
    size = 0
    with path.open("w", encoding="utf-8") as file:
        for copy in range(characters):
            for text in texts:
                file.write(json.dumps({"text": f"copy {copy}\n{text}"}) + "\n")
                size += len(text)
                if size >= characters:
                    return


def of_processes(tokenizer: Path, texts: list[str], folder: Path) -> None:
    """Print what two processes gain, and how memory grows with the text."""
    few, many = folder / "few.jsonl", folder / "many.jsonl"
    write_copies(texts, few, FEW_CHARACTERS)
    write_copies(texts, many, MANY_CHARACTERS)
    speeds: dict[int, float] = {}
    for turn in range(TURNS):
        for processes in (1, 2):
            speed, _ = alone(tokenizer, few, folder / f"{processes}-{turn}", processes)
            speeds[processes] = max(speed, speeds.get(processes, 0.0))
    gain = speeds[2] / speeds[1]
    verdict = "ok" if gain >= TWO_PROCESSES_BAR else "short"
    print(f"prepare.two_processes_speed {gain:.3f} {TWO_PROCESSES_BAR:g} {verdict}", flush=True)
    memory = [alone(tokenizer, source, folder / source.stem, 2)[1] for source in (few, many)]
    print(f"largest process: {memory[0]:.0f} and {memory[1]:.0f} MiB", file=sys.stderr)
    growth = memory[1] / memory[0]
    print(f"prepare.memory_growth {growth:.3f} {MEMORY_BAR:g} {'ok' if growth <= MEMORY_BAR else 'short'}")


def main() -> None:
    """Print the figures."""
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
    print(
        f"prepare.tokenize_and_pack_share {ratio:.3f} {SHARE_BAR:g} {'ok' if ratio >= SHARE_BAR else 'short'}",
        flush=True,
    )
    slowed = max(near) / max(ours)
    print(f"prepare.near_duplicates_speed {slowed:.3f} 0.4 {'ok' if slowed >= 0.4 else 'short'}")
    print(f"prepare.fill_fraction {fill:.5f} 0.995 {'ok' if fill >= 0.995 else 'short'}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer_file = Path(temporary) / "tokenizer.json"
        tokenizer_file.write_text(tokenizer.to_str())
        of_processes(tokenizer_file, texts, Path(temporary))


if __name__ == "__main__":
    main()
