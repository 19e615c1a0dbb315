"""The log: one line an entry, JSON or text, whoever wrote it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from dapt_operator.runtime import logging_setup
from support.hostile_texts import HOSTILE_TEXTS, assert_inert

OURS = ("", "dapt", "dapt_operator", "urllib3.connectionpool", "kopf._core.reactor.running")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in OURS]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    structlog.reset_defaults()
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def test_operator_and_library_log_lines_have_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    logging_setup.set_up("json", "info")
    structlog.get_logger("dapt.tests").info("reconciled", namespace="team", apply=["Job/a"])
    logging.getLogger("kopf.somewhere").warning("the watch of %s ended", "pods")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert {name: first[name] for name in ("event", "level", "logger", "namespace", "apply")} == {
        "event": "reconciled",
        "level": "info",
        "logger": "dapt.tests",
        "namespace": "team",
        "apply": ["Job/a"],
    }
    assert (second["event"], second["level"]) == ("the watch of pods ended", "warning")
    assert first["timestamp"].endswith("Z")


def test_log_level_applies_to_the_operator_and_libraries_log_warnings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logging_setup.set_up("json", "error")
    structlog.get_logger("dapt.tests").warning("no")
    logging.getLogger("kopf").info("no")
    logging.getLogger("dapt_operator.cluster").warning("no")
    logging.getLogger("dapt_operator.cluster").error("yes")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["yes"]


def test_an_exception_stays_within_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logging_setup.set_up("json", "info")
    try:
        raise ValueError("what")
    except ValueError:
        structlog.get_logger("dapt.tests").exception("it failed")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: what" in json.loads(line)["exception"]


def test_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logging_setup.set_up("text", "info")
    structlog.get_logger("dapt.tests").info("started", port=8080)
    (line,) = capsys.readouterr().err.splitlines()
    assert "started" in line
    assert "port=8080" in line
    assert "\x1b" not in line


@pytest.mark.parametrize("format_", ["json", "text"])
def test_hostile_text_is_cleaned_and_forges_no_entry(
    format_: logging_setup.LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    logging_setup.set_up(format_, "info")
    for text in HOSTILE_TEXTS:
        structlog.get_logger("dapt.tests").info(text, message=text, apply=[text])
        logging.getLogger("kopf.somewhere").warning("the watch of %s ended", text)
        lines = [line for line in capsys.readouterr().err.split("\n") if line]
        assert len(lines) == 2
        for line in lines:
            assert_inert(line)
            assert "visible" in line
            for value in json.loads(line).values() if format_ == "json" else ():
                assert_inert(str(value))


@pytest.mark.parametrize("format_", ["json", "text"])
def test_a_hostile_exception_is_cleaned_and_forges_no_entry(
    format_: logging_setup.LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    logging_setup.set_up(format_, "info")
    for text in HOSTILE_TEXTS:
        try:
            raise ValueError(f"{text}\n2026-01-01 [info] all is well")
        except ValueError:
            structlog.get_logger("dapt.tests").exception("it failed")
        written = capsys.readouterr().err
        assert_inert(written)
        assert_inert(json.loads(written)["exception"] if format_ == "json" else written)
        assert sum(not line.startswith(" ") for line in written.strip().split("\n")) == 1
