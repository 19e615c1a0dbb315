"""Defines `spec.model` and `spec.corpus`: the base model, and the text that it reads."""

from typing import Annotated, Literal

from pydantic import Field

from dapt_operator.api.v1alpha1.base import Base, Integer, Rule
from dapt_operator.api.v1alpha1.texts.addresses import ModelUri, SourceUri
from dapt_operator.api.v1alpha1.texts.text_rules import VISIBLE, TextRules


class TokenizerExtension(Base):
    """New tokens learned on the domain corpus."""

    vocabulary_size: Annotated[Integer, Field(ge=1, le=1_000_000)] = 4000
    """Tokens to add. Default 4000: most of the saving in tokens comes from the first few thousand."""
    minimum_frequency: Annotated[Integer, Field(ge=1, le=1_000_000_000)] = 50
    """Occurrences in the domain corpus below which a token is not added. Default 50: rarer rows are never
    trained well."""


class Tokenizer(Base):
    """Changes to the base model's tokenizer."""

    extend: TokenizerExtension | None = None
    """Add tokens of the domain to the vocabulary. Absent: the tokenizer stays as the base model has it."""


class Model(Base):
    """The base model."""

    source: ModelUri
    """Where the base model is read from: hf://org/name@revision, s3://, gs://, pvc://claim/path,
    adaptation://name (the result of another adaptation) or file:// (local runs). A path to one .gguf file
    is accepted."""
    tokenizer: Tokenizer | None = None
    """Changes to the tokenizer. Absent: none."""


class Source(Base):
    """One set of text files of a corpus."""

    source: SourceUri
    """Files, with wildcards: hf://datasets/org/name@revision/files, s3://, gs://, pvc://claim/files or
    file:// (local runs). JSONL (also .gz and .zst), Parquet and plain text are read. Names are taken as they are
    written, with their spaces; links are followed."""
    text_field: Annotated[str, Field(min_length=1, max_length=128), TextRules(VISIBLE)] = "text"
    """Field of a record (JSONL) or column (Parquet) that holds the text. Default text: what most corpora
    use."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Multiplies the source's natural share of tokens within its side. Default 1.0: each source by its size.
    """
    max_tokens: Annotated[Integer, Field(ge=1, le=100_000_000_000_000)] | None = None
    """Read a sample of this many tokens of the base tokenizer, drawn over all files by the seed. Absent: the
    whole source."""


class HeldOut(Base):
    """Text for measuring that is never trained on, chosen by hash of the normalized text; each side has its own
    set."""

    fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.005
    """Share of documents held out. Default 0.005: half a percent measures a large corpus well and costs it
    little."""
    max_tokens: Annotated[Integer, Field(ge=1, le=1_000_000_000)] | None = None
    """Upper bound of held-out tokens for each side. Absent: 1,000,000; in a short run 3 % of the training tokens
    divided by the number of checkpoints, at least 2,000, so that measuring at every checkpoint takes about 2 % of
    the training."""


class Packing(Base):
    """How documents are packed into sequences."""

    document_boundaries: bool = True
    """Keep attention and positions within each document. Default true: otherwise a model learns to attend to
    unrelated text."""


class BadRecords(Base):
    """What happens to records that cannot be read."""

    max_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of a source's records that may be skipped (they are counted); above it the run fails with file
    and line. Default 0.0: bad data is found before it is trained on."""


class Corpus(Base):
    """The text: the domain to learn and the general text that shows what is forgotten."""

    RULES = (
        Rule(
            "replayFraction",
            lambda corpus: not (corpus.general_use == "measure" and (corpus.replay_fraction or 0) > 0),
            "self.generalUse != 'measure' || !has(self.replayFraction) || self.replayFraction == 0.0",
            "generalUse: measure keeps general text out of training, so replayFraction must be 0 or left out;"
            " for replay write generalUse: train",
        ),
        Rule(
            "replayFraction",
            lambda corpus: not (corpus.general_use == "train" and corpus.replay_fraction == 0),
            "self.generalUse != 'train' || !has(self.replayFraction) || self.replayFraction > 0.0",
            "replayFraction 0 with generalUse: train trains on no general text; write generalUse: measure to"
            " switch replay off on purpose, or leave replayFraction out for the measured default",
        ),
    )

    domain: Annotated[tuple[Source, ...], Field(strict=False, min_length=1, max_length=10)]
    """Text of the domain."""
    general: Annotated[tuple[Source, ...], Field(strict=False, min_length=1, max_length=10)]
    """General text, close to what the base model was trained on. Required: without it forgetting cannot be
    measured."""
    general_use: Literal["train", "measure"] = "train"
    """train: general text is replayed in training; measure: it is only held out and measured. Default train:
    a little replay is the cheapest guard against forgetting."""
    replay_fraction: Annotated[float, Field(ge=0, le=0.9)] | None = None
    """Share of training tokens that is general text. Absent: from the measured shift, 0.05 (none) to 0.25
    (strong), recorded in status.resolved; 0 with generalUse: measure."""
    held_out: HeldOut = HeldOut()
    """Text for measuring, on each side."""
    sequence_length: Annotated[Integer, Field(ge=8, le=1_048_576)] | None = None
    """Tokens per training sequence. Absent: 4096, or the model's own limit when that is shorter."""
    packing: Packing = Packing()
    """How documents are packed into sequences."""
    deduplicate: Literal["exact", "near", "none"] = "exact"
    """exact: documents with equal normalized text are read once; near: near-duplicates too; none: everything
    is kept. Default exact: cheap, and repeated text is memorized first."""
    decontaminate: bool = True
    """Drop (and count) training documents that contain an evaluation item. Default true: otherwise scores
    measure memory."""
    bad_records: BadRecords = BadRecords()
    """What happens to records that cannot be read."""
