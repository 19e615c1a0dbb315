"""Holds one program for each kind of stage: `run(config, context) -> report`.

The map has module names, not modules, so that a stage imports only what it needs (prepare never imports torch).
"""

from __future__ import annotations

STAGE_MODULES: dict[str, str] = {
    "destination": "dapt_trainer.stages.destination",
    "prepare": "dapt_trainer.stages.prepare",
    "baseline": "dapt_trainer.stages.baseline",
    "pretrain": "dapt_trainer.stages.pretrain",
    "blend": "dapt_trainer.stages.blend",
    "evaluate": "dapt_trainer.stages.evaluate",
    "tuning_data": "dapt_trainer.stages.tuning_data",
    "finetune": "dapt_trainer.stages.finetune",
    "align": "dapt_trainer.stages.align",
    "verify": "dapt_trainer.stages.verify",
    "publish": "dapt_trainer.stages.publish",
}
