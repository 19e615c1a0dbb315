"""Ctrl-C and SIGTERM become a flag; the second one does not wait."""

from __future__ import annotations

import os
import signal

import pytest

from dapt_operator.cli.signals import StopFlag


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_decides_the_exit_code(number: signal.Signals, code: int) -> None:
    with StopFlag() as flag:
        assert not flag.is_set
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.is_set
        assert flag.exit_code == code


def test_the_second_signal_calls_at_once_and_only_once() -> None:
    calls: list[str] = []
    with StopFlag(on_second=lambda: calls.append("now")):
        os.kill(os.getpid(), signal.SIGINT)
        assert calls == []
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert calls == ["now"]


def test_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopFlag():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
