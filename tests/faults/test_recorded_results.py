"""The page shows what the last whole run of each campaign has recorded."""

from __future__ import annotations

from support.campaigns import BEGIN, END, PAGE, table


def test_page_shows_the_recorded_results() -> None:
    _, found, rest = PAGE.read_text().partition(BEGIN)
    assert found
    assert rest.partition(END)[0].strip() == table().strip(), "stale: `make fault-results` writes it"
