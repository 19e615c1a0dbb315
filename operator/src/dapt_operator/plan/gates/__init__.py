"""The gates, each a verdict function; the list gives their order.

A new gate: a module with one function, one line in `GATES`.
"""

from __future__ import annotations

from dapt_operator.plan.gates import minimal_gain, perplexity, task_drop
from dapt_operator.plan.gates.verdict import Gate, GateFacts, Verdict

GATES: tuple[Gate, ...] = (perplexity.judge, task_drop.judge, minimal_gain.judge)
"""In the order in which they are judged and told."""

__all__ = ["GATES", "Gate", "GateFacts", "Verdict"]
