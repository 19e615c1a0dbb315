"""Detects in which languages a source is written, from a sample of its documents; nothing is downloaded.

py3langid (a fork of langid.py; Lui and Baldwin 2012, "An Off-the-shelf Language Identification Tool") ships its
model, knows 97 languages and takes a fraction of a millisecond a document.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

FIRST_DOCUMENTS = 200
"""Documents that are sampled in any case; after them one in `SAMPLE_EVERY` is, by its hash."""
SAMPLE_EVERY = 32
MAX_DOCUMENTS = 2000
_CLASSIFIED_CHARACTERS = 2000
_MIN_CHARACTERS = 40
"""The language of a shorter text would be a guess."""
NO_LANGUAGE = "zxx"
"""ISO 639: no linguistic content."""


def language_of(text: str) -> str:
    """Return the code of a text's language; empty where the text is too short to tell."""
    if len(text) < _MIN_CHARACTERS:
        return ""
    from py3langid import classify

    return str(classify(text[:_CLASSIFIED_CHARACTERS])[0])


@dataclass
class LanguageSample:
    """Counts the sampled documents of one source by language, and their characters and tokens."""

    documents: Counter[str] = field(default_factory=Counter)
    sampled: int = 0
    characters: int = 0
    tokens: int = 0

    def takes(self, key: int) -> bool:
        """Return whether the next document belongs to the sample.

        Args:
            key: hash of its normalized text; it alone decides, so that a second run samples the same documents.
        """
        return self.sampled < MAX_DOCUMENTS and (self.sampled < FIRST_DOCUMENTS or key % SAMPLE_EVERY == 0)

    def add(self, characters: int, tokens: int, language: str) -> None:
        """Count a document of the sample.

        Args:
            characters: of its text, as it was read.
            tokens: without special ones.
            language: as `language_of` gives it.
        """
        self.sampled += 1
        self.characters += characters
        self.tokens += tokens
        if language:
            self.documents[language] += 1

    @property
    def main(self) -> tuple[str, float] | None:
        """Return the most frequent language and its share of the documents that have one; None without any."""
        counts = {language: count for language, count in self.documents.items() if language != NO_LANGUAGE}
        if not counts:
            return None
        language, count = max(counts.items(), key=lambda item: (item[1], item[0]))
        return language, count / sum(counts.values())

    @property
    def characters_per_token(self) -> float:
        """Return how many characters a token holds on average; 0 for an empty sample."""
        return self.characters / self.tokens if self.tokens else 0.0
