"""Estimates how much text local sources hold from the size of their files, without reading them."""

from __future__ import annotations

from dataclasses import dataclass

from dapt_client.documents import FILE_SCHEME
from dapt_contract.inputs.source_files import ACCEPTED, LocalFile, LocalFiles, file_format
from dapt_contract.inputs.source_files import local_files as files_of_path

BYTES_PER_TOKEN = 4.0
"""For English text and today's vocabularies; other languages and code need more tokens for the same bytes."""
COMPRESSION = {".gz": 3.0, ".zst": 3.5, ".parquet": 2.5}
"""Typical factors from compressed to plain text, by the end of a file's name."""


@dataclass(frozen=True)
class SourceSize:
    """Number and size of the files behind one `file://` address."""

    files: int
    size_bytes: int
    text_bytes: float
    """After decompression, by the typical factors."""

    @property
    def tokens(self) -> int:
        """Estimated tokens, record syntax included."""
        return round(self.text_bytes / BYTES_PER_TOKEN)


def local_files(address: str) -> LocalFiles:
    """Return the files behind a `file://` address, as the stages find them."""
    return files_of_path(address.removeprefix(FILE_SCHEME))


def source_size(address: str) -> SourceSize | None:
    """Return the size of a local source; None when it is not local, since finding out takes the network."""
    if not address.startswith(FILE_SCHEME):
        return None
    files = [file for file in local_files(address).files if file_format(file.path)]
    return SourceSize(
        files=len(files),
        size_bytes=sum(file.size_bytes for file in files),
        text_bytes=sum(file.size_bytes * _factor(file) for file in files),
    )


def _factor(file: LocalFile) -> float:
    name = file.path.lower()
    return next((factor for ending, factor in COMPRESSION.items() if name.endswith(ending)), 1.0)


def source_problems(address: str) -> list[str]:
    """Return a sentence for what keeps a local source from being read; none for a source that is not local."""
    size = source_size(address)
    if size is None:
        return []
    found = local_files(address)
    if found.problems:
        return list(found.problems)
    if not found.files:
        return [f"no file matches {address}; check the path, which starts at the manifest's folder"]
    if not size.files:
        return [
            f"{address} has no file of a known type (the first is {found.files[0].path}); accepted are {ACCEPTED}"
        ]
    return [] if size.size_bytes else [f"{address} is empty; fill it, or remove the source"]
