"""How much text local sources hold, by the size of their files: cheap, and only an estimate."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from dapt_operator.cli.inputs.manifests import FILE_SCHEME

BYTES_PER_TOKEN = 4.0
"""Of English text under today's vocabularies; other languages and code need more tokens for the same bytes."""
COMPRESSION = {".gz": 3.0, ".zst": 3.5, ".parquet": 2.5}
"""Usual factors from packed to plain text."""
KNOWN = {".jsonl", ".ndjson", ".json", ".parquet", ".txt", ".text", ".md"}
"""Endings of files that prepare reads."""


@dataclass(frozen=True)
class SourceSize:
    """Files behind one `file://` address."""

    files: int
    size_bytes: int
    text_bytes: float
    """After unpacking, by the usual factors."""

    @property
    def tokens(self) -> int:
        """Estimated tokens, record syntax included."""
        return round(self.text_bytes / BYTES_PER_TOKEN)


def local_files(address: str) -> tuple[Path, ...]:
    """The files behind a `file://` address with wildcards; a folder stands for the files of known form below it."""
    pattern = address.removeprefix(FILE_SCHEME)
    if Path(pattern).is_dir():
        pattern = f"{glob.escape(pattern)}/**/*"
    return tuple(
        sorted(path for name in glob.glob(pattern, recursive=True) if (path := Path(name)).is_file())
    )


def source_size(address: str) -> SourceSize | None:
    """Size of a local source; None when it is not local and would have to be asked over the network."""
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
    """One sentence for each local source without any file or any byte; (field, address) in, nothing read."""
    found = []
    for field, address in sources:
        size = source_size(address)
        if size is None or field == "spec.model.source":
            continue
        if not size.files:
            found.append(
                f"{field}: no file matches {address}; check the path, it is taken from the manifest's folder"
            )
        elif not size.size_bytes:
            found.append(f"{field}: {address} is empty; fill it, or remove the source")
    return found
