"""Defines prepare, the only stage that reads hubs and object stores: it turns sources into shards and held-out text."""

from typing import Final, Literal

from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, field_serializer

from dapt_contract.base import (
    LARGEST_COUNT,
    Amount,
    Contract,
    Count,
    DigestText,
    Fraction,
    PositiveCount,
    Row,
    ShortText,
)
from dapt_contract.envelope import digest_of
from dapt_contract.measure import Side
from dapt_contract.stages.common import LoraConfig, Precision, ProbeConfig, TaskConfig
from dapt_contract.stages.tuning_data import TuningDataConfig, TuningDataFacts

_TUNING_FIELDS: Final = frozenset({"tuning_data"})
"""Fields of PrepareConfig about tuning data, which has digests of its own."""
_CHECKED_FIELDS: Final = frozenset(
    {
        "training",
        "global_batch_size",
        "checkpoints_kept",
        "attempts",
        "trains_all_weights",
        "lora",
        "precision",
        "prepared_digest",
        "memory_bytes",
    }
)
"""Fields that prepare checks the corpus and the volume by; a change of them leaves a finished corpus as it is."""
_EVALUATION_FIELDS: Final = frozenset({"tasks", "probes", "evaluation_limit", "evaluation_content"})
"""Fields that decide the evaluation items."""


class TextSource(Contract):
    """Names one source of plain documents."""

    source: str
    """URI: hf://, s3://, gs://, file:// or pvc://; JSONL (.gz, .zst), Parquet or text, by the file's name."""
    text_field: str = "text"
    weight: float = 1.0
    """Multiplies the source's natural share within its side."""
    max_tokens: int | None = None


class TokenizerExtensionConfig(Contract):
    """Configures how the tokenizer is extended."""

    vocabulary_size: int
    """Largest number of new tokens."""
    minimum_frequency: int = 50
    """Occurrences in the domain's training text below which a pair of tokens is not merged."""


class TrainingLength(Contract):
    """Holds what is known of the pretraining before its text is counted: one of three lengths, and its checkpoints."""

    tokens: int | None = None
    steps: int | None = None
    epochs: float | None = None
    """Passes over the domain's text."""
    checkpoints: int = Field(ge=1)


class PrepareConfig(Contract):
    """Configures prepare."""

    model_source: str
    domain: tuple[TextSource, ...]
    general: tuple[TextSource, ...]
    held_out_fraction: float = 0.005
    held_out_max_tokens: int | None = None
    """Upper bound a side; None: `held_out.max_held_out_tokens` of `training`."""
    training: TrainingLength = TrainingLength(epochs=1.0, checkpoints=10)
    sequence_length_tokens: int | None = None
    """None: the model's longest, at most 4,096."""
    document_boundaries: bool = True
    deduplicate: Literal["exact", "near", "none"] = "exact"
    decontaminate: bool = True
    bad_records_max_fraction: float = 0.0
    tuning_data: tuple[TuningDataConfig, ...] = Field(default=(), max_length=2)
    """What fine-tuning and preference tuning will learn from, as far as it is known when prepare starts."""
    tokenizer_extension: TokenizerExtensionConfig | None = None
    tasks: tuple[TaskConfig, ...] = ()
    probes: tuple[ProbeConfig, ...] = ()
    evaluation_limit: int | None = None
    """Items of a task or probe set that are measured; the training text is cleaned of those. None: all."""
    evaluation_content: tuple[tuple[str, str], ...] = ()
    """(source of items, digest of its files), as `TuningDataConfig.content`; empty in a cluster."""
    global_batch_size: int = 1
    """Sequences of one optimizer step; a corpus smaller than one batch is refused."""
    checkpoints_kept: int = 2
    """Checkpoints that must fit on the work volume."""
    attempts: int = Field(default=1, ge=1)
    """Largest number of pretraining attempts, the first included, whose checkpoints should fit."""
    trains_all_weights: bool = False
    """Whether pretraining trains all weights, not adapters."""
    lora: LoraConfig | None = None
    """The adapters that pretraining trains; None where it trains all weights, and in a file from before this field."""
    precision: Precision = "bf16"
    """Precision of the weights in pretraining; for the check of free space."""
    seed: int = 0
    prepared_digest: DigestText | None = None
    """`PrepareFacts.data_digest` of the run before this one: data with another digest is prepared again from its
    sources. None: no run has reported, and whatever lies on the volume is prepared again."""

    memory_bytes: int | None = Field(default=None, ge=1)
    """Memory of the pod, by which the search for near-duplicates is bounded; None: not known."""

    @property
    def corpus_digest(self) -> str:
        """Return the digest of what decides shards and held-out text.

        It covers the evaluation items only where the text is cleaned of them. Tuning data and what prepare merely
        checks are left out: a change of them never makes prepare read the corpus again.
        """
        left_out = (
            _TUNING_FIELDS | _CHECKED_FIELDS | (frozenset() if self.decontaminate else _EVALUATION_FIELDS)
        )
        return digest_of(self.model_dump(mode="json", exclude=set(left_out)))

    @property
    def inputs_digest(self) -> str:
        """Return the digest of what decides the corpus and the evaluation items: a prepare with another must follow."""
        return digest_of(self.model_dump(mode="json", exclude=set(_TUNING_FIELDS | _CHECKED_FIELDS)))

    @property
    def trained_adapters(self) -> LoraConfig | None:
        """Return the adapters that pretraining trains; None where it trains all weights."""
        return None if self.trains_all_weights else self.lora or LoraConfig()


