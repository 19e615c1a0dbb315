"""Prepares what fine-tuning and preference tuning learn from: reads, cleans, renders, counts and writes it.

    FOLDER/train.jsonl    an example a line: {"texts": [TEXT, ...]}, or a pair: {"chosen": TEXT, "rejected": TEXT}
    TEXT                  {"text": str, "responses": [[start, end], ...]}, in characters; with "plain": true where it
                          was made without a chat template

The text is rendered here, once: the stages that learn from it only tokenize it, so a template can neither fail there
nor write another text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dapt_contract.layout import TUNING_RECORDS
from dapt_contract.stages.tuning_data import TuningDataConfig, TuningDataFacts, TuningDataReport, TuningKind
from dapt_trainer.data.chat.render_pool import LimitExceededError, RenderPool
from dapt_trainer.data.chat.rendering import LabelledText, TemplateError, TemplateSet
from dapt_trainer.data.chat.template_files import read_encoder, read_templates
from dapt_trainer.data.chat.tokens import Lengths, TextEncoder, count_example, count_pair
from dapt_trainer.data.dedup.contamination import ContaminationIndex
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.items.checked_records import BadPlace, CheckedSource, LocatedRecord, write_lines
from dapt_trainer.data.items.tuning_records import (
    TuningRecord,
    read_instructions,
    read_preferences,
    without_items,
    without_repeats,
)
from dapt_trainer.digests import sha256_of_file
from dapt_trainer.limited_time import (
    Limit,
    OutOfTimeError,
    TokenizerError,
    failing_text,
    limit_seconds,
    slow_text,
    within_limit,
)

_MAX_SHOWN_FIELDS = 12
_RECORDS_PER_BEAT = 256
_MAX_LIMITS_EXCEEDED = 3
"""Conversations of a source that may exceed the limits of time and memory: the next may take as long."""

Beat = Callable[[], None]


@dataclass(frozen=True)
class TuningModel:
    """Holds what tuning data needs of the base model."""

    templates: TemplateSet
    encoder: TextEncoder
    packed_tokens: int
    """Length of the packed sequences of the corpus."""
    max_positions: int
    limit: Limit = limit_seconds
    """Of the processor time that a record may take."""

    @classmethod
    def of_folder(
        cls, folder: Path, end_of_text: str, *, packed_tokens: int, max_positions: int
    ) -> TuningModel:
        """Read the chat templates and the tokenizer of a model folder.

        Raises:
            InputError: they are damaged.
        """
        return cls(read_templates(folder), read_encoder(folder, end_of_text), packed_tokens, max_positions)

    def length_tokens(self, config: TuningDataConfig) -> int:
        """Return the length that the stage cuts at: as configured, else what prepare packs, at most the model's."""
        return min(config.sequence_length_tokens or self.packed_tokens, self.max_positions)


@dataclass(frozen=True)
class _Block:
    """Names a kind of tuning data in messages."""

    field: str
    noun: str
    length_field: str


_BLOCKS = {
    "instructions": _Block("spec.finetuning", "examples", "spec.finetuning.sequenceLength"),
    "preferences": _Block(
        "spec.preference", "pairs", "spec.finetuning.sequenceLength or spec.corpus.sequenceLength"
    ),
}


@dataclass
class ReadTuningData:
    """Holds one kind of tuning data between its reading and its rendering."""

    config: TuningDataConfig
    sources: list[CheckedSource[TuningRecord]]
    contaminated: int = 0
    repeats: int = 0

    @property
    def num_read(self) -> int:
        """Return the number of records that can be read."""
        return sum(len(source.records) for source in self.sources)


def read_tuning_data(config: TuningDataConfig, problems: Problems, beat: Beat) -> ReadTuningData:
    """Read all sources of one kind of tuning data; report those that cannot be read to their end."""
    field_name = f"{_BLOCKS[config.kind].field}.data"
    sources = []
    if config.kind == "instructions":
        for index, source in enumerate(config.instructions):
            sources.append(read_instructions(source, f"{field_name}[{index}]", problems, beat))
    else:
        for index, pairs in enumerate(config.preferences):
            sources.append(read_preferences(pairs, f"{field_name}[{index}]", problems, beat))
    return ReadTuningData(config, sources)


def report_bad_records(data: ReadTuningData, problems: Problems) -> None:
    """Report the bad records where they are more than the allowed share."""
    block = _BLOCKS[data.config.kind]
    for source in data.sources:
        source.report(
            problems,
            max_bad_fraction=data.config.bad_records_max_fraction,
            bad_records_field=f"{block.field}.badRecords.maxFraction",
        )


