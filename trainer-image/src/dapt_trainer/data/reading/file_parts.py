"""Names parts of files, so that a sample can be read from several places."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from dapt_trainer.data.reading.sources import SourceFile

BLOCK_RECORDS = 4
"""Records that a pass takes or leaves together."""


@dataclass(frozen=True)
class FilePart:
    """Names a part of a file: a range of its bytes, or one of several passes that share its blocks of records."""

    file: SourceFile
    first_byte: int = 0
    end_byte: int | None = None
    """A line belongs to the range in which it begins; None: the end of the file."""
    number: int = 0
    num_passes: int = 1
    key: bytes = b""
    """Decides, with a block's number, which pass reads it."""

    def is_read(self, block: int) -> bool:
        """Return whether this pass reads a block of records."""
        if self.num_passes == 1:
            return True
        digest = hashlib.blake2b(b"%s:%d" % (self.key, block), digest_size=8).digest()
        return int.from_bytes(digest, "little") % self.num_passes == self.number
