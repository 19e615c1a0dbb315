"""The texts of a source in batches, its bad records counted and told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dapt_contract.measure import Side
from dapt_contract.stages.prepare import TextSource
from dapt_trainer.data.analysis import BATCH_CHARACTERS, BATCH_DOCUMENTS
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.reading.documents import BadFileError, BadRecord, documents
from dapt_trainer.data.reading.languages import LanguageSample
from dapt_trainer.data.reading.sources import ResolvedSource

_SHOWN_BAD_RECORDS = 3


@dataclass
class Counts:
    """What became of a source's records."""

    records: int = 0
    empty: int = 0
    bad_records: int = 0
    duplicates: int = 0
    contaminated: int = 0
    tiny: int = 0
    contaminated_by: Counter[str] = field(default_factory=Counter)
    languages: LanguageSample = field(default_factory=LanguageSample)


def check_source(
    side: Side,
    index: int,
    config: TextSource,
    resolved: ResolvedSource,
    bad_records_max_fraction: float,
    problems: Problems,
    beat: Callable[[], None],
) -> None:
    """Read a source for its problems alone, when others have been found already: nothing is tokenized.

    `max_tokens` is counted at four characters a token.
    """
    counts = Counts()
    reader = TextBatches(f"spec.corpus.{side}[{index}]", config, resolved, bad_records_max_fraction, problems)
    characters = 0
    for batch in reader:
        beat()
        counts.records += batch.records
        counts.bad_records += batch.bad_records
        characters += sum(len(text) for text in batch.texts)
        if config.max_tokens is not None and characters >= 4 * config.max_tokens:
            break
    reader.judge_bad_records(counts)


@dataclass(frozen=True)
class TextBatch:
    """Texts, and how many records it took to get them."""

    texts: list[str]
    records: int
    bad_records: int


class TextBatches:
    """The texts of a source in batches; bad records are counted and told."""

    def __init__(
        self,
        field_name: str,
        config: TextSource,
        resolved: ResolvedSource,
        most_bad: float,
        problems: Problems,
    ) -> None:
        self._field = field_name
        self._config = config
        self._resolved = resolved
        self._most_bad = most_bad
        self._problems = problems
        self._shown: list[BadRecord] = []
        self._records = 0
        self._bad_records = 0

    def __iter__(self) -> Iterator[TextBatch]:
        """Until the end, or until the source cannot be used."""
        texts: list[str] = []
        size, records, bad_records = 0, self._records, self._bad_records
        try:
            for item in documents(self._resolved, self._config.text_field):
                self._records += 1
                if isinstance(item, BadRecord):
                    if self._ends_with(item):
                        break
                    continue
                texts.append(item.text)
                size += len(item.text)
                if size >= BATCH_CHARACTERS or len(texts) >= BATCH_DOCUMENTS:
                    yield TextBatch(texts, self._records - records, self._bad_records - bad_records)
                    texts, size, records, bad_records = [], 0, self._records, self._bad_records
        except BadFileError as error:
            self._problems.add(f"{self._field}: {error}")
        yield TextBatch(texts, self._records - records, self._bad_records - bad_records)

    def judge_bad_records(self, counts: Counts) -> None:
        """Note a problem when too many records were skipped, of those up to the source's `max_tokens`."""
        if counts.bad_records <= self._most_bad * counts.records:
            return
        for bad in self._shown[: counts.bad_records]:
            self._problems.add(
                f"{self._field}: {bad.place}: {bad.reason}; correct the line, or allow a share of bad records with "
                f"spec.corpus.badRecords.maxFraction (it is {self._most_bad:g}; {counts.bad_records} of "
                f"{counts.records} records read are bad)"
            )

    def _ends_with(self, bad: BadRecord) -> bool:
        """Count a bad record; true when reading on is of no use."""
        self._bad_records += 1
        if bad.fields and self._records == 1:  # not one bad line: the name of the field is wrong
            self._problems.add(
                f"{self._field}.textField: {bad.place} has no field {self._config.text_field!r}; its fields are "
                f"{', '.join(bad.fields)}: name the one that holds the text"
            )
            return True
        if len(self._shown) < _SHOWN_BAD_RECORDS:
            self._shown.append(bad)
        return self._most_bad == 0 and self._bad_records >= _SHOWN_BAD_RECORDS
