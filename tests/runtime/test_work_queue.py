"""The work queue: its promises for any order of events, then with real threads."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dapt_operator.runtime.work_queue import (
    LONGEST_BACKOFF_SECONDS,
    SPACING_SECONDS,
    DueTimes,
    Urgency,
    WorkQueue,
    backoff_seconds,
)

KEYS = st.sampled_from(["a", "b", "c"])
SECONDS = st.sampled_from([0.0, 0.01, SPACING_SECONDS, 0.2, 1.0, 10.0])


class AnyOrder(RuleBasedStateMachine):
    """Wakes, runs, failures and time in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule: DueTimes[str] = DueTimes()
        self.now = 100.0
        self.owed: dict[str, float] = {}
        """By when at the latest each key must be offered."""
        self.rests: dict[str, float] = {}
        self.running: set[str] = set()
        self.failures: dict[str, int] = {}

    def owe(self, key: str, when: float) -> None:
        self.owed[key] = min(when, self.owed.get(key, when))

    @rule(key=KEYS, after=SECONDS, urgency=st.sampled_from(Urgency))
    def wake(self, key: str, after: float, urgency: Urgency) -> None:
        self.schedule.wake(key, self.now, after, urgency)
        self.owe(key, self.now + after)

    @rule(seconds=SECONDS)
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def take(self) -> None:
        key = self.schedule.take(self.now)
        due = {
            one
            for one, when in self.owed.items()
            if one not in self.running and max(when, self.rests.get(one, 0.0)) <= self.now
        }
        if key is None:
            assert not due, f"{due} were due and not offered"
            return
        assert key in due, f"{key} was offered before its time, or twice"
        self.running.add(key)
        del self.owed[key]

    @precondition(lambda self: self.running)
    @rule(data=st.data(), again=st.none() | SECONDS)
    def finish(self, data: st.DataObject, again: float | None) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        self.running.discard(key)
        self.failures.pop(key, None)
        self.rests[key] = self.now + SPACING_SECONDS
        self.schedule.done(key, self.now, again)
        if again is not None:
            self.owe(key, self.now + again)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        self.running.discard(key)
        self.failures[key] = self.failures.get(key, 0) + 1
        delay = self.schedule.failed(key, self.now)
        assert delay == backoff_seconds(self.failures[key])
        self.rests[key] = self.now + delay
        self.owe(key, self.now)

    @invariant()
    def the_next_time_is_told(self) -> None:
        waiting = {key: when for key, when in self.owed.items() if key not in self.running}
        expected = min((max(when, self.rests.get(key, 0.0)) for key, when in waiting.items()), default=None)
        told = self.schedule.next_due()
        if expected is None:
            assert told is None
        else:
            assert told is not None
            assert max(told, self.now) == pytest.approx(max(expected, self.now))

    @invariant()
    def running_is_known(self) -> None:
        assert self.schedule.running == self.running


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase


def test_the_rest_after_failures_doubles_up_to_its_bound() -> None:
    assert [backoff_seconds(number) for number in (1, 2, 3)] == [0.2, 0.4, 0.8]
    assert backoff_seconds(1000) == LONGEST_BACKOFF_SECONDS


class Adaptation:
    """A key that a weak reference can follow."""


def test_keys_that_are_gone_leave_nothing_behind() -> None:
    schedule: DueTimes[Adaptation] = DueTimes()
    left: weakref.WeakSet[Adaptation] = weakref.WeakSet()
    for number in range(1000):
        key = Adaptation()
        left.add(key)
        schedule.wake(key, now=float(number))
        assert schedule.take(float(number)) is key
        schedule.done(key, float(number))
    del key
    gc.collect()
    assert len(left) <= 1
    assert len(schedule) == 0


def test_the_key_that_waited_longest_comes_first() -> None:
    schedule: DueTimes[str] = DueTimes()
    schedule.wake("late", 0.0, after_seconds=5.0)
    schedule.wake("second", 0.0, after_seconds=1.0)
    schedule.wake("first", 0.0)
    assert [schedule.take(9.0) for _ in range(4)] == ["first", "second", "late", None]


def test_failure_goes_before_readings_that_came_earlier() -> None:
    schedule: DueTimes[str] = DueTimes()
    schedule.wake("reading", 0.0, urgency=Urgency.ROUTINE)
    schedule.wake("change", 1.0)
    schedule.wake("failure", 2.0, urgency=Urgency.FAILURE)
    assert [schedule.take(2.0) for _ in range(4)] == ["failure", "change", "reading", None]


def test_reading_that_waited_longer_than_the_head_start_goes_before_failures() -> None:
    schedule: DueTimes[str] = DueTimes()
    schedule.wake("reading", 0.0, urgency=Urgency.ROUTINE)
    late = Urgency.FAILURE.value + 1.0
    schedule.wake("failure", late, urgency=Urgency.FAILURE)
    assert schedule.take(late) == "reading"


