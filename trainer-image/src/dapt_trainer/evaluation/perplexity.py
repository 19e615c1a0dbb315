"""Held-out perplexity: total negative log-likelihood over tokens and bytes of whole documents.

perplexity = exp(sum of nll over all tokens / number of tokens); bits per byte = sum / (ln 2 x bytes) (Gao et al. 2020,
"The Pile", section 3.1). The sums are returned, never a mean of means: documents count by their tokens.

Masking: every token of every document is scored exactly once. The first token of a document is conditioned on
end-of-text, as it is in packed training. A document longer than the context is cut into disjoint windows of
`context_length_tokens`; each later window is conditioned on the one token before it (the rolling scheme of
lm-evaluation-harness' `get_rolling_token_windows` with context length 1), so a token is scored with at most
`context_length_tokens` tokens before it and the cost is one forward pass over the text. No token of one document sees
another document; end-of-text itself is not scored, because a cut-off document has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from dapt_contract.measure import Perplexity, Side, SidePerplexity
from dapt_trainer.context import ProgressBoard
from dapt_trainer.data.packing.data_manifest import read_manifest
from dapt_trainer.data.packing.held_out import HALVES, HeldOutDocument, read_held_out
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.scoring import Advance, Scorer, Tree, score_shared

BATCH_TOKENS = 4096
"""Padded tokens of one forward pass; the logits are bounded apart from it."""


class ScoredDocument(Protocol):
    """What perplexity needs of a held-out document."""

    @property
    def ids(self) -> Sequence[int]:
        """Tokens of the model that is measured, without special tokens."""
        ...

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of the text."""
        ...


def windows(ids: Sequence[int], context_length_tokens: int, end_of_text_id: int) -> list[Tree]:
    """Cut one document so that each of its tokens is predicted once."""
    preceded = [end_of_text_id, *ids]
    return [
        Tree((preceded[start],), (ids[start : start + context_length_tokens],))
        for start in range(0, len(ids), context_length_tokens)
    ]


def held_out_perplexity(
    model: Any,
    documents: Sequence[ScoredDocument],
    *,
    context_length_tokens: int,
    end_of_text_id: int,
    batch_tokens: int = BATCH_TOKENS,
    rank: int = 0,
    world_size: int = 1,
    progress: ProgressBoard | None = None,
    advance: Advance | None = None,
) -> Perplexity:
    """Measure `model` on `documents`; every rank gets the sums over all ranks.

    The model's mode is restored. With several ranks each scores its share; the process group must exist.

    Args:
        model: causal language model, also wrapped; on its device.
        documents: the same list on every rank.
        context_length_tokens: longest context that a token is scored with.
        end_of_text_id: stands before each document; also the padding.
        batch_tokens: padded tokens of one forward pass.
        rank: this process.
        world_size: number of processes.
        progress: gets a heartbeat each batch.
        advance: gets the share done after each batch.

    Raises:
        InputError: there is no token to score.
    """
    trees = [
        tree
        for document in documents
        for tree in windows(document.ids, context_length_tokens, end_of_text_id)
    ]
    if not trees:
        raise InputError("held-out text: no token to score; raise corpus.heldOut.fraction or give more text")

    def step(fraction: float) -> None:
        if progress is not None:
            progress.heartbeat()
        if advance is not None:
            advance(fraction)

    results = score_shared(
        Scorer(model, pad_id=end_of_text_id),
        trees,
        batch_tokens=batch_tokens,
        rank=rank,
        world_size=world_size,
        advance=step,
    )
    total = -sum(row[0].log_likelihood_nats for row in results.values())
    return Perplexity(
        nll_nats=_sum_over_ranks(total, world_size, model),
        tokens=sum(len(document.ids) for document in documents),
        bytes=sum(document.bytes for document in documents),
    )


def _sum_over_ranks(value: float, world_size: int, model: Any) -> float:
    if world_size == 1:
        return value
    device = next(model.parameters()).device
    total = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return float(total)


def side_perplexity(
    model: Any,
    work: Path,
    side: Side,
    *,
    context_length_tokens: int,
    end_of_text_id: int,
    tokenizer: Any,
    batch_tokens: int = BATCH_TOKENS,
    rank: int = 0,
    world_size: int = 1,
    progress: ProgressBoard | None = None,
    advance: Advance | None = None,
) -> SidePerplexity:
    """Both halves of one side's held-out text on the work volume. Arguments as `held_out_perplexity`.

    Where the adaptation's tokenizer grew, the text is tokenized by `tokenizer`, the one that lies with the weights that
    are scored, and the number of tokens is still that of the base model's tokenizer: perplexities of the base model and
    of adapted ones divide by the same number.

    Where the tokenizer begins every text with a token of its own, that stands before each document in the packed data,
    and here too, instead of end-of-text.

    Raises:
        InputError: a half or the data manifest is missing, or a half is empty.
    """
    manifest = read_manifest(work)
    begin_of_text_id = manifest.begin_of_text_id
    tokenized = None if manifest.report.facts.tokenizer is None else tokenizer
    before_id = end_of_text_id if begin_of_text_id is None else begin_of_text_id
    measured = []
    for number, half in enumerate(HALVES):

        def advance_half(fraction: float, done: int = number) -> None:
            if advance is not None:
                advance((done + fraction) / 2)

        documents = read_held_out(work, side, half)
        base_tokens = sum(len(document.ids) for document in documents)
        measured.append(
            held_out_perplexity(
                model,
                documents if tokenized is None else in_tokens_of(tokenized, documents),
                context_length_tokens=context_length_tokens,
                end_of_text_id=before_id,
                batch_tokens=batch_tokens,
                rank=rank,
                world_size=world_size,
                progress=progress,
                advance=advance_half,
            ).model_copy(update={"tokens": base_tokens})
        )
    return SidePerplexity(a=measured[0], b=measured[1])


def in_tokens_of(tokenizer: Any, documents: Sequence[HeldOutDocument]) -> list[HeldOutDocument]:
    """The same documents in another tokenizer's tokens; a text that spells a special token stays text, as in prepare.

    Args:
        tokenizer: of transformers, with a fast backend.
        documents: with their texts.
    """
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    encodings = backend.encode_batch_fast([document.text for document in documents], add_special_tokens=False)
    return [
        HeldOutDocument(encoding.ids, document.bytes, document.text)
        for encoding, document in zip(encodings, documents, strict=True)
    ]