class ModelFacts(Contract):
    """Describes the shape and identity of the base model for the planner."""

    architecture: ShortText
    parameters: PositiveCount
    hidden_size: PositiveCount
    layers: PositiveCount
    vocabulary_size: PositiveCount
    attention_heads: Count
    key_value_heads: Count
    intermediate_size: Count
    max_positions: PositiveCount
    tied_embeddings: bool
    has_chat_template: bool
    revision: DigestText
    """Immutable revision of the source, or the digest of its content."""
    digest: DigestText
    weights_bytes: Count
    added_tokens: Count | None = None
    """Rows of an extended tokenizer that `parameters` and `vocabulary_size` include; None: these are the base
    model's."""
    head_size: PositiveCount | None = None
    """Width of one attention head; None: hidden size over heads."""
    gated_mlp: bool = True
    """Whether an MLP has three matrices (gate, up, down) or two."""
    linear_dimensions: Count | None = None
    """Inputs and outputs summed over all linear layers but the head: what a LoRA of rank 1 trains. None: unknown."""
    active_parameters: PositiveCount | None = None
    """Parameters that one token passes, of a mixture of experts; None: all of them."""

    @property
    def parameters_of_a_token(self) -> int:
        """Return the parameters that one token passes."""
        return self.active_parameters or self.parameters

    @property
    def query_width(self) -> int:
        """Return the outputs of the query matrix: attention heads times the width of one."""
        return self._width_of_a_head * self.attention_heads

    @property
    def key_width(self) -> int:
        """Return the outputs of the key matrix, and of the value matrix."""
        return self._width_of_a_head * self.key_value_heads

    @property
    def mlp_matrices(self) -> int:
        """Return the number of matrices of one MLP."""
        return 3 if self.gated_mlp else 2

    @property
    def embedding_matrices(self) -> int:
        """Return the number of matrices with a row for each token: the embedding, and an untied head."""
        return 1 if self.tied_embeddings else 2

    @property
    def _width_of_a_head(self) -> int:
        return self.head_size or self.hidden_size // max(1, self.attention_heads)

    def with_added_tokens(self, added_tokens: int) -> "ModelFacts":
        """Return the facts of the model with as many new tokens: each has a row in every embedding matrix."""
        rows = added_tokens * self.embedding_matrices
        return self.model_copy(
            update={
                "parameters": self.parameters + rows * self.hidden_size,
                "vocabulary_size": self.vocabulary_size + added_tokens,
                "added_tokens": added_tokens,
            }
        )


class TokenizerFacts(Contract):
    """Says what extending the tokenizer saved, in tokens a word (a run of non-space characters) of held-out text."""

    added_tokens: Count
    domain_tokens_per_word_before: Amount
    domain_tokens_per_word_after: Amount
    general_tokens_per_word_before: Amount
    general_tokens_per_word_after: Amount
    model_digest: DigestText | None = None
    """Digest of the weights of the extended model; None in facts from before this field."""


def source_label(side: Side, index: int) -> str:
    """Return how every text for people names a source: `domain[0]`, as in `spec.corpus.domain[0]`."""
    return f"{side}[{index}]"


class SourceFacts(Row):
    """Counts what became of one source."""

    side: Side
    index: Count
    """Index in the list of its side, from 0."""
    documents: Count
    """Documents that are trained on."""
    train_tokens: Count
    sequences: Count
    duplicates: Count = 0
    contaminated: Count = 0
    empty: Count = 0
    bad_records: Count = 0
    held_out_documents: Count = 0
    held_out_tokens: Count = 0
    cut_documents: Count = 0
    fill_fraction: Fraction = 1.0
    """Share of packed positions that hold a token."""
    weight: Amount = 1.0

    @property
    def name(self) -> str:
        """Return the source's name, for example `domain-0`, which is also its folder under data/."""
        return f"{self.side}-{self.index}"

    @property
    def label(self) -> str:
        """Return the source as people know it from the manifest, for example `domain[0]`."""
        return source_label(self.side, self.index)


