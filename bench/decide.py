"""CPU milliseconds of one decision, by the number of checkpoints with sixteen tasks each; no cluster, no clock.

Half of the candidates are measured, as in the middle of a life. A decision begins at the observed facts, of which the
resource is the same as in the decision before it: that is what a reading, a deadline or a pod's change brings. To read
the facts from the objects takes longer while the Jobs of all finished stages are there; it is printed beside. Last,
what the running operator spends on an adaptation that is woken with nothing new and before its deadline.

    python -m bench.decide [--rounds 300]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from dapt_operator.cluster.kubernetes import Connection
from dapt_operator.cluster.port import Key
from dapt_operator.launchers import LAUNCHERS, all_states
from dapt_operator.plan.decide import Plan, decide
from dapt_operator.plan.observed import Observed, observe
from dapt_operator.reconcile import reconcile
from dapt_operator.runtime import operator
from dapt_operator.runtime.settings import Settings
from dapt_operator.testing.cluster import MemoryCluster
from support.builders import adaptation, merged, profile
from support.grown import GROWN, grown_script

BARS_MILLISECONDS = {4: 1.0, 20: 2.0, 50: 3.0}
NOTHING_NEW_BAR_MILLISECONDS = 0.2


def middle_of_a_life(checkpoints: int) -> tuple[Callable[[], Observed], Callable[[Observed], Any]]:
    """Functions that observe and decide once more about an adaptation of which half the checkpoints are evaluated."""
    cluster, script = MemoryCluster(), grown_script()
    cluster.add_profile(profile())
    spec = merged(GROWN, {"pretraining": {"checkpoints": {"count": checkpoints}}})
    key = cluster.add(adaptation(**spec))
    while sum(row["state"] == "Succeeded" for row in evaluations(cluster.status(key))) < checkpoints // 2:
        plan = reconcile(cluster, key, LAUNCHERS, local=False)
        if plan.is_empty:
            assert plan.requeue_after is not None
            cluster.run_pods(key, script)
            cluster.advance(plan.requeue_after)
    while not reconcile(cluster, key, LAUNCHERS, local=False).is_empty:
        pass
    world = cluster.observe(key)
    assert world.resource is not None
    resource = world.resource

    def look() -> Observed:
        states = all_states(world.children, world.now, LAUNCHERS)
        return observe(
            resource,
            world.profile,
            states,
            world.now,
            local=False,
            default_profiles=world.default_profiles,
            contents=world.contents,
            is_check_due=world.is_check_due,
        )

    return look, lambda observed: decide(observed, LAUNCHERS["IndexedJob"])


def evaluations(status: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of evaluations."""
    return [row for row in status.get("stages", []) if row["kind"] == "evaluate"]


def nothing_new_milliseconds(rounds: int) -> float:
    """CPU milliseconds of a wake of the operator with nothing new since a reconcile that had nothing to do."""
    service, key = operator.Operator(Settings(), Connection("http://127.0.0.1:9")), Key("team", "clinical")
    with patch.object(operator, "reconcile", return_value=Plan(requeue_after=3600.0)) as reconciled:
        service.reconcile_one(key)
        begun = time.process_time()
        for _ in range(rounds):
            service.reconcile_one(key)
        milliseconds = 1000 * (time.process_time() - begun) / rounds
        assert reconciled.call_count == 1
    return milliseconds


def main() -> int:
    """Measure and print; 0 when all bars are reached."""
    parser = argparse.ArgumentParser(prog="python -m bench.decide")
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    short = False
    for checkpoints, bar in BARS_MILLISECONDS.items():
        look, judge = middle_of_a_life(checkpoints)
        judge(look())
        looking, milliseconds = [], []
        for _ in range(options.rounds):
            begun = time.process_time()
            observed = look()
            seen = time.process_time()
            judge(observed)
            looking.append(1000 * (seen - begun))
            milliseconds.append(1000 * (time.process_time() - seen))
        print(f"observing at {checkpoints}: {statistics.median(looking):.3f} ms", file=sys.stderr)
        median = statistics.median(milliseconds)
        verdict = "ok" if median <= bar else "short"
        print(f"decide.milliseconds_at_{checkpoints}_checkpoints {median:.3f} {bar:g} {verdict}", flush=True)
        short |= median > bar
    at_rest = nothing_new_milliseconds(options.rounds)
    verdict = "ok" if at_rest <= NOTHING_NEW_BAR_MILLISECONDS else "short"
    bar = NOTHING_NEW_BAR_MILLISECONDS
    print(f"decide.milliseconds_with_nothing_new {at_rest:.3f} {bar:g} {verdict}", flush=True)
    short |= at_rest > bar
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
