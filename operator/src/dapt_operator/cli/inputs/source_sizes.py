"""Estimates how much text local sources hold from the size of their files, without reading them."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from dapt_operator.cli.inputs.manifests import FILE_SCHEME

BYTES_PER_TOKEN = 4.0
"""For English text and today's vocabularies; other languages and code need more tokens for the same bytes."""
COMPRESSION = {".gz": 3.0, ".zst": 3.5, ".parquet": 2.5}
"""Typical factors from compressed to plain text."""
TEXT_SUFFIXES = {".jsonl", ".ndjson", ".json", ".parquet", ".txt", ".text", ".md"}
"""Suffixes of the files that prepare reads."""


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


def local_files(address: str) -> tuple[Path, ...]:
    """Return the files behind a `file://` address with wildcards; a folder stands for all files below it."""
    pattern = address.removeprefix(FILE_SCHEME)
    if Path(pattern).is_dir():
        pattern = f"{glob.escape(pattern)}/**/*"
    return tuple(
        sorted(path for name in glob.glob(pattern, recursive=True) if (path := Path(name)).is_file())
    )


def source_size(address: str) -> SourceSize | None:
    """Return the size of a local source; None when it is not local, since finding out takes the network."""
    if not address.startswith(FILE_SCHEME):
        return None
    files = local_files(address)
    sizes = [path.stat().st_size for path in files]
    factors = [COMPRESSION.get(path.suffix, 1.0) for path in files]
    return SourceSize(
        files=len(files),
        size_bytes=sum(sizes),
        text_bytes=sum(size * factor for size, factor in zip(sizes, factors, strict=True)),
    )


def missing_files(sources: list[tuple[str, str]]) -> list[str]:
    """Return one sentence for each local source, given as (field, address), without a file or without a byte."""
    problems = []
    for field, address in sources:
        size = source_size(address)
        if size is None or field == "spec.model.source":
            continue
        if not size.files:
            problems.append(
                f"{field}: no file matches {address}; check the path, which starts at the manifest's folder"
            )
        elif not size.size_bytes:
            problems.append(f"{field}: {address} is empty; fill it, or remove the source")
    return problems
