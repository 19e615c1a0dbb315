"""Defines which blocks of the spec may not change once the stage that needs them has started, or has succeeded.

Two tables are enforced by the API server (a CEL rule per block at the root of the schema, where `oldSelf.status`
can be read) and by the local run (`changed_blocks`), with the same message.
"""

from __future__ import annotations

from typing import Final

from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.status import Frozen

FROZEN_BY: Final[dict[str, str]] = {
    # Not from the start of prepare: nothing else has read them before the base model is measured, and prepare follows
    # an edit of what it reads (`StagePlan.follows_inputs`). So a mistake that it finds is corrected in place.
    "seed": "baseline",
    "model": "baseline",
    "corpus": "baseline",
    "evaluation": "baseline",
    "profile": "baseline",
    "pretraining": "pretrain",
    "finetuning": "finetune",
    "preference": "align",
}
"""Maps a block of the spec to the stage whose start freezes it."""
FREED_BY_FAILURE: Final = frozenset({"finetune", "align"})
"""Stages that give their block back when they have failed for good: all before them is paid for, and nothing after them
has read the block, so its correction continues the adaptation."""
FROZEN_BY_SUCCESS: Final[dict[str, str]] = {"output": "publish"}
"""Maps a block of the spec to the stage whose success freezes it: until then its correction is tried."""
FROZEN_BLOCKS: Final = (*FROZEN_BY, *FROZEN_BY_SUCCESS)
START_OVER: Final = (
    "start over (`dapt run MANIFEST --fresh`, or delete the DomainAdaptation and create it again)"
)
"""What a user does who must change a frozen block and keeps the name."""


def blocks_frozen_by(stage: str) -> tuple[str, ...]:
    """Return the blocks of a failed stage that stay frozen, named as in a manifest: `spec.corpus`."""
    return () if stage in FREED_BY_FAILURE else blocks_read_by(stage)


def blocks_read_by(stage: str) -> tuple[str, ...]:
    """Return the blocks that the start of a stage freezes, named as in a manifest: `spec.corpus`."""
    return tuple(f"spec.{block}" for block, kind in FROZEN_BY.items() if kind == stage)


def message(block: str) -> str:
    """Return the message about a frozen block that was changed or removed."""
    if block in FROZEN_BY_SUCCESS:
        return (
            f"spec.{block} cannot change any more, since the model is published: restore it, or create a new"
            " DomainAdaptation"
        )
    return (
        f"spec.{block} cannot change any more, since the stage {FROZEN_BY[block]} that reads it has started:"
        " restore it, or create a new DomainAdaptation"
    )


def cel(block: str) -> str:
    """Return the rule for one block in CEL, with `self` and `oldSelf` as the whole object."""
    frozen = (
        "!has(oldSelf.status) || !has(oldSelf.status.frozen)"
        f" || !has(oldSelf.status.frozen.{block}) || !oldSelf.status.frozen.{block}"
    )
    same = (
        f"has(self.spec.{block}) == has(oldSelf.spec.{block})"
        f" && (!has(self.spec.{block}) || self.spec.{block} == oldSelf.spec.{block})"
    )
    return f"{frozen} || ({same})"


def changed_blocks(
    old: DomainAdaptationSpec, new: DomainAdaptationSpec, frozen: Frozen | None
) -> dict[str, str]:
    """Return block -> message for frozen blocks that differ between two versions of a spec. Empty: allowed."""
    if frozen is None:
        return {}
    return {
        block: message(block)
        for block in FROZEN_BLOCKS
        if getattr(frozen, block) and getattr(old, block) != getattr(new, block)
    }
