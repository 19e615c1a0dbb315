"""What a decision costs that finds everything as it was, counted and not timed: it must not grow with checkpoints."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

from dapt_operator.launchers import LAUNCHERS, all_states
from dapt_operator.plan.decide import decide
from dapt_operator.plan.observed import Observed, observe
from dapt_operator.reconcile import reconcile
from dapt_operator.testing.cluster import MemoryCluster
from support.builders import adaptation, merged, profile
from support.grown import GROWN, grown_script

ONCE_A_CANDIDATE = ("evaluate_stage", "checkpoint_model", "with_input_checks", "estimate")
"""Functions that render something of a candidate, and the estimate of the whole."""


def with_evaluated_half(checkpoints: int) -> Callable[[], Observed]:
    """A function that observes an adaptation of which half the checkpoints are evaluated."""
    cluster, script = MemoryCluster(), grown_script()
    cluster.add_profile(profile())
    spec = merged(GROWN, {"pretraining": {"checkpoints": {"count": checkpoints}}})
    key = cluster.add(adaptation(**spec))

    def evaluated() -> int:
        rows = cluster.status(key).get("stages", [])
        return sum(row["kind"] == "evaluate" and row["state"] == "Succeeded" for row in rows)

    while evaluated() < checkpoints // 2:
        plan = reconcile(cluster, key, LAUNCHERS, local=False)
        if plan.is_empty:
            assert plan.requeue_after is not None
            cluster.run_pods(key, script)
            cluster.advance(plan.requeue_after)
    while not reconcile(cluster, key, LAUNCHERS, local=False).is_empty:
        pass

    def look() -> Observed:
        world = cluster.observe(key)
        assert world.resource is not None
        states = all_states(world.children, world.now, LAUNCHERS)
        return observe(world.resource, world.profile, states, world.now, local=False)

    return look


def calls_of_a_decision(observed: Observed) -> Counter[str]:
    """How often each function of ours is called, and how often pydantic validates a value."""
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, function: Any) -> None:
        if event == "call":
            calls[frame.f_code.co_name] += 1
        elif event == "c_call" and function.__name__ == "validate_python":
            calls["validations"] += 1

    sys.setprofile(count)
    try:
        plan = decide(observed, LAUNCHERS["IndexedJob"])
    finally:
        sys.setprofile(None)
    assert plan.is_empty
    return calls


def repeated(checkpoints: int) -> Counter[str]:
    """The calls of a decision that nothing has changed for since the one before it."""
    look = with_evaluated_half(checkpoints)
    decide(look(), LAUNCHERS["IndexedJob"])
    return calls_of_a_decision(look())


def test_repeated_decision_validates_and_renders_nothing_for_a_checkpoint() -> None:
    few, many = repeated(4), repeated(8)
    assert many["validations"] == few["validations"]
    assert {name: many[name] for name in ONCE_A_CANDIDATE} == dict.fromkeys(ONCE_A_CANDIDATE, 0)
