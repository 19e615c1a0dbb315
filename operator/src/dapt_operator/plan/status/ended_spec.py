"""Says that the spec of an ended adaptation was changed: nothing is done about it any more, and nobody should wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dapt_contract.envelope import digest_of
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.plan.stages.publish import DECIDING_BLOCKS, run_digest

RESULT_BLOCKS: Final = (*DECIDING_BLOCKS, "output")
"""Blocks of the spec that decide the model or where it is; an edit of any other changes nothing about the result."""
_DIGEST_DIGITS: Final = 12
_MARK: Final = "; the spec was changed since"


def block_digests(spec: DomainAdaptationSpec) -> dict[str, str]:
    """Return the beginning of the digest of each block that the result depends on; absent blocks are left out."""
    blocks = spec.to_dict()
    return {
        name: digest_of({name: blocks[name]}).removeprefix("sha256:")[:_DIGEST_DIGITS]
        for name in RESULT_BLOCKS
        if name in blocks
    }


def message_about_edits(
    message: str, status: DomainAdaptationStatus, spec: DomainAdaptationSpec | None
) -> str:
    """Return the message of an end with what the spec no longer agrees in; without that part where it agrees.

    Args:
        message: of the condition, with or without that part.
        status: with the digests of what was run.
        spec: as it is now; None when it cannot be read.
    """
    message = message.partition(_MARK)[0]
    if spec is None or status.digests is None:
        return message
    changed = _changed_blocks(status.digests.blocks, spec)
    if not changed and (status.digests.blocks or status.digests.run in (None, run_digest(spec))):
        return message
    where = f" in {', '.join(changed)}" if changed else ""
    return f"{message}{_MARK}{where} and nothing is done about it: create a DomainAdaptation of another name to run it"


def _changed_blocks(digests: Mapping[str, str], spec: DomainAdaptationSpec) -> tuple[str, ...]:
    if not digests:  # another version ended it
        return ()
    now = block_digests(spec)
    return tuple(name for name in RESULT_BLOCKS if now.get(name) != digests.get(name))
