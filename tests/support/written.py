"""Loads the model of a recipe as stages do: written down, then an ordinary folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_recipe(work: Path, reference: Any, *, precision: Any = "fp32", name: str = "recipe") -> Any:
    """The model of a recipe; what is written for it stays below `work/written`."""
    from dapt_trainer.modeling.loading.load_folder import load_model
    from dapt_trainer.modeling.written_models.write_down import write_down

    if not reference.is_plain:
        reference = write_down(work, reference, work / "written" / name, heartbeat=lambda: None).reference
    return load_model(work, reference, precision=precision)
