"""Penalties against forgetting behind one interface: EWC, L2-SP and KL to the base model (docs/training.md)."""

from dapt_trainer.training.regularization.base import Penalty, Row, causal_predictions, held_back
from dapt_trainer.training.regularization.build import build
from dapt_trainer.training.regularization.fisher import estimate_fisher

__all__ = ["Penalty", "Row", "build", "causal_predictions", "estimate_fisher", "held_back"]
