"""Measures held-out perplexity: the negative log-likelihood of whole documents, over their tokens and bytes.

perplexity = exp(sum of nll over all tokens / number of tokens); bits per byte = sum / (ln 2 x bytes) (Gao et al. 2020,
"The Pile", section 3.1). The sums are returned, never a mean of means: documents count by their tokens.

Masking: every token of every document is scored exactly once, but those of its lead (`packing.leads`). What stands
before the first scored token is what stood there in packed training: begin-of-text where the tokenizer has it; the
lead where documents do not see each other; else end-of-text, which ends the document before. A document longer than
the context is cut into disjoint windows of `context_length_tokens`; each later window is conditioned on the one token
before it (the rolling scheme of lm-evaluation-harness' `get_rolling_token_windows` with context length 1), so a token
is scored with at most `context_length_tokens` tokens before it and the cost is one forward pass over the text. No
token of one document sees another document; end-of-text itself is not scored, because a cut-off document has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from dapt_contract.measure import Perplexity, Side, SidePerplexity
from dapt_trainer.context import ProgressBoard
from dapt_trainer.data.packing.data_manifest import DataManifest, read_manifest
from dapt_trainer.data.packing.held_out import HALVES, HeldOutDocument, held_out_name, read_held_out
from dapt_trainer.data.packing.leads import tokens_of_lead
from dapt_trainer.data.plain_tokenizer import plain_tokenizer
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.base_model.document_losses import DocumentLoss, paired_error
from dapt_trainer.evaluation.scoring import Advance, Scorer, Tree, score_shared
from dapt_trainer.evaluation.sharing.work_share import WorkShare

BATCH_TOKENS = 4096
"""Padded tokens of one forward pass; the logits have a bound of their own."""


class ScoredDocument(Protocol):
    """Describes what perplexity reads of a held-out document."""

    @property
    def ids(self) -> Sequence[int]:
        """Return the tokens for the measured model, without special tokens."""
        ...

    @property
    def lead_tokens(self) -> int:
        """Return how many of the first tokens are not scored."""
        ...

    @property
    def scored_bytes(self) -> int:
        """Return the UTF-8 bytes of the text that is scored."""
        ...


@dataclass(frozen=True)
class HeldOutScoring:
    """Says how held-out text is scored, and which share of it this rank scores."""

    context_length_tokens: int
    """Longest context that a token is scored with."""
    rank: int = 0
    world_size: int = 1
    """Number of ranks; with several, the process group must exist."""
    progress: ProgressBoard | None = None
    """Gets a heartbeat each batch."""
    batch_tokens: int = BATCH_TOKENS
    ranks_per_share: int = 1
    """As in `WorkShare`."""
    manifest: DataManifest | None = None
    """Of the prepared data, compared with what prepare reported; None: it is read from the work volume."""

    @classmethod
    def of_ranks(
        cls,
        ranks: Ranks,
        context_length_tokens: int,
        progress: ProgressBoard,
        manifest: DataManifest,
        ranks_per_share: int = 1,
    ) -> HeldOutScoring:
        """Return how the ranks of a stage score prepared text together."""
        return cls(
            context_length_tokens,
            ranks.rank,
            ranks.world_size,
            progress,
            ranks_per_share=ranks_per_share,
            manifest=manifest,
        )

    @property
    def share(self) -> WorkShare:
        """Return the share of this rank."""
        return WorkShare(self.rank, self.world_size, self.ranks_per_share)


def windows(
    ids: Sequence[int], context_length_tokens: int, end_of_text_id: int, lead_tokens: int = 0
) -> list[Tree]:
    """Cut one document so that each of its tokens is predicted once, but those of its lead."""
    # With a lead the first window begins with it, and end-of-text stands nowhere.
    preceded = list(ids) if lead_tokens else [end_of_text_id, *ids]
    first = lead_tokens or 1
    trees = []
    for start in range(0, len(preceded) - 1, context_length_tokens):
        targets = preceded[max(first, start + 1) : start + context_length_tokens + 1]
        if targets:
            trees.append(Tree(tuple(preceded[start : max(first, start + 1)]), (targets,)))
    return trees


def held_out_perplexity(
    model: torch.nn.Module,
    documents: Sequence[ScoredDocument],
    scoring: HeldOutScoring,
    *,
    end_of_text_id: int,
    advance: Advance | None = None,
) -> Perplexity:
    """Measure `model` on `documents` and return the sums over all ranks, on every rank.

    Arguments and errors are those of `held_out_nats`.
    """
    nats = held_out_nats(model, documents, scoring, end_of_text_id=end_of_text_id, advance=advance)
    return Perplexity(
        nll_nats=math.fsum(nats),
        tokens=sum(len(document.ids) - document.lead_tokens for document in documents),
        bytes=sum(document.scored_bytes for document in documents),
    )


def held_out_nats(
    model: torch.nn.Module,
    documents: Sequence[ScoredDocument],
    scoring: HeldOutScoring,
    *,
    end_of_text_id: int,
    advance: Advance | None = None,
) -> list[float]:
    """Measure `model` on `documents` and return the loss of each in nats, on every rank.

    The model's mode is restored. With several ranks each scores its share.

    Args:
        model: causal language model, which may be wrapped; on its device.
        documents: the same list on every rank.
        scoring: how, and this rank's share.
        end_of_text_id: token before each document without a lead; also the padding.
        advance: gets the share done after each batch.

    Raises:
        InputError: there is no token to score.
    """
    trees: list[Tree] = []
    document_of_tree: list[int] = []
    for number, document in enumerate(documents):
        cut = windows(document.ids, scoring.context_length_tokens, end_of_text_id, document.lead_tokens)
        trees += cut
        document_of_tree += [number] * len(cut)
    if not trees:
        raise InputError("held-out text: no token to score; raise corpus.heldOut.fraction or give more text")

    def after_batch(fraction: float) -> None:
        if scoring.progress is not None:
            scoring.progress.heartbeat()
        if advance is not None:
            advance(fraction)

    results = score_shared(
        Scorer(model, pad_id=end_of_text_id),
        trees,
        batch_tokens=scoring.batch_tokens,
        share=scoring.share,
        advance=after_batch,
    )
    nats = torch.zeros(len(documents), dtype=torch.float64)
    # Each window has one continuation, so a continuation's number is its window's.
    for tree_number, scored in results.items():
        nats[document_of_tree[tree_number]] -= scored.log_likelihood_nats
    summed: list[float] = scoring.share.sum(nats.to(next(model.parameters()).device)).tolist()
    return summed


@dataclass(frozen=True)
class MeasuredSide:
    """Holds the perplexities of one side, and the losses that they are the sums of."""

    perplexity: SidePerplexity
    losses: tuple[DocumentLoss, ...]


def side_perplexity(
    model: torch.nn.Module,
    work: Path,
    side: Side,
    scoring: HeldOutScoring,
    *,
    tokenizer: PreTrainedTokenizerBase,
    advance: Advance | None = None,
    base: Sequence[DocumentLoss] = (),
) -> SidePerplexity:
    """Measure both halves of one side's held-out text; arguments and errors are those of `measure_side`."""
    measured = measure_side(model, work, side, scoring, tokenizer=tokenizer, advance=advance, base=base)
    return measured.perplexity


