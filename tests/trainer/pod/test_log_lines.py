"""Tests the log of a pod: names and messages in it steer no terminal that shows it."""

from __future__ import annotations

import logging
import sys

import pytest

from dapt_trainer.pod.log_lines import CleanFormatter, write_line, write_traceback
from support.hostile_texts import HOSTILE_TEXTS, assert_inert


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_hostile_text_is_cleaned_in_the_log_of_a_pod(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_line(text)
    try:
        raise ValueError(text)
    except ValueError as error:
        write_traceback(error)
        record = logging.LogRecord("data", logging.INFO, "a.py", 1, "read %s", (text,), sys.exc_info())
    first, *rest = CleanFormatter("%(levelname)s %(message)s").format(record).split("\n")
    written = capsys.readouterr().out
    for line in (written, first, *rest):
        assert_inert(line)
    assert "visible" in first
    assert rest[0] == "Traceback (most recent call last):"
    assert written.count("visible") >= 2
