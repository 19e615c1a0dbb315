"""Finds and reads the inputs of prepare, the base model apart, and collects all their problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dapt_contract.layout import PROBES, TASKS
from dapt_contract.measure import Side
from dapt_contract.stages.prepare import PrepareConfig
from dapt_trainer.data.dedup.contamination import EvaluationItem
from dapt_trainer.data.harness.items import check_names, read_harness_tasks
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.items.checked_records import write_lines
from dapt_trainer.data.items.custom_items import CustomItem, Kind, evaluation_items, read_items
from dapt_trainer.data.items.item_limits import spread
from dapt_trainer.data.items.measured_items import write_measured_items
from dapt_trainer.data.plain_tokenizer import plain_tokenizer
from dapt_trainer.data.reading.sources import resolve
from dapt_trainer.data.reading.text_batches import RecordRules, check_source
from dapt_trainer.data.slices.cut import CorpusSource
from dapt_trainer.errors import InputError
from dapt_trainer.limited_time import try_texts

SIDES: tuple[Side, Side] = ("domain", "general")

Beat = Callable[[], None]


@dataclass
class EvaluationInputs:
    """Holds the data that models are measured with."""

    tasks: dict[str, tuple[CustomItem, ...]] = field(default_factory=dict)
    """Items of each custom task, by its name."""
    probes: dict[str, tuple[CustomItem, ...]] = field(default_factory=dict)
    items: list[EvaluationItem] = field(default_factory=list)
    """What decontamination looks for: the items that are measured."""
    item_counts: dict[str, int] = field(default_factory=dict)
    resolved: list[tuple[str, str]] = field(default_factory=list)
    """(URI as written, URI as resolved)."""


def find_sources(config: PrepareConfig, problems: Problems, beat: Beat) -> list[CorpusSource]:
    """Return the sources of training text whose files were found, domain first; report the others."""
    sources = []
    for side, side_sources in zip(SIDES, (config.domain, config.general), strict=True):
        for index, source in enumerate(side_sources):
            beat()
            try:
                files = resolve(source.source, f"spec.corpus.{side}[{index}].source")
            except InputError as error:
                problems.add_error(error)
            else:
                sources.append(CorpusSource(side, index, source, files))
    return sources


def check_sources(
    sources: Sequence[CorpusSource], config: PrepareConfig, problems: Problems, beat: Beat
) -> None:
    """Read all sources only to report their problems."""
    rules = RecordRules(config.bad_records_max_fraction, config.seed)
    for source in sources:
        check_source(source.side, source.index, source.config, source.files, rules, problems, beat)


def harness_has_all_tasks(config: PrepareConfig, scratch: Path, problems: Problems, beat: Beat) -> bool:
    """Return whether the harness has all tasks that are named without a source; report those that it has not."""
    fields = _fields_of_harness_tasks(config)
    return not fields or check_names(fields, scratch, problems, beat)


def read_evaluation(
    config: PrepareConfig,
    harness_folder: Path | None,
    scratch: Path,
    problems: Problems,
    beat: Beat,
    tokenizer_json: str | None = None,
) -> EvaluationInputs:
    """Read tasks and probes.

    Args:
        config: of the stage.
        harness_folder: gets the data of the tasks that the harness ships, one folder a task; None: they are not read.
        scratch: for the libraries' caches.
        problems: gets a sentence for each fault.
        beat: called now and then.
        tokenizer_json: of the base model; None: the items are not tokenized.

    Raises:
        InputError: the tokenizer fails at an item, or takes too long for it; nothing after it is read.
    """
    inputs = EvaluationInputs()
    tokenizer = plain_tokenizer(tokenizer_json) if tokenizer_json is not None else None

    def read(kind: Kind, name: str, uri: str, field: str) -> tuple[CustomItem, ...]:
        beat()
        data = read_items(kind, uri, f"{field}[{name}]", problems, beat)
        items = data.values
        if tokenizer is not None:
            # The stages that score the items would hang on one, and could name neither file nor line.
            located = ((f"{field}[{name}]: {record.location}", record.value.texts) for record in data.records)
            try_texts(located, tokenizer.encode_batch, beat)
        measured = [items[index] for index in spread(len(items), config.evaluation_limit)]
        inputs.items += evaluation_items(name, measured)
        inputs.item_counts[name] = len(measured)
        inputs.resolved.append((uri, data.resolved))
        return items

    # The order counts: a text that two tasks share is reported as contaminated by the first of them.
    for task in config.tasks:
        if task.source is not None:
            field_name = f"spec.evaluation.{task.side}.tasks"
            inputs.tasks[task.name] = read("task", task.name, task.source, field_name)
    fields = _fields_of_harness_tasks(config)
    if fields and harness_folder is not None:
        tasks = read_harness_tasks(
            fields, harness_folder, scratch, problems, beat, limit=config.evaluation_limit
        )
        if tokenizer is not None:
            try_texts(_located_items(fields, tasks.items), tokenizer.encode_batch, beat)
        inputs.items += tasks.items
        inputs.item_counts |= tasks.counts
        inputs.resolved += tasks.resolved
    for probe in config.probes:
        field_name = f"spec.evaluation.probes.{probe.side}"
        inputs.probes[probe.name] = read("probe", probe.name, probe.source, field_name)
    return inputs


def write_evaluation(folder: Path, inputs: EvaluationInputs) -> None:
    """Write custom tasks, probes, and the items that no training text may contain.

    Raises:
        OSError: the disk is full.
    """
    for name_of_folder, sets in ((TASKS, inputs.tasks), (PROBES, inputs.probes)):
        for name, items in sets.items():
            write_lines(folder / name_of_folder / f"{name}.jsonl", (item.as_line() for item in items))
    write_measured_items(folder, inputs.items)


def _located_items(
    fields: Mapping[str, str], items: Iterable[EvaluationItem]
) -> Iterator[tuple[str, list[str]]]:
    """Yield place and texts of the items of the harness' own tasks, which have no file but a number."""
    numbers: Counter[str] = Counter()
    for item in items:
        numbers[item.task] += 1
        yield f"{fields[item.task]}: item {numbers[item.task]}", [item.question, item.answer, *item.choices]


def _fields_of_harness_tasks(config: PrepareConfig) -> dict[str, str]:
    """Return the manifest's field of each task that the harness ships, by the task's name."""
    return {
        task.name: f"spec.evaluation.{task.side}.tasks[{task.name}]"
        for task in config.tasks
        if task.source is None
    }
