"""In which languages a source is written, from a sample of its documents; nothing is downloaded.

py3langid (a fork of langid.py; Lui and Baldwin 2012, "An Off-the-shelf Language Identification Tool") ships its
model, knows 97 languages and takes a fraction of a millisecond a document.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

FIRST_DOCUMENTS = 200
"""So many are looked at in any case; after them one in `EVERY`, by hash."""
EVERY = 32
MOST_DOCUMENTS = 2000
_READ_CHARACTERS = 2000
_FEWEST_CHARACTERS = 40
"""Of a shorter text the language is a guess."""
UNKNOWN = "zxx"
"""ISO 639: no linguistic content."""


@dataclass
class LanguageSample:
    """Documents of one source by language, and how many characters its tokens hold."""

    documents: Counter[str] = field(default_factory=Counter)
    looked_at: int = 0
    characters: int = 0
    tokens: int = 0

    def note(self, key: int, text: str, tokens: int) -> None:
        """Look at a document if it belongs to the sample.

        Args:
            key: hash of its normalized text; decides alone, so that a second run looks at the same documents.
            text: as it was read.
            tokens: without special ones.
        """
        if self.looked_at >= MOST_DOCUMENTS or (self.looked_at >= FIRST_DOCUMENTS and key % EVERY):
            return
        self.looked_at += 1
        self.characters += len(text)
        self.tokens += tokens
        if len(text) >= _FEWEST_CHARACTERS:
            from py3langid import classify

            self.documents[str(classify(text[:_READ_CHARACTERS])[0])] += 1

    @property
    def main(self) -> tuple[str, float] | None:
        """The most frequent language and its share of the documents whose language is known."""
        known = {language: count for language, count in self.documents.items() if language != UNKNOWN}
        if not known:
            return None
        language, count = max(known.items(), key=lambda item: (item[1], item[0]))
        return language, count / sum(known.values())

    @property
    def characters_per_token(self) -> float:
        """How much text a token holds; 0 of an empty sample."""
        return self.characters / self.tokens if self.tokens else 0.0
