"""The gates: pure functions that say whether a model may be published.

To add a gate, write a module here that ends with `GATE`, a `verdict.Gate`, and add one line to `GATES`. Selection,
verification, the status, the report and `dapt rejudge` read that tuple. A limit that users set is a field of `Gates`
in `api/v1alpha1/spec_evaluation.py`.
"""

from __future__ import annotations

from typing import Final

from dapt_operator.plan.gates import minimal_gain, perplexity, task_drop
from dapt_operator.plan.gates.verdict import FINISHED_MODEL, Gate, GateFacts, Verdict

GATES: Final[tuple[Gate, ...]] = (
    perplexity.GATE,
    task_drop.GATE,
    minimal_gain.GATE,
)
"""In the order in which they judge, and in which their verdicts are reported."""

__all__ = ["FINISHED_MODEL", "GATES", "Gate", "GateFacts", "Verdict"]
