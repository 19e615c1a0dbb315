"""docs/security.md says how many hostile inputs of each kind are tried, and there are enough of each."""

from __future__ import annotations

import re

import pytest

from support.hostile_summary import PAGE, ROOT, ROWS, Row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_table_has_a_row_with_enough_cases_of_files_that_exist(row: Row) -> None:
    (cases,) = re.findall(rf"^\| {row.name} \| (\d+) \|", PAGE.read_text(), flags=re.MULTILINE)
    assert int(cases) >= row.least
    assert [file for file in row.files if not (ROOT / file).exists()] == []
