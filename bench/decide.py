"""CPU milliseconds of one decision, by the number of checkpoints with sixteen tasks each; no cluster, no clock.

Half of the candidates are measured, as in the middle of a life. A decision begins at the observed facts, of which the
resource is the same as in the decision before it: that is what a reading, a deadline or a pod's change brings. To read
the facts from the objects takes as long again while the Jobs of all finished stages are there; it goes beside.

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

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from dapt_operator.launchers import LAUNCHERS, all_states
from dapt_operator.plan.decide import decide
from dapt_operator.plan.observed import Observed, observe
from dapt_operator.reconcile import reconcile
from dapt_operator.testing.cluster import MemoryCluster
from support.builders import adaptation, merged, profile
from support.grown import GROWN, grown_script

BARS_MILLISECONDS = {4: 1.0, 20: 2.0, 50: 3.0}


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
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