def prepare_or_check(
    config: TuningDataConfig,
    model: TuningModel | None,
    index: ContaminationIndex,
    root: Path,
    problems: Problems,
    beat: Beat,
) -> TuningDataReport | None:
    """Read one kind of tuning data and write it below a folder; without a model only report its problems.

    Args:
        config: of the data.
        model: the base model's chat templates and tokenizer; None where they cannot be read.
        index: of the evaluation items.
        root: folder that becomes the work volume.
        problems: gets a sentence for each cause.
        beat: called now and then.
    """
    data = read_tuning_data(config, problems, beat)
    if model is None:
        report_bad_records(data, problems)
        return None
    return prepare_tuning_data(data, model, index, root / config.folder, problems, beat)


def prepare_tuning_data(
    data: ReadTuningData,
    model: TuningModel,
    index: ContaminationIndex,
    folder: Path,
    problems: Problems,
    beat: Beat,
) -> TuningDataReport:
    """Clean, render and write one kind of tuning data; report its problems.

    Args:
        data: as it was read.
        model: the base model's chat templates and tokenizer.
        index: of the evaluation items, which nothing may contain.
        folder: gets the file of records.
        problems: gets a sentence for each cause; with any of them the file is of no use.
        beat: called now and then.

    Raises:
        InputError: the tokenizer fails at a record, or takes too long for it; nothing after it is read.
    """
    config, block = data.config, _BLOCKS[data.config.kind]
    length_tokens = model.length_tokens(config)
    warnings = _layout_warnings(data.sources)
    # 1. Leave out repeated pairs, and what contains an evaluation item.
    num_read = data.num_read
    _clean(data, index)
    if num_read and not data.num_read:
        problems.add(
            f"{block.field}.data: each of the {num_read:,} {block.noun} contains an evaluation item; give others, or "
            "evaluate on other items"
        )
    # 2. Render what is left; what the template rejects is a bad record like any other.
    lengths = Lengths()
    lines: list[dict[str, object]] = []
    with RenderPool(model.templates, beat=beat) as pool:
        for source in data.sources:
            max_exceeded = _MAX_LIMITS_EXCEEDED if config.bad_records_max_fraction else 1
            for location, texts in _rendered(source, pool, config.kind, max_exceeded, problems):
                if len(lines) % _RECORDS_PER_BEAT == 0:
                    beat()
                lines.append(_line_of(texts, config.kind))
                # 3. Count what the sequence length cuts; the stage that learns leaves out the same records.
                count = count_example if config.kind == "instructions" else count_pair
                counting = partial(count, texts, model.encoder, length_tokens, lengths)
                seconds = model.limit(sum(len(text.text) for text in texts))
                try:
                    within_limit(counting, seconds, beat)
                except OutOfTimeError:
                    raise slow_text(f"{source.manifest_field}: {location}", seconds) from None
                except TokenizerError as error:
                    raise failing_text(f"{source.manifest_field}: {location}", error) from None
    report_bad_records(data, problems)
    if lines and not lengths.kept:
        what = "two different answers" if lengths.equal else "a response"
        problems.add(
            f"{block.field}.data: none of {len(lines):,} {block.noun} has {what} within "
            f"{length_tokens:,} tokens; raise {block.length_field}, or shorten the prompts"
        )
    # 4. Write the file and say what became of the records.
    path = folder / TUNING_RECORDS
    write_lines(path, lines)
    warnings += _count_warnings(data, num_read, lengths, length_tokens)
    facts = TuningDataFacts(
        kind=config.kind,
        config_digest=config.digest,
        records=lengths.kept,
        data_digest=sha256_of_file(path),
        bad_records=sum(len(source.bad) for source in data.sources),
        contaminated=data.contaminated,
        repeats=data.repeats,
        without_response=lengths.without_response,
        equal_pairs=lengths.equal,
        tokens=lengths.tokens,
    )
    return TuningDataReport(
        facts=facts,
        resolved_sources=tuple((source.uri, source.resolved) for source in data.sources),
        warnings=tuple(warnings),
    )


def _clean(data: ReadTuningData, index: ContaminationIndex) -> None:
    """Leave out repeated pairs, and records with an evaluation item."""
    seen: set[str] = set()
    for source in data.sources:
        if data.config.kind == "preferences":
            source.records, repeats = without_repeats(source.records, seen)
            data.repeats += repeats
        if data.config.decontaminate:
            source.records, contaminated = without_items(source.records, index)
            data.contaminated += contaminated


