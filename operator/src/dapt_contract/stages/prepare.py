"""prepare: the only stage that reads hubs and object stores. Raw sources in, packed shards and held-out text out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dapt_contract.base import Contract, Row
from dapt_contract.measure import Side
from dapt_contract.stages.common import ProbeConfig, TaskConfig


class TextSource(Contract):
    """One source of plain documents."""

    source: str
    """URI: hf://, s3://, gs://, file:// or pvc://; JSONL (.gz, .zst), Parquet or text, by the file's name."""
    text_field: str = "text"
    weight: float = 1.0
    """Multiplies the source's natural share within its side."""
    max_tokens: int | None = None


class InstructionSource(Contract):
    """One source of SFT examples."""

    source: str
    format: Literal["messages", "promptResponse", "plain"]


class PreferenceInput(Contract):
    """One source of DPO pairs."""

    source: str


class TokenizerExtensionConfig(Contract):
    """How the tokenizer grows."""

    vocabulary_size: int
    """At most so many new tokens."""
    minimum_frequency: int = 50
    """Occurrences in the domain's training text below which a candidate is not taken."""


class TrainingLength(Contract):
    """What is known of the pretraining before its text is counted: one of the three lengths, and its checkpoints."""

    tokens: int | None = None
    steps: int | None = None
    epochs: float | None = None
    """Passes over the domain's text."""
    checkpoints: int = Field(ge=1)


class PrepareConfig(Contract):
    """All that prepare needs to know."""

    model_source: str
    domain: tuple[TextSource, ...]
    general: tuple[TextSource, ...]
    held_out_fraction: float = 0.005
    held_out_max_tokens: int | None = None
    """Of a side; None: by `training`, as `held_out.most_tokens` has it."""
    training: TrainingLength = TrainingLength(epochs=1.0, checkpoints=10)
    sequence_length_tokens: int | None = None
    """None: the model's longest, at most 4,096."""
    document_boundaries: bool = True
    deduplicate: Literal["exact", "near", "none"] = "exact"
    decontaminate: bool = True
    bad_records_max_fraction: float = 0.0
    instructions: tuple[InstructionSource, ...] = ()
    preferences: tuple[PreferenceInput, ...] = ()
    tokenizer_extension: TokenizerExtensionConfig | None = None
    tasks: tuple[TaskConfig, ...] = ()
    probes: tuple[ProbeConfig, ...] = ()
    evaluation_limit: int | None = None
    """Items a task or probe set that are measured: the training text is cleaned of those. None: all."""
    global_batch_size: int = 1
    """Sequences a step: a corpus smaller than one batch is refused."""
    checkpoints_kept: int = 2
    """For the check of free space."""
    attempts: int = Field(default=1, ge=1)
    """Of pretraining at most, the first included; for the same check."""
    trains_all_weights: bool = False
    """Full method: a checkpoint holds weights and two optimizer moments of every parameter."""
    seed: int = 0


class ModelFacts(Contract):
    """What the planner must know of the base model."""

    architecture: str
    parameters: int
    hidden_size: int
    layers: int
    vocabulary_size: int
    attention_heads: int
    key_value_heads: int
    intermediate_size: int
    max_positions: int
    tied_embeddings: bool
    has_chat_template: bool
    revision: str
    """The immutable revision or the content digest that was read."""
    digest: str
    weights_bytes: int
    added_tokens: int | None = None
    """Rows of a grown tokenizer that `parameters` and `vocabulary_size` count; None: they are the base model's own."""
    head_size: int | None = None
    """Width of one attention head; None: hidden size over heads."""
    gated_mlp: bool = True
    """Whether an MLP has three matrices (gate, up, down) or two."""
    linear_dimensions: int | None = None
    """Inputs and outputs summed over all linear layers but the head: what a LoRA of rank 1 trains. None: unknown."""


class TokenizerFacts(Contract):
    """What growing the tokenizer brought; words are runs of non-space characters of the held-out text."""

    added_tokens: int
    domain_tokens_per_word_before: float
    domain_tokens_per_word_after: float
    general_tokens_per_word_before: float
    general_tokens_per_word_after: float


class SourceFacts(Row):
    """Counts of one source after preparation."""

    side: Side
    index: int
    """Place in its side's list, from 0."""
    documents: int
    """Kept for training."""
    train_tokens: int
    sequences: int
    duplicates: int = 0
    contaminated: int = 0
    empty: int = 0
    bad_records: int = 0
    held_out_documents: int = 0
    held_out_tokens: int = 0
    cut_documents: int = 0
    fill_fraction: float = 1.0
    """Share of packed positions that carry a token."""
    weight: float = 1.0

    @property
    def name(self) -> str:
        """`domain-0`, `general-1`: also its folder under data/."""
        return f"{self.side}-{self.index}"


class PrepareFacts(Contract):
    """What the planner reads of a finished prepare."""

    model: ModelFacts
    sources: tuple[SourceFacts, ...] = Field(max_length=20)
    """At most 10 a side."""
    sequence_length_tokens: int
    domain_tokens: int
    general_tokens: int
    instruction_examples: int = 0
    preference_pairs: int = 0
    near_duplicates: int = 0
    """Documents of both sides that were dropped for being near to an earlier one (MinHash); the sources' `duplicates`
    count them too."""
    tokenizer: TokenizerFacts | None = None
    """None: the tokenizer is the base model's."""
    task_items: tuple[tuple[str, int], ...] = ()
    data_digest: str
    warnings: tuple[str, ...] = ()
    """Sentences for people; the longest are cut in the message, the report has them whole."""


class PrepareReport(Contract):
    """Everything worth keeping of a prepare run."""

    facts: PrepareFacts
    resolved_sources: tuple[tuple[str, str], ...] = ()
    """URI as written, and as resolved (revision, files, digest)."""
    contamination_by_task: tuple[tuple[str, int], ...] = ()
    near_duplicates_by_source: tuple[tuple[str, int], ...] = ()
    """Documents that left the training data for being near to held-out ones."""
    repeats_by_source: tuple[tuple[str, int], ...] = ()
    """Near-duplicates of earlier documents of the corpus, with `deduplicate: near`."""
    languages_by_source: tuple[tuple[str, tuple[tuple[str, int], ...]], ...] = ()
    """(source, ((ISO 639-1 code, documents), ...)) of a sample, most frequent first."""
    lengths_by_source: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """(source, tokens of its documents at the 0, 10, 25, 50, 75, 90 and 100th percentile)."""
    seconds_by_step: tuple[tuple[str, float], ...] = ()
