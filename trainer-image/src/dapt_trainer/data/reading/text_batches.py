"""Reads the texts of a source in batches, and counts and reports its bad records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from dapt_contract.measure import Side
from dapt_contract.stages.prepare import TextSource
from dapt_trainer.data.analysis import BATCH_CHARACTERS, BATCH_DOCUMENTS
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.reading.documents import (
    TOO_LONG,
    BadFileError,
    BadRecord,
    Document,
    read_documents,
    read_file,
    read_parts,
)
from dapt_trainer.data.reading.file_parts import FilePart
from dapt_trainer.data.reading.languages import LanguageSample
from dapt_trainer.data.reading.sampling import Sample, sampled_documents, with_line
from dapt_trainer.data.reading.sources import ResolvedSource
from dapt_trainer.errors import InputError
from dapt_trainer.limited_time import slow_text

MAX_SHOWN_BAD_RECORDS = 3
_MAX_SHOWN_BAD_FILES = 5
_MAX_OPENED_FILES = 200
"""Files that are opened to look for more bad ones: the run ends anyway."""
_CHARACTERS_PER_TOKEN = 4
"""Rough length of a token, for `max_tokens` where nothing is tokenized."""


@dataclass
class Counts:
    """Counts what became of a source's records."""

    records: int = 0
    empty: int = 0
    bad_records: int = 0
    duplicates: int = 0
    contaminated: int = 0
    tiny: int = 0
    contaminated_by: Counter[str] = field(default_factory=Counter)
    languages: LanguageSample = field(default_factory=LanguageSample)


@dataclass(frozen=True)
class RecordRules:
    """Holds what the reading of all sources shares."""

    bad_records_max_fraction: float
    """Share of a source's records that may be bad: they are skipped."""
    seed: int
    """Decides which sample of a source with `max_tokens` is read."""


def check_source(
    side: Side,
    index: int,
    config: TextSource,
    resolved: ResolvedSource,
    rules: RecordRules,
    problems: Problems,
    beat: Callable[[], None],
) -> None:
    """Read a source only to report its problems, without tokenizing it.

    Used when another input has problems already, so that the user sees all of them after one run. `max_tokens` is
    counted at four characters a token.
    """
    counts = Counts()
    reader = TextBatches(f"spec.corpus.{side}[{index}]", config, resolved, rules, problems)
    characters = 0
    for batch in reader:
        beat()
        counts.records += batch.records
        counts.bad_records += batch.bad_records
        characters += sum(len(text) for text in batch.texts)
        if config.max_tokens is not None and characters >= _CHARACTERS_PER_TOKEN * config.max_tokens:
            break
    reader.report_bad_records(counts)


@dataclass(frozen=True)
class TextBatch:
    """Holds some texts, and how many records were read to get them."""

    texts: list[str]
    locations: list[str]
    """Of each text, as of a document."""
    records: int
    bad_records: int


@dataclass(frozen=True)
class ShownRecord:
    """Holds a bad record that may be shown."""

    record: BadRecord
    records: int
    """Records that had been read when it was found, itself included."""


@dataclass(frozen=True)
class Findings:
    """Holds what the reading of a source, or of a slice of it, found wrong."""

    records: int = 0
    bad_records: int = 0
    shown: tuple[ShownRecord, ...] = ()
    """The first bad records."""
    failures: tuple[str, ...] = ()
    """Sentences, without the field of the manifest, that say why it cannot be used at all."""


