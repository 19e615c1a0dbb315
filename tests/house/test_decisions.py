"""Pages in docs/decisions: one number, one date, one status each, and an index that lists them all."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "decisions"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.name != "index.md")
STATUS = re.compile(r"accepted|superseded by \[(\d+)\]\((\d{4}-[\w-]+\.md)\)")


def header(page: Path) -> tuple[int, str, datetime.date, str]:
    """Return the number, title, date and status that stand on top of a page."""
    found = re.match(r"# (\d+)\. (\S.*\S)\n\n- Date: (\S+)\n- Status: (.+)\n\n\S", page.read_text())
    assert found, f"{page.name} does not begin with `# N. Title`, `- Date: YYYY-MM-DD` and `- Status: ...`"
    return int(found[1]), found[2], datetime.date.fromisoformat(found[3]), found[4]


def test_numbers_count_up_without_a_gap() -> None:
    assert [int(page.name[:4]) for page in PAGES] == list(range(1, len(PAGES) + 1))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_its_number_a_date_and_a_status(page: Path) -> None:
    number, _, date, status = header(page)
    assert number == int(page.name[:4])
    assert date >= datetime.date(2026, 11, 21)  # when the first was written
    found = STATUS.fullmatch(status)
    assert found, f"{page.name}: {status!r} is neither `accepted` nor `superseded by [N](page)`"
    if found[1]:
        later = FOLDER / found[2]
        assert header(later)[0] == int(found[1]) > number


def test_dates_follow_the_numbers() -> None:
    dates = [header(page)[2] for page in PAGES]
    assert dates == sorted(dates)


def test_the_index_lists_every_page_with_its_date_and_status() -> None:
    rows = [line for line in (FOLDER / "index.md").read_text().splitlines() if re.match(r"\| \d", line)]
    assert rows == [
        f"| {number} | [{title}]({page.name}) | {date} | {status} |"
        for page in PAGES
        for number, title, date, status in [header(page)]
    ]
