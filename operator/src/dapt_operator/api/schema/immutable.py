"""Defines which blocks of the spec may not change once the stage that needs them has started, or has succeeded.

Two tables are enforced by the API server (a CEL rule per block at the root of the schema, where `oldSelf.status`
can be read) and by the local run (`changed_blocks`), with the same message.
"""

from __future__ import annotations

from typing import Final

from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.status import Frozen

FROZEN_BY: Final[dict[str, str]] = {
    "seed": "prepare",
    "model": "prepare",
    "corpus": "prepare",
    "evaluation": "baseline",
    "profile": "baseline",
    "pretraining": "pretrain",
    "finetuning": "finetune",
    "preference": "align",
}
"""Maps a block of the spec to the stage whose start freezes it."""
FROZEN_BY_SUCCESS: Final[dict[str, str]] = {"output": "publish"}
"""Maps a block of the spec to the stage whose success freezes it: until then its correction is tried."""
FROZEN_BLOCKS: Final = (*FROZEN_BY, *FROZEN_BY_SUCCESS)


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
