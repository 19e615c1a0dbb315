"""Defines tuning_data, which reads the examples of fine-tuning or the pairs of preference tuning, and nothing else.

Prepare reads both at the beginning, so that their faults are found before anything is paid for. Whoever edits them
afterwards, before the stage that learns from them has started, gets a run of this stage: it takes seconds and leaves
the corpus as it is. A configuration names its folder by its digest, so other data is never learned from.
"""

from typing import Final, Literal

from pydantic import Field, model_validator

from dapt_contract.base import Contract, Count, DigestText
from dapt_contract.envelope import digest_of
from dapt_contract.layout import INSTRUCTIONS, PREFERENCES
from dapt_contract.stages.common import ProbeConfig, TaskConfig

TuningKind = Literal["instructions", "preferences"]
"""Examples of fine-tuning, or pairs of preference tuning."""
SHOWN_DIGITS: Final = 16
"""Hexadecimal digits of a digest of tuning data in configurations, messages, the status and the card."""


class FieldNames(Contract):
    """Says which of a record's own fields hold what the stage reads; None: the record is recognized by its fields."""

    prompt: str | None = None
    input: str | None = None
    """Text that belongs to the prompt and follows it, as in Alpaca's records."""
    response: str | None = None
    messages: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    system: str | None = None
    tools: str | None = None
    role: str | None = None
    """Field of a message that names its author."""
    content: str | None = None
    """Field of a message that holds its text."""
    roles: dict[str, str] = Field(default_factory=dict)
    """What the records call a role -> system, user, assistant or tool."""


def data_folder(kind: TuningKind, digest: str) -> str:
    """Return the folder of the data with this `TuningDataConfig.digest`, relative to the work volume."""
    root = INSTRUCTIONS if kind == "instructions" else PREFERENCES
    return f"{root}/{digest}"


class InstructionSource(Contract):
    """Names one source of SFT examples."""

    source: str
    format: Literal["messages", "promptResponse", "plain"]
    fields: FieldNames | None = None


class PreferenceInput(Contract):
    """Names one source of DPO pairs."""

    source: str
    fields: FieldNames | None = None


class TuningDataConfig(Contract):
    """Configures the reading of one kind of tuning data; its digest is the identity of the data."""

    kind: TuningKind
    instructions: tuple[InstructionSource, ...] = ()
    """Sources of examples; empty where `kind` is `preferences`."""
    preferences: tuple[PreferenceInput, ...] = ()
    bad_records_max_fraction: float = 0.0
    sequence_length_tokens: int | None = None
    """Length that the stage cuts at, as the spec has it; None: what prepare packs."""
    decontaminate: bool = True
    """Whether examples with an evaluation item are left out."""
    tasks: tuple[TaskConfig, ...] = ()
    probes: tuple[ProbeConfig, ...] = ()
    evaluation_limit: int | None = None
    content: tuple[tuple[str, str], ...] = ()
    """(source, digest of the names, sizes and modification times of its files), where the files are on the machine that
    plans: files corrected in place are other data. Empty in a cluster, whose operator cannot see them."""
    prepared_digest: DigestText | None = None
    """`PrepareFacts.data_digest`: prepared data with another digest is refused. None: not known, as in prepare."""

    @property
    def digest(self) -> str:
        """Return the identity of the data that this configuration describes: 12 hexadecimal digits."""
        identity = self.model_dump(mode="json", exclude={"prepared_digest"})
        return digest_of(identity).removeprefix("sha256:")[:12]

    @property
    def folder(self) -> str:
        """Return the folder of the data, relative to the work volume."""
        return data_folder(self.kind, self.digest)


class TuningDataFacts(Contract):
    """Counts what became of one kind of tuning data."""

    kind: TuningKind
    config_digest: DigestText
    """`TuningDataConfig.digest` of what was read."""
    records: Count
    """Examples or pairs that can be learned from."""
    data_digest: DigestText = ""
    """SHA-256 of the records as they lie on the work volume; `SHOWN_DIGITS` of it in a message of prepare."""
    bad_records: Count = 0
    contaminated: Count = 0
    """Records left out, since they contain an evaluation item."""
    repeats: Count = 0
    """Pairs left out, since an earlier one has the same text."""
    without_response: Count = 0
    """Records left out, since no token of a response (of both answers of a pair) lies within the sequence length."""
    equal_pairs: Count = 0
    """Pairs left out, since their answers are equal within the sequence length."""
    warnings: tuple[str, ...] = ()
    """Sentences for people; empty in the facts of prepare, which has them among its own."""
    tokens: Count | None = None
    """Tokens of the records, each cut at the sequence length; of a pair both answers count, each with its prompt. None:
    not counted."""

    @property
    def shown_digest(self) -> str | None:
        """Return the beginning of `data_digest`; None where the data was prepared without one."""
        return self.data_digest[:SHOWN_DIGITS] or None

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: object) -> object:
        # Within the facts of prepare, whose message has little space, they are a list in the order of the fields.
        return dict(zip(cls.model_fields, value, strict=False)) if isinstance(value, list | tuple) else value


class TuningDataReport(Contract):
    """Adds what only people read to the facts."""

    facts: TuningDataFacts
    resolved_sources: tuple[tuple[str, str], ...] = ()
    """(URI as written, URI as resolved with revision, files and digest)."""
    warnings: tuple[str, ...] = Field(default=())
