"""Tests that cleaned text steers no terminal and hides nothing, and that honest text stays as it is."""

from __future__ import annotations

import pytest

from dapt_contract.untrusted.printable import printable, printable_lines, printable_values
from support.hostile_texts import HOSTILE_TEXTS, assert_inert


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_printable_text_steers_no_terminal(text: str) -> None:
    assert_inert(printable(text))
    assert_inert(printable_lines(text))
    assert "\n" not in printable(text)
    assert "visible" in printable(text)


@pytest.mark.parametrize(
    "text",
    [
        "general perplexity of a1-s40 is +21.0% against the base model's",
        "Größe 41.0 ± 2.2 · → ✓ …",
        "می\u200cخواهم",
        "👩\u200d⚕️ \U0001f1e9\U0001f1ea",
        "❤️\u200d🔥 葛\U000e0100 ᠠ\u180b 한국어",
        "nbsp\u00a0and thin\u2009space",
        "[red]brackets[/red] <b>and</b> tags",
    ],
)
def test_honest_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == printable_lines(text) == text


def test_lines_and_tabs_stay_where_lines_are_wanted() -> None:
    assert printable_lines("a\r\n\tb\rc\u2028d") == "a\n\tb\nc\nd"
    assert printable("a\r\n\tb\rc\u2028d") == "a  b c d"


def test_whole_sequences_go_and_broken_ones_lose_their_escape() -> None:
    assert printable("\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x07") == "red link"
    assert printable("\x1b]0;title") == "]0;title"
    assert printable("\ud800 and \udcff") == "\ufffd and \ufffd"


def test_a_blank_of_braille_separates_words() -> None:
    assert printable("⠓⠊\u2800⠽⠕⠥") == "⠓⠊ ⠽⠕⠥"


def test_values_are_cleaned_at_every_depth() -> None:
    assert printable_values({"a\x1b": [{"b": "\x07c"}, 1, None, 2.5, True], "d": ("\u202ee",)}) == {
        "a": [{"b": "c"}, 1, None, 2.5, True],
        "d": ["e"],
    }


def test_text_of_nothing_but_beginnings_is_cleaned_in_one_pass() -> None:
    for beginning in ("\x1b]", "\x1b[", "\x1b[" + "0;" * 31, "\x9d" + "x" * 255):
        assert_inert(printable(beginning * (1_000_000 // len(beginning))))
