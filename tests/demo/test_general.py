"""General text: running prose alone, and nothing twice."""

from __future__ import annotations

from demo_data.general import document, general_documents, prose

SENTENCE = "This library reads a file and tells you in plain words what is wrong with it, line by line."
OTHER = (
    "It was written by people who had lost an afternoon to a missing comma, and who did not want to again."
)
README = f"""# Title

[![build](https://example.org/badge.svg)](https://example.org)

{SENTENCE}

```python
this = "code that would otherwise look like a sentence of more than twelve words, would it not."
```

- a list item that is long enough to be a sentence but is still only a list item, as you see.

| a | table | row | with | many | cells | that | is | longer | than | twelve | words. |

**{OTHER}**
"""


def test_only_running_prose_is_kept() -> None:
    assert list(prose(README)) == [SENTENCE, OTHER]


def test_links_keep_their_text() -> None:
    linked = SENTENCE.replace("a file", "[a file](https://example.org/file)").replace(
        "plain", "`plain <x.html>`_"
    )
    assert list(prose(linked)) == [SENTENCE]


def test_a_text_with_hardly_any_prose_gives_no_document() -> None:
    assert document(README, set()) is None
    assert document("\n\n".join([SENTENCE * 2, OTHER * 2]), set()) is not None


def test_a_paragraph_that_two_packages_share_is_used_once() -> None:
    shared = " ".join([SENTENCE] * 4)
    own = " ".join([OTHER] * 4)
    made = general_documents([shared, f"{shared}\n\n{own}"])
    assert sorted(made) == sorted([shared, own])


def test_a_document_ends_at_a_paragraph_before_it_grows_long() -> None:
    paragraphs = [
        f"{SENTENCE} {SENTENCE} {SENTENCE} And number {number}." for number in ("one", "two", "three")
    ]
    paragraphs += [
        f"{OTHER} {OTHER} {OTHER} {OTHER} And then {word} more." for word in ("one", "two", "three")
    ]
    made = document("\n\n".join(paragraphs), set())
    assert made == "\n\n".join(paragraphs[:4])
