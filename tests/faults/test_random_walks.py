"""Tenants, nodes, controllers and the API do what they like with four adaptations; then all is put in order.

The cluster in memory checks at every write that no run is created twice or next to another, that no status loses what
it knew, and that kstatus can read the conditions. At the end every adaptation has ended, or was stalled and went on as
its message asked; nothing runs; no Job is unknown; and the GPU-hours are those that the pods have held.
"""

from __future__ import annotations

import traceback
from collections import Counter

from support.campaigns import IS_WHOLE, SEED, Campaign
from support.walks import OPERATIONS, Walk

SEEDS, STEPS = (50, 200) if IS_WHOLE else (2, 60)
MAX_WRITES_A_STEP = 12
"""Status writes that one operation on one of four adaptations may cause, on average over a walk."""


def problem_of_walk(seed: int, used: Counter[str]) -> str:
    """Take a walk; return what is wrong with it, mostly nothing."""
    walk = Walk(seed, STEPS)
    try:
        walk.run()
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        steps = "; ".join(walk.trace[-3:])
        return f"{type(error).__name__}: {error} ({place.name}, after {len(walk.trace)} steps: {steps})"
    used += walk.used
    problems = walk.problems()
    if walk.cluster.writes > MAX_WRITES_A_STEP * STEPS:
        problems.append(f"{walk.cluster.writes} status writes in {STEPS} steps")
    return "; ".join(problems)


def test_adaptations_that_anything_happens_to_reach_an_end() -> None:
    campaign = Campaign("random-walks", f"random walks of {STEPS} steps with four adaptations")
    used: Counter[str] = Counter()
    for seed in range(SEED, SEED + SEEDS):
        campaign.count(f"seed {seed}", problem_of_walk(seed, used))
    campaign.facts = {"kinds of operations": len(used), "operations": sum(used.values())}
    campaign.finish()
    assert not IS_WHOLE or set(used) == set(OPERATIONS), set(OPERATIONS) - set(used)
