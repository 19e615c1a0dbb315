"""The same cause in many records is one sentence with their number; different values are different causes."""

from __future__ import annotations

import pytest

from dapt_trainer.data.input_problems import Problems

TEMPLATE = "the template's prompt goes on with {!r} where the assistant's turn goes on with {!r}"


MORE = " (1 more record has the same fault)"
FIRST = TEMPLATE.format("x", "It's one\n")


@pytest.mark.parametrize(
    ("causes", "sentences"),
    [
        (["messages[1] is empty", "messages[3] is empty"], [f"f: a:1: messages[1] is empty{MORE}"]),
        ([FIRST, TEMPLATE.format("x", "two, I think")], [f"f: a:1: {FIRST}{MORE}"]),
        (
            ["role 'bot' is none", "role 'ai' is none"],
            ["f: a:1: role 'bot' is none", "f: a:2: role 'ai' is none"],
        ),
    ],
    ids=["numbers", "texts of the records", "values"],
)
def test_causes_of_records_are_counted(causes: list[str], sentences: list[str]) -> None:
    problems = Problems()
    for line, cause in enumerate(causes, 1):
        problems.add_at("f", f"a:{line}", cause)
    assert problems.sentences() == sentences