_SUMMED_FIELDS: Final = tuple(
    name for name in SourceFacts.model_fields if name not in ("side", "index", "fill_fraction", "weight")
)
"""Counts of a source that add up over a side."""


class PrepareFacts(Contract):
    """Holds what the planner reads of a finished prepare."""

    model: ModelFacts
    sources: tuple[SourceFacts, ...] = Field(max_length=20)
    """At most 10 a side. A message that has no place for all has one row a side, with their sums."""
    sequence_length_tokens: PositiveCount
    domain_tokens: Count
    general_tokens: Count
    instruction_examples: Count = 0
    preference_pairs: Count = 0
    near_duplicates: Count = 0
    """Documents of both sides that were dropped as near-duplicates of earlier ones (MinHash); the sources' `duplicates`
    count them too."""
    tokenizer: TokenizerFacts | None = None
    """None: the tokenizer is the base model's."""
    task_items: tuple[tuple[ShortText, Count], ...] = ()
    """(task or probe set, items that are measured), for people; a message leaves it out."""
    data_digest: DigestText
    """Digest of the data manifest but for durations and warnings. One that begins with `sha256:` is of an earlier
    version, and covers the files and the sequence length."""
    tuning_data: tuple[TuningDataFacts, ...] = Field(default=(), max_length=2)
    """What was prepared of `PrepareConfig.tuning_data`; empty also in facts from before that field."""
    warnings: tuple[str, ...] = ()
    """Sentences for people; the message cuts the longest, the report has them in full."""

    def with_sums_of_sides(self) -> "PrepareFacts":
        """Return the facts with the sources of each side as one row; the report has a row for each."""
        rows = []
        sides: tuple[Side, ...] = ("domain", "general")
        for side in sides:
            sources = [source for source in self.sources if source.side == side]
            if sources:
                sums = {
                    name: min(LARGEST_COUNT, sum(getattr(source, name) for source in sources))
                    for name in _SUMMED_FIELDS
                }
                sequences = max(1, sum(source.sequences for source in sources))
                filled = sum(source.fill_fraction * source.sequences for source in sources) / sequences
                rows.append(SourceFacts(side=side, index=0, fill_fraction=min(1.0, filled), **sums))
        return self.model_copy(update={"sources": tuple(rows)})

    @field_serializer("task_items", mode="wrap")
    def _for_people(
        self,
        task_items: tuple[tuple[str, int], ...],
        handler: SerializerFunctionWrapHandler,
        info: SerializationInfo,
    ) -> object:
        return [] if info.context and info.context.get("compact") else handler(task_items)

    @field_serializer("tuning_data", mode="wrap")
    def _as_rows(
        self,
        tuning_data: tuple[TuningDataFacts, ...],
        handler: SerializerFunctionWrapHandler,
        info: SerializationInfo,
    ) -> object:
        if not (info.context and info.context.get("compact")):
            return handler(tuning_data)
        # Shorter, as a message has little space: without names, and with a part of the digest.
        rows = ({**facts.model_dump(), "data_digest": facts.shown_digest or ""} for facts in tuning_data)
        return [list(row.values()) for row in rows]


class PrepareReport(Contract):
    """Adds the details of a prepare run to the facts."""

    facts: PrepareFacts
    resolved_sources: tuple[tuple[str, str], ...] = ()
    """(URI as written, URI as resolved with revision, files and digest)."""
    contamination_by_task: tuple[tuple[str, int], ...] = ()
    near_duplicates_by_source: tuple[tuple[str, int], ...] = ()
    """(source, documents that were dropped as near-duplicates of held-out ones)."""
    contained_by_source: tuple[tuple[str, int], ...] = ()
    """(source, short documents that were dropped since they stand in a held-out one)."""
    shared_by_source: tuple[tuple[str, int], ...] = ()
    """(source, documents that the other side has too; they are held out of neither)."""
    repeats_by_source: tuple[tuple[str, int], ...] = ()
    """(source, documents that were dropped as near-duplicates of earlier ones), with `deduplicate: near`."""
    languages_by_source: tuple[tuple[str, tuple[tuple[str, int], ...]], ...] = ()
    """(source, ((ISO 639-1 code, documents), ...)) of a sample, most frequent first."""
    lengths_by_source: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """(source, tokens of its documents at the 0th, 10th, 25th, 50th, 75th, 90th and 100th percentile)."""
    seconds_by_step: tuple[tuple[str, float], ...] = ()