def measure_side(
    model: torch.nn.Module,
    work: Path,
    side: Side,
    scoring: HeldOutScoring,
    *,
    tokenizer: PreTrainedTokenizerBase,
    advance: Advance | None = None,
    base: Sequence[DocumentLoss] = (),
) -> MeasuredSide:
    """Measure both halves of one side's held-out text on the work volume.

    Args:
        model: as in `held_out_perplexity`.
        work: root of the work volume.
        side: of the corpus.
        scoring: how, this rank's share, and the manifest of the data.
        tokenizer: of the scored weights; used where the adaptation's tokenizer is extended.
        advance: gets the share done after each batch.
        base: losses of the base model, for paired standard errors; empty: there are none.

    Raises:
        InputError: a half or the data manifest is missing, a half is empty, or the base model was measured on other
            documents.
    """
    # Read once: a file that changed after its comparison is not followed.
    manifest = scoring.manifest or read_manifest(work)
    is_extended = manifest.report.facts.tokenizer is not None
    # A tokenizer that begins every text with a token of its own has that token before each document in the packed
    # data, so it stands here too, instead of end-of-text.
    first_id = manifest.end_of_text_id if manifest.begin_of_text_id is None else manifest.begin_of_text_id
    listed = dict(manifest.files)
    measured = []
    losses: list[DocumentLoss] = []
    for number, half in enumerate(HALVES):

        def advance_half(fraction: float, done: int = number) -> None:
            if advance is not None:
                advance((done + fraction) / 2)

        documents = read_held_out(work, side, half, expected_digest=listed.get(held_out_name(side, half)))
        nats = held_out_nats(
            model,
            in_tokens_of(tokenizer, documents) if is_extended else documents,
            scoring,
            end_of_text_id=first_id,
            advance=advance_half,
        )
        # Always the base tokenizer's count: perplexities of the base model and of adapted ones then divide by the
        # same number.
        of_half = [
            DocumentLoss(side=side, half=half, tokens=document.scored_tokens, nats=of_document)
            for document, of_document in zip(documents, nats, strict=True)
        ]
        of_base = [loss for loss in base if loss.side == side and loss.half == half]
        measured.append(
            Perplexity(
                nll_nats=math.fsum(nats),
                tokens=sum(document.scored_tokens for document in documents),
                bytes=sum(document.scored_bytes for document in documents),
                difference_standard_error_nats=paired_error(of_half, of_base) if base else None,
            )
        )
        losses += of_half
    return MeasuredSide(SidePerplexity(a=measured[0], b=measured[1]), tuple(losses))


def in_tokens_of(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[HeldOutDocument]
) -> list[HeldOutDocument]:
    """Return the same documents in another tokenizer's tokens; text that spells a special token stays text.

    Args:
        tokenizer: of transformers, with a fast backend.
        documents: with their texts.
    """
    backend = plain_tokenizer(tokenizer.backend_tokenizer.to_str())
    encodings = backend.encode_batch([document.text for document in documents], add_special_tokens=False)
    return [
        replace(
            document,
            ids=encoding.ids,
            lead_tokens=tokens_of_lead(encoding.offsets, document.lead_characters)
            if document.lead_tokens
            else 0,
        )
        for encoding, document in zip(encodings, documents, strict=True)
    ]
