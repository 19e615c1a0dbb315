"""Conditions are replaced in place, and their transition time changes only with the status."""

from __future__ import annotations

import ast
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from dapt_operator.api.v1alpha1 import conditions as c
from dapt_operator.api.v1alpha1 import events

OPERATOR = Path(c.__file__).parents[2]
DECLARES = ("conditions.py", "events.py")
"""Modules of the API that list reasons and phases and emit none."""
NOON = datetime(2026, 1, 31, 12, 0, 0, 999_999, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)


def test_a_new_condition_is_added_at_the_end() -> None:
    first = c.set_condition((), c.READY, "False", c.PROGRESSING, "one", now=NOON)
    both = c.set_condition(first, c.STALLED, "False", c.PROGRESSING, "two", now=NOON)
    assert [condition.type for condition in both] == ["Ready", "Stalled"]
    assert both[0].to_dict() == {
        "type": "Ready",
        "status": "False",
        "reason": "Progressing",
        "message": "one",
        "lastTransitionTime": "2026-01-31T12:00:00Z",
    }


def test_transition_time_stays_while_the_status_stays() -> None:
    before = c.set_condition((), c.READY, "False", c.PROGRESSING, "one", now=NOON)
    same = c.set_condition(before, c.READY, "False", c.PROGRESSING, "one", now=LATER)
    assert same == before
    worded = c.set_condition(
        before, c.READY, "False", c.INVALID_SPEC, "two", now=LATER, observed_generation=4
    )
    assert worded[0].last_transition_time == "2026-01-31T12:00:00Z"
    assert (worded[0].reason, worded[0].message, worded[0].observed_generation) == ("InvalidSpec", "two", 4)


def test_transition_time_changes_with_the_status_and_the_order_stays() -> None:
    before = c.set_condition((), c.READY, "False", c.PROGRESSING, "", now=NOON)
    before = c.set_condition(before, c.STALLED, "False", c.PROGRESSING, "", now=NOON)
    after = c.set_condition(before, c.READY, "True", c.PUBLISHED, "", now=LATER)
    assert [condition.type for condition in after] == ["Ready", "Stalled"]
    assert after[0].last_transition_time == "2026-01-31T13:00:00Z"
    assert after[1] == before[1]


def test_times_are_written_in_utc() -> None:
    berlin = timezone(timedelta(hours=1))
    assert c.timestamp(datetime(2026, 1, 31, 0, 30, tzinfo=berlin)) == "2026-01-30T23:30:00Z"


def test_words_outside_the_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown condition type 'Redy'"):
        c.set_condition((), "Redy", "True", c.PUBLISHED, "", now=NOON)
    with pytest.raises(ValueError, match="unknown reason 'Because'"):
        c.set_condition((), c.READY, "True", "Because", "", now=NOON)


def test_find_condition_and_is_true() -> None:
    conditions = c.set_condition((), c.FINISHED, "True", c.PUBLISHED, "", now=NOON)
    assert c.is_true(conditions, c.FINISHED)
    assert not c.is_true(conditions, c.READY)
    assert c.find_condition(conditions, c.READY) is None


def test_every_constant_is_in_a_table_and_every_entry_has_a_constant() -> None:
    words = {
        value
        for name, value in vars(c).items()
        if name.isupper() and isinstance(value, str) and not name.startswith("_")
    }
    assert words == set(c.CONDITION_TYPES) | set(c.REASONS) | set(c.PHASES)
    for table in (c.CONDITION_TYPES, c.REASONS, c.PHASES):
        for word, meaning in table.items():
            assert word.isalnum()
            assert word[0].isupper()
            assert meaning.endswith(".")


def used_names(source: str) -> set[str]:
    """The constants of the API's conditions and events that a module reads, not only imports."""
    tree = ast.parse(source)
    names: set[str] = set()
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith(
            ("v1alpha1.conditions", "v1alpha1.events")
        ):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").endswith("api.v1alpha1"):
            modules |= {alias.asname or alias.name for alias in node.names}
    return {
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names)
        or (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules)
    }


def test_every_documented_word_is_emitted_somewhere() -> None:
    used: set[str] = set()
    for path in OPERATOR.rglob("*.py"):
        if not (path.parent.name == "v1alpha1" and path.name in DECLARES):
            used |= used_names(path.read_text())
    words = {name: value for name, value in vars(c).items() if name.isupper() and isinstance(value, str)}
    words |= {
        name: value for name, value in vars(events).items() if name.isupper() and isinstance(value, str)
    }
    assert {name for name in words if name not in used} == set()


def test_a_word_that_is_only_imported_is_not_emitted() -> None:
    source = "from dapt_operator.api.v1alpha1.conditions import READY, STALLED\nprint(READY)"
    assert used_names(source) == {"READY"}
    assert used_names("from dapt_operator.api.v1alpha1 import conditions\nconditions.PUBLISHED") == {
        "PUBLISHED"
    }
