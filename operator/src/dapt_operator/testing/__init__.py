"""Provides a cluster in memory, for tests of dapt and of launchers or gates that others write.

    cluster = MemoryCluster()
    cluster.add_profile(profile)  # an AdaptationProfile as a dictionary
    key = cluster.add(adaptation)  # a DomainAdaptation as a dictionary
    reconcile(cluster, key, LAUNCHERS)  # creates the Job of the first stage
    cluster.run_pods(key, lambda stage_file: Ends(facts=...))  # ends the live runs as the script says

Repeat the last two lines until `cluster.status(key)` is what the test expects; `cluster.advance(seconds)` moves the
time. A plan that breaks an invariant of the planner raises `ImpossibleWorldError`. The product never imports this
package.
"""

from dapt_operator.testing.cluster import MemoryCluster
from dapt_operator.testing.invariants import ImpossibleWorldError
from dapt_operator.testing.objects import Ends, OperatorKilledError, Script, Stays

__all__ = ["Ends", "ImpossibleWorldError", "MemoryCluster", "OperatorKilledError", "Script", "Stays"]
