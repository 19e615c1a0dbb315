"""Ctrl-C and SIGTERM become a flag; the second one does not wait."""

from __future__ import annotations

import os
import pty
import signal
import sys

import pytest

from dapt_operator.cli.signals import StopFlag


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
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


def test_the_end_of_the_terminal_is_one_request_however_often_it_is_reported() -> None:
    calls: list[str] = []
    with StopFlag(on_second=lambda: calls.append("now")) as flag:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.is_set
        assert calls == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert calls == ["now"]


def test_what_was_started_with_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopFlag() as flag:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not flag.is_set
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_fails_no_write() -> None:
    program = (
        "import os, time\n"
        "from dapt_operator.cli.signals import StopFlag\n"
        "with StopFlag() as flag:\n"
        "    print('ready', flush=True)\n"
        # Not signal.pause(): it would wait for ever for a signal that came between the question and the call.
        "    while not flag.is_set: time.sleep(0.01)\n"
        "    print('to nowhere', flush=True)\n"
        "    os._exit(flag.exit_code)\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        # Ignored where the tests were started with nohup, and then the program outlives its terminal.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.execv(sys.executable, [sys.executable, "-c", program])
    assert b"ready" in os.read(terminal, 100)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 143
