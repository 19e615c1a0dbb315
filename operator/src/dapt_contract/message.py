"""The termination message: compact JSON with everything that a gate, a selection or a rollback reads.

Kubernetes keeps the LAST 4,096 bytes of a longer one, which would not be JSON any more, so ours ends at 3.5 KiB; a test
builds the largest legal one of every kind.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field, ValidationError

from dapt_contract.base import Contract, compact_number
from dapt_contract.envelope import ContractError
from dapt_contract.failure import Cause
from dapt_contract.stages import KINDS

MAX_MESSAGE_BYTES = 3584
_MAX_SENTENCE = 600
_WARNING_CHARACTERS = 160


class StageMessage(Contract):
    """How a run ended."""

    key: str
    """Run key."""
    kind: str
    exit_code: int = 0
    cause: Cause | None = None
    message: str = Field(default="", max_length=4096)
    """One sentence for people; for a failure the root cause with its place and the next step."""
    effect: bool = False
    """A failure that a peer's failure explains: a broken collective. It counts only where nothing else failed."""
    facts: dict[str, Any] | None = None
    """The kind's facts; None after a failure, except that pretraining tells its checkpoints then too."""

    def parsed_facts(self) -> Contract | None:
        """Facts as their own model.

        Raises:
            ContractError: the facts do not fit the kind.
        """
        if self.facts is None:
            return None
        if self.kind not in KINDS:
            raise ContractError(f"termination message of unknown kind {self.kind!r}")
        try:
            return KINDS[self.kind].facts.model_validate(self.facts)
        except ValidationError as error:
            raise ContractError(f"termination message of {self.kind}: {error.errors()[0]['msg']}") from error


def encode_message(
    key: str,
    kind: str,
    *,
    exit_code: int = 0,
    cause: Cause | None = None,
    message: str = "",
    effect: bool = False,
    facts: Contract | None = None,
) -> str:
    """Spell a message in at most `MAX_MESSAGE_BYTES` bytes.

    Raises:
        ContractError: facts alone are too long; bounds in the models make that impossible for legal facts.
    """
    body: dict[str, Any] = {"key": key, "kind": kind}
    if exit_code:
        body["exit_code"] = int(exit_code)
    if cause is not None:
        body["cause"] = cause.value
    if effect:
        body["effect"] = True
    if facts is not None:
        body["facts"] = _shorten(
            facts.model_dump(mode="json", exclude_none=True, exclude_defaults=True, context={"compact": True})
        )
    body["message"] = message[:_MAX_SENTENCE]
    for room in (_MAX_SENTENCE, 120, 0):
        body["message"] = message[:room]
        text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
        if len(text.encode()) <= MAX_MESSAGE_BYTES:
            return text
    while body.get("facts", {}).get("warnings"):
        body["facts"]["warnings"].pop()  # the report on the volume has them all
        text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
        if len(text.encode()) <= MAX_MESSAGE_BYTES:
            return text
    raise ContractError(
        f"facts of {kind} take {len(text.encode())} bytes; a message holds {MAX_MESSAGE_BYTES}"
    )


def decode_message(text: str) -> StageMessage:
    """Read what a pod left; hostile input is refused, never evaluated.

    Raises:
        ContractError: too long, not JSON, or not a message.
    """
    if len(text.encode(errors="replace")) > 4096:
        raise ContractError("termination message longer than 4,096 bytes")
    try:
        return StageMessage.model_validate_json(text)
    except ValidationError as error:
        raise ContractError(f"not a termination message: {error.errors()[0]['msg']}") from error


def _shorten(value: Any) -> Any:
    """Six significant digits for floats, cut sentences in `warnings`."""
    if isinstance(value, dict):
        return {
            name: [sentence[:_WARNING_CHARACTERS] for sentence in item]
            if name == "warnings"
            else _shorten(item)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_shorten(item) for item in value]
    return compact_number(value)
