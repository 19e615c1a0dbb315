"""All inputs besides the base model: sources found, evaluation and SFT data read; problems are noted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dapt_contract.measure import Side
from dapt_contract.stages.prepare import PrepareConfig, TextSource
from dapt_trainer.data.dedup.contamination import ContaminationIndex, EvaluationItem
from dapt_trainer.data.harness.items import check_names, read_harness_tasks
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.items.custom_items import Kind, evaluation_items, read_items
from dapt_trainer.data.items.item_limits import spread
from dapt_trainer.data.items.json_lines import DataSet
from dapt_trainer.data.items.tuning_data import (
    read_instructions,
    read_preferences,
    without_items,
    without_repeats,
)
from dapt_trainer.data.reading.sources import ResolvedSource, resolve
from dapt_trainer.data.reading.text_batches import check_source
from dapt_trainer.errors import InputError

SIDES: tuple[Side, Side] = ("domain", "general")

Beat = Callable[[], None]


@dataclass(frozen=True)
class ListedSource:
    """One source of text with its place in the manifest."""

    side: Side
    index: int
    config: TextSource
    files: ResolvedSource


@dataclass
class EvaluationInputs:
    """What is measured with, and what SFT and preference tuning learn from."""

    tasks: dict[str, DataSet] = field(default_factory=dict)
    probes: dict[str, DataSet] = field(default_factory=dict)
    instructions: list[dict[str, Any]] = field(default_factory=list)
    preferences: list[dict[str, Any]] = field(default_factory=list)
    items: list[EvaluationItem] = field(default_factory=list)
    """What decontamination looks for."""
    item_counts: dict[str, int] = field(default_factory=dict)
    resolved: list[tuple[str, str]] = field(default_factory=list)
    """URI as written, and as resolved."""


def find_sources(config: PrepareConfig, problems: Problems, beat: Beat) -> list[ListedSource]:
    """The sources that can be read, domain first."""
    found = []
    for side, listed in zip(SIDES, (config.domain, config.general), strict=True):
        for index, source in enumerate(listed):
            beat()
            try:
                files = resolve(source.source, f"spec.corpus.{side}[{index}].source")
            except InputError as error:
                problems.add_error(error)
            else:
                found.append(ListedSource(side, index, source, files))
    return found


def check_sources(
    sources: Sequence[ListedSource], bad_records_max_fraction: float, problems: Problems, beat: Beat
) -> None:
    """Read all sources for their problems alone."""
    for source in sources:
        check_source(
            source.side, source.index, source.config, source.files, bad_records_max_fraction, problems, beat
        )


def know_all_tasks(config: PrepareConfig, scratch: Path, problems: Problems, beat: Beat) -> bool:
    """Whether the harness has all tasks that are named without a source; those that it has not are noted."""
    shipped = _shipped(config)
    return not shipped or check_names(shipped, scratch, problems, beat)


def read_evaluation(
    config: PrepareConfig,
    folder: Path,
    scratch: Path,
    problems: Problems,
    beat: Beat,
    *,
    harness: bool = True,
) -> EvaluationInputs:
    """Tasks, probes, SFT and preference data.

    Args:
        config: of the stage.
        folder: gets the data of the harness' own tasks, one folder a task.
        scratch: for the libraries' caches.
        problems: gets a sentence for each fault.
        beat: called now and then.
        harness: whether the harness' own tasks are read.
    """
    found = EvaluationInputs()

    def note(into: dict[str, DataSet], kind: Kind, name: str, uri: str, where: str) -> None:
        beat()
        data = read_items(kind, uri, f"{where}[{name}]", problems)
        into[name] = data
        chosen = [data.lines[place] for place in spread(len(data.lines), config.evaluation_limit)]
        found.items += evaluation_items(name, kind, chosen)
        found.item_counts[name] = len(chosen)
        found.resolved.append((uri, data.resolved))

    for task in config.tasks:
        if task.source is not None:
            note(found.tasks, "task", task.name, task.source, f"spec.evaluation.{task.side}.tasks")
    shipped = _shipped(config)
    if shipped and harness:
        tasks = read_harness_tasks(shipped, folder, scratch, problems, beat, limit=config.evaluation_limit)
        found.items += tasks.items
        found.item_counts |= tasks.counts
        found.resolved += tasks.resolved
    for probe in config.probes:
        note(found.probes, "probe", probe.name, probe.source, f"spec.evaluation.probes.{probe.side}")
    for index, source in enumerate(config.instructions):
        beat()
        data = read_instructions(source.source, source.format, f"spec.finetuning.data[{index}]", problems)
        found.instructions += data.lines
        found.resolved.append((source.source, data.resolved))
    for index, pairs in enumerate(config.preferences):
        beat()
        data = read_preferences(pairs.source, f"spec.preference.data[{index}]", problems)
        found.preferences += data.lines
        found.resolved.append((pairs.source, data.resolved))
    return found


def _shipped(config: PrepareConfig) -> dict[str, str]:
    """Fields of the manifest by the name of each task of the harness' own."""
    return {
        task.name: f"spec.evaluation.{task.side}.tasks[{task.name}]"
        for task in config.tasks
        if task.source is None
    }


def clean_tuning_data(found: EvaluationInputs, index: ContaminationIndex, problems: Problems) -> list[str]:
    """Drop examples and pairs that contain an evaluation item, and pairs that came before; a sentence for each drop."""
    asked, pairs = len(found.instructions), len(found.preferences)
    found.preferences, repeats = without_repeats(found.preferences)
    found.instructions, bad_examples = without_items(found.instructions, index)
    found.preferences, bad_pairs = without_items(found.preferences, index)
    warnings = []
    for block, noun, read, bad, left in (
        ("finetuning", "examples", asked, bad_examples, len(found.instructions)),
        ("preference", "pairs", pairs, bad_pairs, len(found.preferences)),
    ):
        if read and not left:
            problems.add(
                f"spec.{block}.data: each of the {read:,} {noun} contains an evaluation item; give others, or "
                "evaluate on other items"
            )
        if bad:
            warnings.append(
                f"spec.{block}.data: {bad:,} of {read:,} {noun} contain an evaluation item and are left out."
            )
    if repeats:
        warnings.append(
            f"spec.preference.data: {repeats:,} of {pairs:,} pairs came before and are learned from once."
        )
    return warnings
