"""Penalties against forgetting behind one interface: EWC, L2-SP and KL to the base model (docs/training.md)."""

from dapt_trainer.training.regularization.fisher import estimate_fisher
from dapt_trainer.training.regularization.penalty import Penalty, Row, causal_predictions, held_back
from dapt_trainer.training.regularization.single_process import build

__all__ = ["Penalty", "Row", "build", "causal_predictions", "estimate_fisher", "held_back"]
