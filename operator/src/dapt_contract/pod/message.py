"""Encodes and decodes termination messages: compact JSON with everything that a gate, selection or rollback reads.

Of a longer message Kubernetes keeps the LAST 4,096 bytes, which are not JSON any more. So a message ends at 3.75 KiB; a
test builds the largest legal message of every kind of stage.
"""

import json
from dataclasses import dataclass

from pydantic import Field, ValidationError, field_validator

from dapt_contract.base import Contract, DigestText, ShortText, compact_numbers
from dapt_contract.envelope import ContractError
from dapt_contract.pod.environment import TERMINATION_MESSAGE_BYTES
from dapt_contract.pod.failure import Cause
from dapt_contract.sentences import shortened
from dapt_contract.stages import KINDS
from dapt_contract.stages.prepare import PrepareFacts
from dapt_contract.stages.pretrain import PretrainFacts
from dapt_contract.untrusted.printable import printable, printable_values

MAX_MESSAGE_BYTES = 3840
_SENTENCE_CHARACTERS = (600, 120, 0)
"""Lengths to which the sentence is cut, tried in this order until the message fits."""
_WARNING_CHARACTERS = 160
_VALUE_CHARACTERS = 60
"""Of a value that a sentence about a refused message quotes."""
MORE_WARNINGS = "more warnings in its report: {number}"
"""Stands for the warnings that a message has no place for."""


class StageMessage(Contract):
    """Describes how a run ended."""

    key: DigestText
    """Run key."""
    kind: ShortText
    exit_code: int = Field(default=0, ge=-255, le=255)
    cause: Cause | None = None
    message: str = Field(default="", max_length=TERMINATION_MESSAGE_BYTES)
    """One sentence for people; for a failure the root cause with its place and the next step."""
    effect: bool = False
    """Whether a peer's failure explains this one (a broken collective); it counts only where nothing else failed."""
    facts: dict[str, object] | None = None
    """Facts of the kind of stage; None after a failure, but pretraining reports its checkpoints after a failure too."""

    @field_validator("kind", "message", "facts")
    @classmethod
    def _clean(cls, value: object) -> object:
        return printable_values(value)

    def parsed_facts(self) -> Contract | None:
        """Return the facts as the model of their kind.

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
            raise ContractError(f"termination message of {self.kind}: {_first_problem(error)}") from error


@dataclass(frozen=True)
class RunEnd:
    """Says how a run ended, with a sentence of any length; a success needs no fields."""

    exit_code: int = 0
    cause: Cause | None = None
    message: str = ""
    is_effect: bool = False
    """Whether a peer's failure explains this one."""


def encode_message(key: str, kind: str, end: RunEnd | None = None, *, facts: Contract | None = None) -> str:
    """Return the message of a run as JSON of at most `MAX_MESSAGE_BYTES` bytes.

    The sentence is cut first, then warnings are dropped, then prepare's sources are summed by side, and standard errors
    of pretraining's oldest checkpoints are dropped: the report on the volume has everything in full.

    Args:
        key: run key.
        kind: kind of stage.
        end: how the run ended; None: with success.
        facts: of the kind.

    Raises:
        ContractError: facts alone are too long; bounds in the models make that impossible for legal facts.
    """
    end = end or RunEnd()
    body: dict[str, object] = {"key": key, "kind": kind}
    if end.exit_code:
        body["exit_code"] = int(end.exit_code)
    if end.cause is not None:
        body["cause"] = end.cause.value
    if end.is_effect:
        body["effect"] = True
    warnings: list[str] = []
    if facts is not None:
        # Without defaults: they come back when the message is parsed, and every byte counts.
        dumped = facts.model_dump(
            mode="json", exclude_none=True, exclude_defaults=True, context={"compact": True}
        )
        compact = {name: compact_numbers(value) for name, value in dumped.items()}
        if "warnings" in dumped:
            # The body holds this very list: dropping a warning below shortens the message.
            compact["warnings"] = warnings = [
                shortened(text, _WARNING_CHARACTERS) for text in dumped["warnings"]
            ]
        body["facts"] = compact
    for characters in _SENTENCE_CHARACTERS:
        body["message"] = shortened(end.message, characters)
        text = _compact_json(body)
        if len(text.encode()) <= MAX_MESSAGE_BYTES:
            return text
    num_warnings = len(warnings)
    for num_kept in reversed(range(num_warnings)):
        # Nothing is dropped silently: the last line counts what is in the report alone.
        warnings[num_kept:] = [MORE_WARNINGS.format(number=num_warnings - num_kept)]
        text = _compact_json(body)
        if len(text.encode()) <= MAX_MESSAGE_BYTES:
            return text
    warnings.clear()
    text = _compact_json(body)
    if len(text.encode()) <= MAX_MESSAGE_BYTES:
        return text
    if isinstance(facts, PrepareFacts) and facts.sources != facts.with_sums_of_sides().sources:
        # Twenty rows of large counts are longer than a message; what is summed leaves place for warnings again.
        return encode_message(key, kind, end, facts=facts.with_sums_of_sides())
    if isinstance(facts, PretrainFacts) and (shorter := facts.shorter()) is not None:
        return encode_message(key, kind, end, facts=shorter)
    raise ContractError(
        f"facts of {kind} take {len(text.encode())} bytes; a message holds {MAX_MESSAGE_BYTES}"
    )


def decode_message(text: str) -> StageMessage:
    """Parse the message that a pod left. The text is untrusted: it is validated, never evaluated.

    Raises:
        ContractError: too long, not JSON, or not a message.
    """
    # Half of a surrogate pair, which a hostile pod may send, must not raise here: only the length is wanted.
    if len(text.encode(errors="replace")) > TERMINATION_MESSAGE_BYTES:
        raise ContractError(f"termination message longer than {TERMINATION_MESSAGE_BYTES:,} bytes")
    try:
        return StageMessage.model_validate_json(text)
    except ValidationError as error:
        raise ContractError(f"not a termination message: {_first_problem(error)}") from error


def _compact_json(body: dict[str, object]) -> str:
    # As UTF-8: an escape takes six bytes or twelve where the character takes two to four.
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False)


def _first_problem(error: ValidationError) -> str:
    """Return the first problem in words, with its field and its value as far as it is short."""
    problem = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in problem["loc"])
    value = shortened(_printable(problem["input"]), _VALUE_CHARACTERS) if problem["type"] != "missing" else ""
    sentence = str(problem["msg"])
    return f"{f'{field} is {value}: ' if field and value else f'{field}: ' if field else ''}{sentence}"


def _printable(value: object) -> str:
    # Only plain values: a list or an object would repeat half of the message.
    if not isinstance(value, str | int | float):
        return ""
    try:
        text = str(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number of thousands of digits"
    return printable(text)