def test_failure_of_a_key_that_waits_for_a_reading_is_urgent() -> None:
    schedule: DueTimes[str] = DueTimes()
    schedule.wake("first", 0.0, urgency=Urgency.ROUTINE)
    schedule.wake("second", 0.0, urgency=Urgency.ROUTINE)
    schedule.wake("second", 0.0, urgency=Urgency.FAILURE)
    schedule.wake("second", 0.0, urgency=Urgency.ROUTINE)
    assert [schedule.take(0.0) for _ in range(3)] == ["second", "first", None]


def test_key_woken_while_it_runs_without_spacing_is_offered_again() -> None:
    schedule: DueTimes[str] = DueTimes(spacing_seconds=0.0)
    schedule.wake("a", 0.0)
    assert schedule.take(0.0) == "a"
    schedule.wake("a", 0.0)
    schedule.done("a", 0.0)
    assert schedule.take(0.0) == "a"


def test_report_that_fails_does_not_end_the_thread() -> None:
    calls: list[str] = []
    good = threading.Event()

    def work(key: str) -> None:
        calls.append(key)
        if len(calls) == 1:
            raise RuntimeError("the API said no")
        good.set()

    def report(*_: object) -> None:
        raise OSError("the log is full")

    queue: WorkQueue[str] = WorkQueue(work, workers=1, on_error=report)
    queue.start()
    queue.wake("a")
    assert good.wait(10)
    assert queue.is_healthy
    assert queue.stop(10)


def test_threads_never_work_on_one_key_at_once_and_miss_no_wake() -> None:
    inside: dict[int, int] = {}
    lock = threading.Lock()
    overlaps: list[int] = []
    counter = dict.fromkeys(range(5), 0)
    seen: dict[int, int] = {}
    caught_up = threading.Event()

    def work(key: int) -> None:
        with lock:
            inside[key] = inside.get(key, 0) + 1
            if inside[key] > 1:
                overlaps.append(key)
            read = counter[key]
        with lock:
            inside[key] -= 1
            seen[key] = max(read, seen.get(key, 0))
            if all(seen.get(one, 0) == 200 for one in counter):
                caught_up.set()

    queue: WorkQueue[int] = WorkQueue(work, workers=4, spacing_seconds=0.0)
    queue.start()
    for _ in range(200):
        for key in counter:
            with lock:
                counter[key] += 1
            queue.wake(key)
    assert caught_up.wait(30), f"wakes were lost: {seen}"
    assert overlaps == []
    assert queue.is_healthy
    assert queue.stop(10)


def test_wakes_from_before_the_start_are_kept() -> None:
    done = threading.Event()
    queue: WorkQueue[str] = WorkQueue(lambda key: done.set(), workers=1)
    queue.wake("a")
    assert queue.depth == 1
    queue.start()
    assert done.wait(10)
    assert queue.stop(10)


def test_work_queue_reports_an_exception_and_retries_the_key() -> None:
    calls: list[str] = []
    told: list[tuple[str, str, float]] = []
    good = threading.Event()

    def work(key: str) -> None:
        calls.append(key)
        if len(calls) == 1:
            raise RuntimeError("the API said no")
        good.set()

    queue: WorkQueue[str] = WorkQueue(
        work, workers=2, on_error=lambda key, error, delay: told.append((key, str(error), delay))
    )
    queue.start()
    queue.wake("a")
    assert good.wait(10)
    assert queue.stop(10)
    assert told == [("a", "the API said no", 0.2)]


def test_work_queue_runs_a_key_again_when_work_returns_a_delay() -> None:
    calls: list[int] = []
    third = threading.Event()

    def work(key: str) -> float | None:
        calls.append(1)
        if len(calls) == 3:
            third.set()
            return None
        return 0.0

    queue: WorkQueue[str] = WorkQueue(work, workers=2, spacing_seconds=0.001)
    queue.start()
    queue.wake("a")
    assert third.wait(10)
    assert queue.stop(10)
    assert len(calls) == 3


def test_work_queue_stop_waits_for_the_running_key_and_starts_no_other() -> None:
    begun, may_end = threading.Event(), threading.Event()
    ended: list[str] = []

    def work(key: str) -> None:
        begun.set()
        may_end.wait(10)
        ended.append(key)

    queue: WorkQueue[str] = WorkQueue(work, workers=1)
    queue.start()
    queue.wake("a")
    assert begun.wait(10)
    queue.wake("b")
    assert not queue.stop(0.05)
    may_end.set()
    assert queue.stop(10)
    assert ended == ["a"]


def test_a_queue_that_never_started_stops_at_once() -> None:
    queue: WorkQueue[str] = WorkQueue(lambda key: None)
    assert queue.stop(0)