class TextBatches:
    """Iterates over the texts of a source in batches; counts and reports bad records.

    Args:
        field: the manifest's field, for messages.
        config: as the user wrote it.
        resolved: its files.
        rules: for all sources.
        problems: gets one sentence for each of the first bad records where there are too many.
        parts: that are read; None: the source as its configuration says, which is all of it or a sample.
        is_beginning: whether the first record is the first of the source.
    """

    def __init__(
        self,
        field: str,
        config: TextSource,
        resolved: ResolvedSource,
        rules: RecordRules,
        problems: Problems,
        *,
        parts: Sequence[FilePart] | None = None,
        is_beginning: bool = True,
    ) -> None:
        self._field = field
        self._config = config
        self._resolved = resolved
        self._bad_records_max_fraction = rules.bad_records_max_fraction
        self._seed = rules.seed
        self._problems = problems
        self._parts = parts
        self._is_beginning = is_beginning
        self._shown: list[ShownRecord] = []
        self._records = 0
        self._bad_records = 0
        self._failures: list[str] = []

    def __iter__(self) -> Iterator[TextBatch]:
        """Yield batches until the end of the source, or until the source cannot be used."""
        texts: list[str] = []
        locations: list[str] = []
        size, records, bad_records = 0, self._records, self._bad_records
        try:
            for record in self._read():
                self._records += 1
                if isinstance(record, BadRecord):
                    if self._must_stop_after(record):
                        break
                    continue
                texts.append(record.text)
                locations.append(record.location)
                size += len(record.text)
                if size >= BATCH_CHARACTERS or len(texts) >= BATCH_DOCUMENTS:
                    yield TextBatch(
                        texts, locations, self._records - records, self._bad_records - bad_records
                    )
                    texts, locations, size = [], [], 0
                    records, bad_records = self._records, self._bad_records
        except BadFileError as error:
            self._note_bad_files(error)
        yield TextBatch(texts, locations, self._records - records, self._bad_records - bad_records)

    def _read(self) -> Iterator[Document | BadRecord]:
        if self._parts is not None:
            return read_parts(self._resolved, self._parts, self._config.text_field)
        if self._config.max_tokens is None:
            return read_documents(self._resolved, self._config.text_field)
        sample = Sample(self._config.max_tokens, self._seed)
        return sampled_documents(self._resolved, self._config.text_field, sample)

    def _note_bad_files(self, first: BadFileError) -> None:
        """Note a bad file, and others whose beginning shows that they are bad too: one run names them all."""
        reported = [str(first)]
        for file in self._resolved.files[:_MAX_OPENED_FILES]:
            if len(reported) == _MAX_SHOWN_BAD_FILES:
                break
            try:
                next(read_file(self._resolved.filesystem, file, self._config.text_field), None)
            except BadFileError as error:
                if str(error) not in reported:
                    reported.append(str(error))
        self._failures += (f": {sentence}" for sentence in reported)

    def slow_text(self, location: str, seconds: int) -> InputError:
        """Return the error about a text whose analysis exceeds its limit of processor time."""
        place = with_line(BadRecord(location, ""), self._resolved).location
        return slow_text(f"{self._field}: {place}", seconds)

    def findings(self, counts: Counts) -> Findings:
        """Return what was found wrong.

        Args:
            counts: of the batches that were used: what was read past the source's `max_tokens` does not count.
        """
        shown = tuple(self._shown[: counts.bad_records])
        return Findings(counts.records, counts.bad_records, shown, tuple(self._failures))

    def report_bad_records(self, counts: Counts) -> None:
        """Report the first bad records when too many were skipped, and a source without any good one."""
        fraction = self._bad_records_max_fraction
        report_findings(
            self._field, self._config, self._resolved, [self.findings(counts)], fraction, self._problems
        )

    def _must_stop_after(self, bad: BadRecord) -> bool:
        """Count a bad record and return whether reading further is useless."""
        self._bad_records += 1
        # When the very first record lacks the field, its name is wrong in the manifest and every record lacks it.
        if bad.fields and self._records == 1 and self._is_beginning:
            place = with_line(bad, self._resolved).location
            self._failures.append(
                f".textField: {place} has no field {self._config.text_field!r}; its fields are "
                f"{', '.join(bad.fields)}: name the one that holds the text"
            )
            return True
        if len(self._shown) < MAX_SHOWN_BAD_RECORDS:
            self._shown.append(ShownRecord(bad, self._records))
        # With no bad record allowed the run ends anyway: a few are enough to show.
        return self._bad_records_max_fraction == 0 and self._bad_records >= MAX_SHOWN_BAD_RECORDS


def report_findings(
    field: str,
    config: TextSource,
    resolved: ResolvedSource,
    slices: Sequence[Findings],
    max_fraction: float,
    problems: Problems,
) -> None:
    """Report what is wrong with a source: what makes it useless, too many bad records, or no good one.

    Args:
        field: the manifest's field, for messages.
        config: as the user wrote it.
        resolved: its files.
        slices: what the reading of each slice of the source found, in reading order.
        max_fraction: share of its records that may be bad.
        problems: gets the sentences.
    """
    # 1. What a reader of the whole source would have come upon: it stops at what makes the source useless.
    shown: list[BadRecord] = []
    failures: tuple[str, ...] = ()
    records = bad_records = 0
    for findings in slices:
        wanted = MAX_SHOWN_BAD_RECORDS - len(shown)
        shown += [entry.record for entry in findings.shown[:wanted]]
        if max_fraction == 0 and wanted and len(shown) == MAX_SHOWN_BAD_RECORDS:
            records += findings.shown[wanted - 1].records
            bad_records += wanted
            break
        records += findings.records
        bad_records += findings.bad_records
        if findings.failures:
            failures = findings.failures
            break
    for sentence in failures:
        problems.add(f"{field}{sentence}")
    # 2. Its bad records.
    if bad_records <= max_fraction * records:
        if bad_records == records and not failures:
            cause = f": each of its {records:,} records is bad" if records else ""
            problems.add(
                f"{field}.source: {config.source} has no document{cause}; fill it, or remove the source"
            )
        return
    for bad in shown[:bad_records]:
        # A sample is read to save the reading of all of it.
        location = with_line(bad, resolved, reads_all=config.max_tokens is None).location
        remedy = "split the document" if bad.reason == TOO_LONG else "correct the line"
        problems.add(
            f"{field}: {location}: {bad.reason}; {remedy}, or allow a share of bad records with "
            f"spec.corpus.badRecords.maxFraction (it is {max_fraction:g}; {bad_records} "
            f"of {records} records read are bad)"
        )
