"""Implements penalties against forgetting behind one interface: EWC, L2-SP, KL to the base model (docs/training.md)."""

from dapt_trainer.training.regularization.fisher import estimate_fisher
from dapt_trainer.training.regularization.penalty import Penalty, causal_predictions, penalized_names
from dapt_trainer.training.regularization.single_process import single_process_penalty

__all__ = [
    "Penalty",
    "causal_predictions",
    "estimate_fisher",
    "penalized_names",
    "single_process_penalty",
]
