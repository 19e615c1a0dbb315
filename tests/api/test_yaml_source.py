"""YAML is read as users mean it, with the line of every field, and one sentence for what cannot be read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapt_operator.api.validation.validate import check
from dapt_operator.api.validation.yaml_source import MAX_BYTES, ManifestError, load


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("2.0e-5", 2e-5),
        ("1_000_000", 1_000_000),
        ("-5", -5),
        ("017", 17),
        ("0o17", 15),
        ("yes", "yes"),
        ("True", True),
        ("~", None),
        ('"5"', "5"),
        ("2026-01-01", "2026-01-01"),
        ("12:30:00", "12:30:00"),
        ("!!str 5", "5"),
        ("hf://org/name@1588ec4", "hf://org/name@1588ec4"),
    ],
)
def test_values_are_read_as_yaml_1_2(text: str, value: Any) -> None:
    assert load(f"key: {text}")[0].data == {"key": value}


def test_every_field_and_item_has_its_line() -> None:
    (document,) = load("a: 1\nb:\n  - c: 2\n    d: 3\n  - e\n")
    assert document.lines == {
        ("a",): 1,
        ("b",): 2,
        ("b", 0): 3,
        ("b", 0, "c"): 3,
        ("b", 0, "d"): 4,
        ("b", 1): 5,
    }
    assert document.line_of(("b", 0, "missing", "deeper")) == 3


def test_documents_are_split_and_empty_ones_left_out() -> None:
    documents = load("a: 1\n---\n# nothing\n---\nb: 2\n")
    assert [document.data for document in documents] == [{"a": 1}, {"b": 2}]
    assert [document.line for document in documents] == [1, 5]


def test_anchors_and_merges_are_followed() -> None:
    (document,) = load("a: &x {p: 1, q: 2}\nb: *x\nc: {<<: *x, q: 3}\n")
    assert document.data == {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 2}, "c": {"p": 1, "q": 3}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: [1",
            "m.yaml:1:6: not valid YAML: expected ',' or ']', but got '<stream end>'; check indentation, quotes"
            " and brackets here and in the line above",
        ),
        (
            "a: 1\n\tb: 2",
            "m.yaml:2:1: not valid YAML: found character '\\t' that cannot start any token; check indentation,"
            " quotes and brackets here and in the line above",
        ),
        (
            "a: b: c",
            "m.yaml:1:5: not valid YAML: mapping values are not allowed here; check indentation, quotes and"
            " brackets here and in the line above",
        ),
        ("a: 1\na: 2", "m.yaml:2:1: the field 'a' is given twice (first in line 1); keep one of them"),
        (
            "a: {tokens: 1,000,000}",
            "m.yaml:1:19: the field '000' is given twice (first in line 1); a comma within braces ends a value: write a"
            " number without commas, such as 10000000 or 1.5",
        ),
        (
            "a: !!python/object:os.system {}",
            "m.yaml:1:4: the tag !!python/object:os.system is not accepted; remove it",
        ),
        ("a: !env HOME", "m.yaml:1:4: the tag !env is not accepted; remove it"),
        ("? [a]\n: b", "m.yaml:1:3: a field's name must be a text; write it as 'name: value'"),
        ("a: {<<: 5}", "m.yaml:1:5: '<<' takes a block; write the fields themselves"),
        ("%YAML 1.1\n---\na: yes", "m.yaml:1:1: YAML directives are not accepted; remove this line"),
        (
            "&a [*a]",
            "m.yaml:1:1: too deep or too large (anchors count each time); write it without anchors",
        ),
        (
            "",
            "m.yaml: no document; write one with apiVersion: dapt.dev/v1alpha1 and kind: DomainAdaptation",
        ),
        (
            "a: \x00",
            "m.yaml: not valid YAML: unacceptable character #x0000: special characters are not allowed in"
            ' "<file>", position 3; save the file as UTF-8 text',
        ),
        (
            "a: " + "x" * MAX_BYTES,
            "m.yaml: larger than 1048576 bytes; a manifest is short, put data into files of their own",
        ),
    ],
)
def test_unreadable_text_gets_one_sentence_with_its_position(text: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        load(text, "m.yaml")
    assert str(caught.value) == message


def test_anchors_that_grow_without_bound_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(ManifestError, match="too deep or too large"):
        load("\n".join(lines))


def test_documents_are_counted_and_share_the_bound_of_values() -> None:
    with pytest.raises(ManifestError, match=r"m.yaml:201:1: more than 200 documents; split the file"):
        load("--- a\n" * 300, "m.yaml")
    with pytest.raises(ManifestError, match="too deep or too large"):
        load(("---\na: [" + "1," * 4_000 + "]\n") * 3)


def test_thousands_of_brackets_are_refused() -> None:
    with pytest.raises(ManifestError, match=r"not valid YAML|too deep"):
        load("[" * 5000)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("abc:-[]{}&*!|>'\"%#@\n\t 0159._~<"), max_size=40))
def test_any_text_is_read_or_refused_with_a_message(text: str) -> None:
    try:
        said = ""
        documents = load(text, "m.yaml")
    except ManifestError as error:
        documents, said = [], str(error)
    assert documents or said.startswith("m.yaml")


SPEC = "apiVersion: dapt.dev/v1alpha1\nkind: DomainAdaptation\nmetadata: {name: a}\nspec: "
ODD_TEXTS = {
    "a prefix without digits": "a: 0x_",
    "another": "a: [0b, 0o_, +_, -]",
    "5,000 digits": SPEC + "{seed: " + "9" * 5000 + "}",
    "5,000 hexadecimal digits": SPEC + "{seed: 0x" + "f" * 5000 + "}",
    "a kind of 5,000 digits": "kind: 0x" + "f" * 5000,
    "a fraction without end": SPEC + "{seed: " + "9" * 350 + ".0}",
    "a large exponent": SPEC + "{seed: 1e999999999}",
    "open brackets": "a: " + "[" * 2000,
    "closed brackets": "a: " + "{a: " * 300 + "1" + "}" * 300,
    "deep blocks": "".join(" " * depth + "a:\n" for depth in range(200)),
    "aliases": "a: &a [x]\n"
    + "".join(f"b{i}: &b{i} [{','.join(['*' + (f'b{i - 1}' if i else 'a')] * 10)}]\n" for i in range(12)),
    "an alias of itself": "a: &a [*a]",
    "a block merged into itself": "a: &a {<<: *a}",
    "a key of itself": "? &a [*a]\n: 1",
    "a null character": SPEC + '{model: {source: "s3://a\\0b"}}',
    "half a character": SPEC + '{model: {source: "s3://a\\ud800b"}}',
    "many documents": "--- a\n" * 150_000,
    "many large documents": "---\n" + f"- {'[],' * 9_000}\n---\n" * 30,
    "600 wrong items": SPEC + "{credentials: [" + "{secretName: X, use: y}," * 600 + "]}",
}


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
def test_no_text_ends_in_a_traceback(text: str) -> None:
    try:
        documents = load(text)
    except ManifestError:
        return
    for document in documents:
        model, problems = check(document, local=True)
        assert model is None
        assert all(str(problem) for problem in problems)
        assert problems
