"""The Lease is never held by two, and a dead holder's is taken over. Time is the test's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dapt_operator.cluster.kubernetes import lease as module
from dapt_operator.cluster.kubernetes.client import ATTEMPT_SECONDS
from dapt_operator.cluster.kubernetes.lease import DURATION_SECONDS, WRITE_SECONDS, Leadership
from support.api_double import ApiDouble, Line, Odd
from support.pod_objects import wait_until

PATH = "/apis/coordination.k8s.io/v1/namespaces/dapt/leases/operator"


class Operators:
    """Candidates for one Lease, whose clock the test moves."""

    def __init__(self, double: ApiDouble) -> None:
        self.now = 1000.0
        self.made: list[Leadership] = []
        self.lost: list[str] = []
        self._double = double
        self.lines: dict[Leadership, Line] = {}

    def start(self, identity: str) -> Leadership:
        line = Line()
        connection = self._double.connection(line)
        made = Leadership(connection, "dapt", "operator", identity, clock=lambda: self.now)
        self.made.append(made)
        self.lines[made] = line
        made.start(lambda: self.lost.append(identity))
        return made

    def cut_off(self, leadership: Leadership) -> None:
        """Let no further request of a candidate arrive: for the others it has died."""
        self.lines[leadership].is_cut = True


@pytest.fixture
def operators(double: ApiDouble, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operators]:
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.01)
    monkeypatch.setattr(module, "ASK_SECONDS", 0.01)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    found = Operators(double)
    yield found
    for made in found.made:
        made.stop()


def holder(double: ApiDouble) -> Any:
    return double.objects[PATH]["spec"]["holderIdentity"]


def asked(double: ApiDouble, times: int = 3) -> None:
    before = len(double.requests)
    wait_until(lambda: len(double.requests) > before + times, "the candidate asks")


def test_the_first_takes_it_and_the_second_waits(operators: Operators, double: ApiDouble) -> None:
    first = operators.start("a")
    assert first.wait(30)
    second = operators.start("b")
    asked(double, 10)
    assert (first.is_held(), second.is_held(), holder(double)) == (True, False, "a")
    spec = double.objects[PATH]["spec"]
    assert (spec["leaseDurationSeconds"], spec["leaseTransitions"]) == (20, 0)
    assert spec["acquireTime"] <= spec["renewTime"]


def test_the_times_leave_no_moment_in_which_two_may_write() -> None:
    assert WRITE_SECONDS + ATTEMPT_SECONDS <= DURATION_SECONDS


def test_a_dead_holder_is_replaced_after_the_whole_duration_and_not_before(
    operators: Operators, double: ApiDouble
) -> None:
    first = operators.start("a")
    assert first.wait(30)
    operators.cut_off(first)
    second = operators.start("b")
    asked(double)
    operators.now += DURATION_SECONDS
    asked(double)
    assert not second.is_held()
    assert not first.is_held(), "it stopped writing long before"
    operators.now += 0.1
    assert second.wait(30)
    assert (holder(double), double.objects[PATH]["spec"]["leaseTransitions"]) == ("b", 1)


def test_lease_holder_that_cannot_renew_stops_writing_until_it_can(
    operators: Operators, double: ApiDouble
) -> None:
    first = operators.start("a")
    assert first.wait(30)
    double.away = True
    asked(double)
    assert first.is_held(), "a short trouble is none"
    operators.now += WRITE_SECONDS
    assert not first.is_held()
    double.away = False
    wait_until(first.is_held, "the API server is back")
    assert operators.lost == []
    assert double.objects[PATH]["spec"]["leaseTransitions"] == 0


def test_a_renewal_is_one_request(operators: Operators, double: ApiDouble) -> None:
    assert operators.start("a").wait(30)
    asked(double, 10)
    assert {str(request) for request in double.requests[2:]} == {f"PUT {PATH}"}


def test_a_holder_whose_lease_was_taken_writes_not_a_moment_longer(
    operators: Operators, double: ApiDouble
) -> None:
    first = operators.start("a")
    assert first.wait(30)
    with double.lock:
        taken = double.objects[PATH]
        double.add(PATH, taken | {"spec": taken["spec"] | {"holderIdentity": "b"}})
    wait_until(lambda: operators.lost == ["a"], "the end of the operator")
    assert not first.is_held()
    assert holder(double) == "b"


def test_restart_under_the_same_identity_holds_the_lease_at_once(
    operators: Operators, double: ApiDouble
) -> None:
    first = operators.start("a")
    assert first.wait(30)
    operators.cut_off(first)
    again = operators.start("a")
    assert again.wait(30)
    assert double.objects[PATH]["spec"]["leaseTransitions"] == 0


def test_a_lease_that_is_given_back_is_taken_at_once(operators: Operators, double: ApiDouble) -> None:
    first = operators.start("a")
    assert first.wait(30)
    second = operators.start("b")
    asked(double)
    first.stop()
    assert not first.is_held()
    assert second.wait(30)
    assert holder(double) == "b"
    assert operators.lost == [], "giving back is no loss"


def test_lease_is_given_to_one_of_two_simultaneous_candidates(
    operators: Operators, double: ApiDouble
) -> None:
    both = [operators.start(name) for name in "ab"]
    wait_until(lambda: any(one.is_held() for one in both), "a holder")
    asked(double, 10)
    assert sorted(one.is_held() for one in both) == [False, True]


def test_deleted_lease_is_recreated_without_a_loss_callback(
    double: ApiDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.01)
    held, lost = threading.Event(), threading.Event()
    leadership = Leadership(double.connection(), "dapt", "operator", "a")
    leadership.start(lost.set, held.set)
    assert held.wait(30)
    del double.objects[PATH]
    wait_until(lambda: PATH in double.objects, "a Lease that somebody deleted is made again")
    leadership.stop()
    assert not lost.is_set()


def test_two_renewals_that_hang_are_given_up_before_writes_are_refused() -> None:
    assert module.RENEW_SECONDS + 2 * module.REQUEST_SECONDS + module.RETRY_SECONDS < WRITE_SECONDS


def test_renewal_that_hangs_is_given_up_and_sent_again(
    operators: Operators, double: ApiDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.1)
    first = operators.start("a")
    assert first.wait(30)
    double.odd(f"PUT {PATH}", Odd(drip_seconds=0.01))
    operators.now += WRITE_SECONDS - 0.1
    wait_until(lambda: not double.has_odd, "the request that hangs")
    operators.now += 0.2
    wait_until(first.is_held, "the next renewal")


@pytest.mark.parametrize(
    "lease",
    [b"[]", b'{"metadata": {}, "spec": {"holderIdentity": "b", "leaseDurationSeconds": "long"}}', b"null"],
    ids=["a list", "a duration that is no number", "nothing"],
)
def test_lease_that_cannot_be_read_does_not_end_the_thread(
    operators: Operators, double: ApiDouble, lease: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    double.odd(f"GET {PATH}", *[Odd(200, {}, lease)] * 3)
    first = operators.start("a")
    assert first.wait(30)
    assert first.is_healthy
    assert len([line for line in caplog.messages if "cannot be taken" in line]) <= 1, (
        "one line for each error"
    )


def test_thread_that_hangs_is_not_healthy(operators: Operators) -> None:
    first = operators.start("a")
    assert first.wait(30)
    assert first.is_healthy
    line = operators.lines[first]
    line.is_free.clear()
    assert line.is_busy.wait(30)
    operators.now += module.HANG_SECONDS
    assert not first.is_healthy
    line.is_free.set()
    wait_until(lambda: first.is_healthy, "the next attempt")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_thread_that_an_error_has_ended_is_not_healthy(double: ApiDouble) -> None:
    def fails() -> None:
        raise RuntimeError("whatever it is")

    leadership = Leadership(double.connection(), "dapt", "operator", "a")
    leadership.start(lambda: None, on_held=fails)
    wait_until(lambda: not leadership.is_healthy, "the end of the thread")
    leadership.stop()
    assert leadership.is_healthy, "it was stopped"
