"""Estimates how many records local tuning data has: the mean record at the beginning of a file stands for all."""

from __future__ import annotations

from dapt_contract.inputs.source_files import LocalFile, file_format
from dapt_operator.cli.inputs.file_beginnings import array_items, beginning, is_array
from dapt_operator.cli.inputs.source_sizes import BYTES_PER_TOKEN, local_files, source_size
from dapt_operator.plan.sizing.tuning_estimate import TuningSize

ASSUMED_RECORD_BYTES = 1000
"""Of the text of a record in a file whose beginning does not show one: Parquet, zst, a longer record."""


def tuning_size(addresses: tuple[str, ...], *, sequences_per_record: int = 1) -> TuningSize:
    """Return records and tokens of all sources; unknown as soon as one is not on this machine.

    sequences_per_record: texts of a record; the two answers of a pair share its prompt, which is then read twice.
    """
    if not addresses:
        return TuningSize()
    records, tokens = 0, 0
    for address in addresses:
        size = source_size(address)
        if size is None or not size.files:
            return TuningSize()
        files = [file for file in local_files(address).files if file_format(file.path) is not None]
        records += sum(_records(file, size.text_bytes / max(1, size.size_bytes)) for file in files)
        tokens += round(size.text_bytes / BYTES_PER_TOKEN)
    # Of a pair's text a third is each of prompt, chosen and rejected answer: reading it twice adds the prompt again.
    factor = 1.0 if sequences_per_record == 1 else 4 / 3
    return TuningSize(max(1, records), round(tokens * factor))


def _records(file: LocalFile, expansion: float) -> int:
    """Return the records of one file. expansion: bytes of text for each byte of the file, by its type."""
    assumed = max(1, round(file.size_bytes * expansion / ASSUMED_RECORD_BYTES))
    sample = beginning(file)
    if sample is None or not sample[1]:
        return assumed
    text, read_bytes = sample
    if is_array(text):
        ends = [end for _, end in array_items(text)]
        num_records, share = len(ends), ends[-1] / len(text) if ends else 0.0
    else:
        num_records, share = sum(1 for line in text.split("\n") if line.strip()), 1.0
    if not num_records:
        return assumed
    return max(1, round(num_records / share * file.size_bytes / read_bytes))