def _rendered(
    source: CheckedSource[TuningRecord],
    pool: RenderPool,
    kind: TuningKind,
    max_exceeded: int,
    problems: Problems,
) -> Iterator[tuple[str, tuple[LabelledText, ...]]]:
    """Yield place and texts of each record of a source; move those that the template rejects to its bad records.

    An example has one text or more; a pair has two: with the chosen and with the rejected answer. Once `max_exceeded`
    records have exceeded the limits, the source has failed, which is reported.
    """
    num_exceeded = 0
    answers = pool.rendered(
        conversation for record in source.records for conversation in record.value.conversations
    )
    good: list[LocatedRecord[TuningRecord]] = []
    for record in source.records:
        if record.value.plain is not None:
            good.append(record)
            yield record.location, (record.value.plain,)
            continue
        # All answers of the record are taken before one is judged: the next record begins behind them.
        record_answers = [next(answers) for _ in record.value.conversations]
        try:
            texts = [_texts(answer, kind) for answer in record_answers]
        except LimitExceededError as error:
            source.bad.append(BadPlace(record.location, str(error)))
            num_exceeded += 1
            if num_exceeded < max_exceeded:
                continue
            # The rest stays unread, so no allowed share of bad records can excuse it.
            problems.add_at(source.manifest_field, record.location, str(error))
            source.has_failed = True
            break
        except TemplateError as error:
            source.bad.append(BadPlace(record.location, str(error)))
            continue
        good.append(record)
        yield record.location, tuple(text for parts in texts for text in parts)
    source.records = good


def _texts(answer: tuple[LabelledText, ...] | TemplateError, kind: TuningKind) -> tuple[LabelledText, ...]:
    """Return the texts of a conversation.

    Raises:
        TemplateError: the template rejected it, or an answer of a pair has no single text.
    """
    if isinstance(answer, TemplateError):
        raise answer
    if kind == "preferences" and len(answer) > 1:
        raise TemplateError(
            "the chat template renders earlier turns differently once later ones follow, so an answer of several "
            "turns has no single text; use answers of one turn"
        )
    return answer


def _line_of(texts: Sequence[LabelledText], kind: TuningKind) -> dict[str, object]:
    if kind == "instructions":
        return {"texts": [text.as_line() for text in texts]}
    chosen, rejected = texts
    return {"chosen": chosen.as_line(), "rejected": rejected.as_line()}


def _layout_warnings(sources: Iterable[CheckedSource[TuningRecord]]) -> list[str]:
    """Say what records were recognized as, and which of their fields are not used."""
    warnings = []
    for source in sources:
        layouts = Counter(record.value.layout for record in source.records if record.value.layout)
        warnings += [
            f"{source.manifest_field}: {count:,} records are read as {layout}."
            for layout, count in layouts.items()
        ]
        unused = sorted({name for record in source.records for name in record.value.unused_fields})
        if unused:
            shown = ", ".join(unused[:_MAX_SHOWN_FIELDS])
            more = f" and {len(unused) - _MAX_SHOWN_FIELDS} more" if len(unused) > _MAX_SHOWN_FIELDS else ""
            warnings.append(f"{source.manifest_field}: nothing is learned from the fields {shown}{more}.")
    return warnings


def _count_warnings(data: ReadTuningData, num_read: int, lengths: Lengths, length_tokens: int) -> list[str]:
    """Say how many records are left out, and why."""
    block = _BLOCKS[data.config.kind]
    field_name, noun = f"{block.field}.data", block.noun
    num_bad = sum(len(source.bad) for source in data.sources)
    counts = [
        (num_bad, "bad records are skipped."),
        (data.repeats, f"of {num_read:,} {noun} repeat an earlier one and are learned from once."),
        (data.contaminated, f"of {num_read:,} {noun} contain an evaluation item and are left out."),
        (
            lengths.without_response,
            f"{noun} have no response within {length_tokens:,} tokens and are left out; raise {block.length_field}.",
        ),
        (lengths.equal, f"{noun} have equal answers within {length_tokens:,} tokens and are left out."),
        (lengths.cut, f"{noun} are cut at {length_tokens:,} tokens."),
    ]
    return [f"{field_name}: {count:,} {rest}" for count, rest in counts if count]
