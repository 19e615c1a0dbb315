"""The operator is killed around its API writes, and served by an API server that refuses, cuts and falls silent.

A whole life runs unbroken and its writes are counted. Then lives of the same manifest are broken: SIGKILL before the
n-th write (the API server never hears of it) or after it (it took effect and nobody learned of it). Each must end as
the unbroken one did, without a double or an orphan object. Three lives: a success, a rollback with its selection, and a
deletion while a gang trains. `make test` takes a sample; `make faults` takes every point and records the result.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from support.campaigns import Campaign
from testcluster.adaptations import (
    ROLLBACK,
    STAGES,
    Adaptation,
    forgets_first,
    healthy,
    make_claim,
    make_profile,
    stays_in,
    token_kubeconfig,
)
from testcluster.api_proxy import ApiProxy, Cut, Effect, Refusal
from testcluster.calls import Call
from testcluster.control_plane import ControlPlane
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.operator_process import OperatorProcess
from testcluster.waiting import eventually

POINTS = int(os.environ.get("DAPT_FAULT_API_POINTS", "5"))
"""Kills of each kind; 0: one at every write."""
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600 if POINTS else 6 * 3600)]
SEED = int(os.environ.get("DAPT_FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
OURS = "dapt-operator"
PASSING = ("message", "lastTransitionTime", "startTime", "completionTime", "runKey", "digest")
"""Fields of a status that differ between two lives of the same manifest: times, and what hangs on the uid."""
KEEPER = "tests.example/keep"
"""A finalizer of somebody else: the adaptation stays until it is removed, and what runs must end all the same."""

ONCE = tuple((stage, "1") for stage in STAGES)
"""Stages and attempts of a life without a rollback."""


def by_us(call: Call) -> bool:
    return call.agent == OURS


class Stand:
    """One namespace with a kubelet, a proxy and an operator behind it.

    Args:
        plane: the cluster.
        namespace: where the operator acts.
        resync_seconds: after how long the operator notices what no watch reports.
    """

    def __init__(self, plane: ControlPlane, namespace: str, *, resync_seconds: int = 5) -> None:
        self.plane, self.namespace = plane, namespace
        self._flags = [f"--resync-seconds={resync_seconds}", "--log-level=info"]
        make_claim(plane, namespace)
        self.profile = make_profile(plane)
        self.proxy = ApiProxy(plane)
        self.lives = 0

    def __enter__(self) -> Stand:
        self.proxy.__enter__()
        config = token_kubeconfig(self.plane, self.namespace, self.proxy.url)
        self.operator = OperatorProcess(self.plane, [self.namespace], kubeconfig=config, flags=self._flags)
        self.operator.start()
        self.operator.wait_for("acting")
        return self

    def __exit__(self, *_: object) -> None:
        self.operator.__exit__(None, None, None)
        self.proxy.__exit__(None, None, None)

    def begin(self, **over: Any) -> Adaptation:
        """A new life; `over` is laid over its spec."""
        self.lives += 1
        self.life = Adaptation(self.plane, self.namespace, self.profile, f"life-{self.lives}", **over)
        return self.life

    def bury(self, life: Adaptation) -> None:
        """Delete it; the garbage collector leaves nothing of it."""
        self.plane.api.delete("DomainAdaptation", life.name, self.namespace)
        self.wait_until_gone(life)

    def wait_until_gone(self, life: Adaptation) -> None:
        """Wait until the garbage collector has left nothing of a deleted life."""
        kinds = ("Job", "Pod", "ConfigMap", "Secret", "Service")
        eventually(lambda: not any(life.children(kind) for kind in kinds), "the children's end", seconds=60)

    def clear(self) -> None:
        """Remove a life that did not end as it should, so that the next one has the operator for itself."""
        names = [item["metadata"]["name"] for item in self.plane.api.list("DomainAdaptation", self.namespace)]
        for name in names:
            self.plane.api.patch("DomainAdaptation", name, {"metadata": {"finalizers": None}}, self.namespace)
            self.plane.api.delete("DomainAdaptation", name, self.namespace)
        self.wait_until_gone(self.life)

    def kill_at(self, number: int, when: str) -> list[Call]:
        """Kill the operator at its n-th write from now on and start it again; what it was about to do."""
        struck: list[Call] = []

        def strike(call: Call) -> None:
            self.operator.kill()
            struck.append(call)
            self.operator.start()

        self.proxy.at_write(number, strike, when="before" if when == "before" else "after", where=by_us)
        return struck


@pytest.fixture
def stand(control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet) -> Iterator[Stand]:
    kubelet.script = healthy
    with Stand(control_plane, namespace) as made:
        yield made


@dataclass(frozen=True)
class Unbroken:
    """A life without a fault."""

    end: dict[str, Any]
    num_writes: int
    """How many writes of the operator it took."""


@pytest.fixture(scope="module")
def unbroken(control_plane: ControlPlane) -> Iterator[Unbroken]:
    """The life that all broken ones are compared with, but those with a rollback."""
    namespace = control_plane.make_namespace("unbroken")
    with ScriptedKubelet(control_plane, healthy), Stand(control_plane, namespace) as made:
        life = lived(made)
    yield life
    control_plane.api.delete("Namespace", namespace)


def lasting(value: Any) -> Any:
    """A status without what must differ."""
    if isinstance(value, dict):
        return {name: lasting(item) for name, item in value.items() if name not in PASSING}
    return [lasting(item) for item in value] if isinstance(value, list) else value


def end_of(life: Adaptation) -> dict[str, Any]:
    """Everything that must not depend on faults."""
    status = life.status
    names = (
        "phase",
        "conditions",
        "forgetting",
        "gain",
        "attempt",
        "attempts",
        "frozen",
        "stages",
        "candidates",
        "selected",
    )
    kinds = ("Job", "ConfigMap", "Secret", "Service")
    return {
        "status": lasting({name: status.get(name) for name in names}),
        "restarts": (status.get("usage") or {}).get("restarts"),
        "children": {kind: len(life.children(kind)) for kind in kinds},
        "jobs": Counter(
            tuple(job["metadata"]["labels"][f"dapt.dev/{name}"] for name in ("stage", "attempt", "try"))
            for job in life.jobs()
        ),
    }


def lived(stand: Stand, runs: Sequence[tuple[str, str]] = ONCE, **over: Any) -> Unbroken:
    """Live an unbroken life of these stages and attempts."""
    before = len(stand.proxy.calls)
    life = stand.begin(**over)
    life.wait_for_phase("Published")
    eventually(lambda: any(call.resource == "events" and call.body and call.body.get("reason") == "Published"
               for call in stand.proxy.calls[before:]), "its last Event")  # fmt: skip
    writes = [c for c in stand.proxy.calls[before:] if c.is_write and not c.is_lease and by_us(c)]
    end = end_of(life)
    assert end["jobs"] == Counter((stage, attempt, "1") for stage, attempt in runs)
    stand.bury(life)
    return Unbroken(end, len(writes))


def test_killed_before_and_after_its_writes_it_ends_the_same(stand: Stand, unbroken: Unbroken) -> None:
    killed_around_its_writes(stand, "successful", POINTS, unbroken.num_writes, publishing(stand, unbroken))


def test_operator_killed_during_a_rollback_reaches_the_same_end(
    stand: Stand, kubelet: ScriptedKubelet
) -> None:
    """The decision for another attempt is one write and its Job another; between them it must not be taken twice."""
    kubelet.script = forgets_first
    runs = (
        ("destination", "1"), ("prepare", "1"), ("baseline", "1"), ("pretrain", "1"), ("pretrain", "2"), ("blend", "1"),
        ("blend", "2"), ("evaluate", "2"), ("finetune", "2"), ("verify", "2"), ("publish", "2"),
    )  # fmt: skip
    with_rollback = lived(stand, runs, **ROLLBACK)
    live = publishing(stand, with_rollback, **ROLLBACK)
    killed_around_its_writes(
        stand, "rolled-back", POINTS and max(1, POINTS // 2), with_rollback.num_writes, live
    )


def test_operator_killed_around_a_deletion_leaves_nothing(stand: Stand, kubelet: ScriptedKubelet) -> None:
    kubelet.script = stays_in("pretrain")
    before = len(stand.proxy.calls)
    deleted_while_it_trains(stand, [])
    num_writes = sum(
        call.is_write and not call.is_lease and by_us(call) for call in stand.proxy.calls[before:]
    )
    killed_around_its_writes(
        stand,
        "deleted",
        POINTS and 1,
        num_writes,
        lambda struck: deleted_while_it_trains(stand, struck),
    )


def deleted_while_it_trains(stand: Stand, struck: list[Call]) -> None:
    """Delete an adaptation once its gang trains; what runs must end before a foreign finalizer lets it go."""
    life = stand.begin()
    name, api = life.name, stand.plane.api
    api.patch("DomainAdaptation", name, {"metadata": {"finalizers": [KEEPER]}}, stand.namespace)
    life.wait(lambda one: len(one.running("pretrain")) == 2, "a gang that trains", seconds=120)
    if not struck:
        time.sleep(0.5)  # the status comes after the pods
    stages = [job["metadata"]["labels"]["dapt.dev/stage"] for job in life.jobs()]
    assert sorted(stages) == ["baseline", "destination", "prepare", "pretrain"], "one Job each"
    api.delete("DomainAdaptation", name, stand.namespace)
    eventually(lambda: not life.jobs("pretrain"), "the end of the training", seconds=60)
    assert life.resource["metadata"]["deletionTimestamp"]
    stand.proxy.heal()
    api.patch("DomainAdaptation", name, {"metadata": {"finalizers": None}}, stand.namespace)
    stand.wait_until_gone(life)


def publishing(stand: Stand, unbroken: Unbroken, **over: Any) -> Callable[[list[Call]], None]:
    """A life that must end as the unbroken one did."""

    def live(struck: list[Call]) -> None:
        life = stand.begin(**over)
        life.wait_for_phase("Published", seconds=120)
        if not struck:
            time.sleep(0.5)  # the last Event comes after the phase
        stand.proxy.heal()
        assert end_of(life) == unbroken.end
        stand.bury(life)

    return live


def killed_around_its_writes(
    stand: Stand, name: str, sample: int, num_writes: int, live: Callable[[list[Call]], None]
) -> None:
    """Break lives at a sample of points before and after their writes, at all of them for 0."""
    campaign = Campaign(
        f"kills-{name}",
        f"SIGKILL before and after each write on a real control plane, {name} life",
        is_whole=POINTS == 0,
        seed=SEED,
    )
    points = [(number, when) for number in range(1, num_writes + 1) for when in ("before", "after")]
    if sample:
        points = sorted(random.Random(SEED).sample(points, min(2 * sample, len(points))))
    print(f"seed {SEED}: {len(points)} kills around {num_writes} writes")
    missed = []
    for number, when in points:
        begun, problem = time.monotonic(), ""
        struck = stand.kill_at(number, when)
        try:
            live(struck)
        except AssertionError as error:
            problem = str(error)
            stand.proxy.heal()
            stand.clear()
        if not struck:
            missed.append((number, when))
        point = f"{when} write {number}" + (f" ({struck[0].verb} {struck[0].resource})" if struck else "")
        campaign.count(point, problem)
        print(f"killed {point}: {problem or 'the same end'} after {time.monotonic() - begun:.1f} s")
    campaign.facts = {"writes": num_writes, "kills": len(points) - len(missed)}
    campaign.finish()
    # A stage that ends before it was seen running saves a write, so the last points of one life may not be in another.
    assert all(number > num_writes - 4 for number, _ in missed), missed


@pytest.mark.parametrize(
    "effect",
    [
        pytest.param(Refusal(429, retry_after_seconds=1), id="too-many-requests"),
        pytest.param(Refusal(500), id="internal-error"),
        pytest.param(Refusal(503), id="unavailable"),
        pytest.param(Cut.BEFORE, id="cut-before-it-is-heard"),
        pytest.param(Cut.AFTER, id="cut-after-it-took-effect"),
    ],
)
def test_an_api_server_in_trouble_changes_nothing_of_the_end(
    stand: Stand, unbroken: Unbroken, effect: Effect
) -> None:
    chooser = random.Random(SEED)
    fault = stand.proxy.plant(
        effect,
        lambda call: by_us(call) and not call.is_lease and call.resource != "" and chooser.random() < 0.3,
        times=15,
    )
    life = stand.begin()
    life.wait_for_phase("Published", seconds=180)
    stand.proxy.heal()
    assert fault.hits >= 5
    assert end_of(life) == unbroken.end


def test_watches_that_fell_silent_are_noticed(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = healthy
    # Each stage's end is noticed by the next resync alone.
    with Stand(control_plane, namespace, resync_seconds=1) as stand:
        unbroken = lived(stand)  # also the proof that all watches are open
        assert stand.proxy.silence_watches() > 0
        life = stand.begin()
        life.wait_for_phase("Published", seconds=240)
        assert end_of(life) == unbroken.end


def test_cut_watches_are_opened_again(stand: Stand) -> None:
    unbroken = lived(stand)
    life = stand.begin()
    for _ in range(5):
        assert stand.proxy.cut_watches() > 0
        time.sleep(0.3)
    life.wait_for_phase("Published", seconds=120)
    assert end_of(life) == unbroken.end
