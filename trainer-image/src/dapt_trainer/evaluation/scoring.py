"""Computes log-likelihoods of continuations under a causal language model, for every measure.

A request is a `Tree`: a context and one or more continuations of it. The tokens of a tree lie in one row, context first
and continuations after it; a continuation attends to the context and itself, never to its neighbours, and its positions
continue after the context's end. So a context that four answers share is computed once, and the result is that of four
separate rows. One comparison finds the models for which that does not hold (they ignore the mask, or do not read
`position_ids`); they get one row for each continuation.

Padding is on the right: under causal attention no token attends to a later one, so padding changes nothing.

The memory of logits is bounded: the output head computes only the positions that are scored, a few hundred at a time. A
hook takes the head's input out of the model's own forward pass, and what the model does with its logits afterwards
(soft-capping, scaling) is done to them; where a comparison shows that this is not all, the whole logits of the forward
pass are used.

Shape suffixes: B rows, L padded length, H hidden size, N scored positions, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from dapt_trainer.evaluation.output_head import (
    Change,
    ModelInputs,
    callable_head,
    changes_of_logits,
    hidden_before,
    is_same,
)
from dapt_trainer.evaluation.sharing.work_share import ALL_WORK, WorkShare
from dapt_trainer.modeling.loading.sharding import is_sharded, unwrapped

LOGITS_BYTES = 256 * 1024 * 1024
"""Bound of the fp32 logits that exist at a time, with the copies that the loss makes of them."""
_COPIES = 3
LONGEST_SHARED_TOKENS = 8192
"""Longest row that holds several continuations: its mask has the square of it in elements. Rows longer than a batch
stand alone, so no other row has a mask of their length either."""
_SHARING_TOLERANCE_NATS = 1e-2
"""Sums over a continuation agree far better in fp32 (1e-5); bf16 rounds differently in another order."""


@dataclass(frozen=True)
class Tree:
    """Holds a context of at least one token, and continuations of at least one token each."""

    context: Sequence[int]
    continuations: tuple[Sequence[int], ...]

    @property
    def length(self) -> int:
        """Return the tokens of its row; a continuation's last token is predicted, never read."""
        return len(self.context) + sum(len(tokens) - 1 for tokens in self.continuations)

    def separated(self) -> list[Tree]:
        """Return one tree for each continuation."""
        return [Tree(self.context, (tokens,)) for tokens in self.continuations]


@dataclass(frozen=True)
class Scored:
    """Holds the result of one continuation."""

    log_likelihood_nats: float
    """Sum over its tokens."""
    greedy: bool
    """Whether every token is the model's first choice."""


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Return batches of indices, sorted by length, longest first; rows x longest row stays within `batch_tokens`.

    A row longer than that is a batch of its own.
    """
    batches: list[list[int]] = []
    # By index too: every rank makes the same batches, of which it then takes its own.
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode without gradients while the block runs, and restore every module's mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


class Scorer:
    """Scores batches of trees with one model. Use it inside `evaluating(model)`."""

    def __init__(self, model: torch.nn.Module, *, pad_id: int, logits_bytes: int = LOGITS_BYTES) -> None:
        self.model = model
        self._core = unwrapped(model)
        self.pad_id = pad_id
        self._logits_bytes = logits_bytes
        self._can_share_contexts: bool | None = None
        # Every forward pass of such a model, and every use of its head, is a collective of all ranks.
        self.is_sharded = is_sharded(model)
        self._can_call_head = True

    def can_share_contexts(self, trees: Sequence[Tree], share: WorkShare) -> bool:
        """Return whether trees of several continuations may stand in one row; all ranks call it and agree.

        Decided once for a model, by the shortest of these trees, and before the trees are divided over the ranks: each
        rank then makes the same number of forward passes.

        Args:
            trees: the same on every rank.
            share: of this rank.
        """
        if self._can_share_contexts is None:
            several = [tree for tree in trees if len(tree.continuations) > 1]
            if not several:
                return True
            self._can_share_contexts = share.all_agree(self._is_sharing_exact(several), self._device)
        return self._can_share_contexts

    @property
    def _device(self) -> torch.device:
        return torch.device(next(self._core.parameters()).device)

    def score(self, trees: Sequence[Tree]) -> list[list[Scored]]:
        """Return one list for each tree with one result for each continuation, in order."""
        if all(len(tree.continuations) == 1 for tree in trees):
            return self._score_rows(trees)
        if self.can_share_contexts(trees, ALL_WORK):
            return self._score_rows(trees)
        return self._score_separately(trees)

    def _score_separately(self, trees: Sequence[Tree]) -> list[list[Scored]]:
        single = [row for tree in trees for row in tree.separated()]
        lengths = [tree.length for tree in single]
        results: dict[int, Scored] = {}
        for batch in batches_by_length(lengths, len(trees) * max(tree.length for tree in trees)):
            rows = self._score_rows([single[index] for index in batch])
            results |= zip(batch, (row[0] for row in rows), strict=True)
        in_order = iter(results[index] for index in range(len(single)))
        return [[next(in_order) for _ in tree.continuations] for tree in trees]

    def _is_sharing_exact(self, trees: Sequence[Tree]) -> bool:
        """Return whether the shortest of the trees, all of several continuations, has the same result in one row and
        in separate rows."""
        implementation = getattr(getattr(self._core, "config", None), "_attn_implementation", None)
        if implementation not in ("sdpa", "eager"):
            return False  # other kernels accept no mask of this form
        probe = [min(trees, key=lambda tree: tree.length)]
        try:
            shared = self._score_rows(probe)
        except (TypeError, ValueError, RuntimeError):
            return False  # the model accepts no mask or positions
        separate = self._score_separately(probe)
        return all(
            abs(in_shared.log_likelihood_nats - in_own.log_likelihood_nats) <= _SHARING_TOLERANCE_NATS
            for shared_row, own_rows in zip(shared, separate, strict=True)
            for in_shared, in_own in zip(shared_row, own_rows, strict=True)
        )

    def _score_rows(self, trees: Sequence[Tree]) -> list[list[Scored]]:
        layout = _Layout(trees, self.pad_id)
        losses_n, first_n = self._losses(layout, self._device)
        results: list[list[Scored]] = []
        start = 0
        for tree in trees:
            row = []
            for tokens in tree.continuations:
                stop = start + len(tokens)
                row.append(Scored(-float(losses_n[start:stop].sum()), bool(first_n[start:stop].all())))
                start = stop
            results.append(row)
        return results

    def _losses(self, layout: _Layout, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return negative log-likelihoods [N] in float64, and whether each target is the first choice [N]."""
        rows_n, columns_n = layout.rows_n.to(device), layout.columns_n.to(device)
        targets_n = layout.targets_n.to(device)
        inputs = layout.inputs(device, next(self._core.parameters()).dtype)
        head = self._core.get_output_embeddings() if self._can_call_head else None
        if head is not None:
            hidden_blh, probe_11v = hidden_before(head, self.model, inputs)
            with callable_head(head, is_sharded=self.is_sharded) as head_of:
                change = self._change_after_head(head, head_of(hidden_blh[:1, -1:]), probe_11v)
                if change is not None:
                    # The scored positions alone are needed; all others are freed before the logits exist.
                    hidden_nh = hidden_blh[rows_n, columns_n]
                    del hidden_blh
                    return self._in_chunks(
                        lambda part: change(head_of(hidden_nh[part])), targets_n, probe_11v.shape[-1]
                    )
            del hidden_blh
            self._can_call_head = False
        logits_blv = self.model(**inputs).logits
        return self._in_chunks(
            lambda part: logits_blv[rows_n[part], columns_n[part]], targets_n, logits_blv.shape[-1]
        )

    def _change_after_head(
        self, head: torch.nn.Linear, plain_11v: torch.Tensor, probe_11v: torch.Tensor
    ) -> Change | None:
        """Return what makes the model's logits of the head's output; None where that is not known.

        Args:
            head: the output head.
            plain_11v: its output for one position.
            probe_11v: the model's logits there.
        """
        for change in changes_of_logits(self._core.config):
            is_exact = is_same(probe_11v, change(plain_11v), head)
            # Ranks that gather the head together must also leave it together.
            if self.is_sharded:
                everyone = WorkShare(world_size=torch.distributed.get_world_size())
                is_exact = everyone.all_agree(is_exact, plain_11v.device)
            if is_exact:
                return change
        return None

    def _in_chunks(
        self, logits_of: Callable[[slice], torch.Tensor], targets_n: torch.Tensor, vocabulary: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the losses a few hundred positions at a time; `logits_of` returns the logits [n, V] of a slice."""
        size = max(1, self._logits_bytes // (4 * vocabulary * _COPIES))
        losses, firsts = [], []
        for start in range(0, len(targets_n), size):
            part = slice(start, start + size)
            # fp32 for the sum over the vocabulary, and float64 below for the sums over whole documents.
            logits_nv = logits_of(part).float()
            target_n = targets_n[part]
            chosen_n = logits_nv.gather(1, target_n[:, None])[:, 0]
            losses.append((torch.logsumexp(logits_nv, dim=1) - chosen_n).double().cpu())
            firsts.append((logits_nv.argmax(dim=1) == target_n).cpu())
        return torch.cat(losses), torch.cat(firsts)


Advance = Callable[[float], None]
"""Is called with the share of the work that is done, 0 to 1, after each batch."""


def score_shared(
    scorer: Scorer,
    trees: Sequence[Tree],
    *,
    batch_tokens: int,
    share: WorkShare,
    advance: Advance | None = None,
) -> dict[int, Scored]:
    """Score this rank's share and return the results by the continuation's number, counted over all trees.

    Args:
        scorer: of the model.
        trees: the same on every rank.
        batch_tokens: padded tokens of one forward pass.
        share: of this rank.
        advance: called after each batch, equally often on every rank.
    """
    with evaluating(scorer.model):
        # 1. Put the continuations into rows.
        most = LONGEST_SHARED_TOKENS if scorer.can_share_contexts(trees, share) else 0
        trees = [row for tree in trees for row in ([tree] if tree.length <= most else tree.separated())]
        firsts = _first_numbers(trees)
        lengths = [tree.length for tree in trees]
        # 2. Put the rows into batches. Few rows are spread over all shares, not put into one full batch of the first.
        batches = batches_by_length(lengths, min(batch_tokens, max(1, sum(lengths) // share.count)))
        rounds = -(-len(batches) // share.count)
        # 3. Score every `count`-th batch.
        results: dict[int, Scored] = {}
        for number in range(rounds):
            batch_number = number * share.count + share.index
            if batch_number < len(batches):
                batch = batches[batch_number]
                scored = scorer.score([trees[index] for index in batch])
                for index, row in zip(batch, scored, strict=True):
                    results |= enumerate(row, start=firsts[index])
            elif scorer.is_sharded:
                # A forward pass of a sharded model needs all ranks, also those with no batch left.
                scorer.score([Tree((scorer.pad_id,), ((scorer.pad_id,),))])
            if advance is not None:
                advance((number + 1) / rounds)
    return results


def score_everywhere(
    scorer: Scorer,
    trees: Sequence[Tree],
    *,
    batch_tokens: int,
    share: WorkShare,
    advance: Advance | None = None,
) -> list[Scored]:
    """Return the results of all continuations in order, on every rank; each rank scores its share.

    Args:
        scorer: of the model.
        trees: as in `score_shared`.
        batch_tokens: as in `score_shared`.
        share: of this rank.
        advance: as in `score_shared`.
    """
    own = score_shared(scorer, trees, batch_tokens=batch_tokens, share=share, advance=advance)
    # [continuations, 2]. Each one is scored in one share and is zero in all others, so the sum is its value, exactly.
    values = torch.zeros(sum(len(tree.continuations) for tree in trees), 2, dtype=torch.float64)
    for number, scored in own.items():
        values[number, 0], values[number, 1] = scored.log_likelihood_nats, scored.greedy
    sums = share.sum(values.to(next(scorer.model.parameters()).device))
    return [Scored(nats, bool(greedy)) for nats, greedy in sums.tolist()]


def _first_numbers(trees: Sequence[Tree]) -> list[int]:
    """Return the number of each tree's first continuation, counted over all trees."""
    return list(itertools.accumulate((len(tree.continuations) for tree in trees), initial=0))[:-1]


class _Layout:
    """Lays out the tokens of a batch of trees in rows, and records which position predicts which target."""

    def __init__(self, trees: Sequence[Tree], pad_id: int) -> None:
        longest = max(tree.length for tree in trees)
        self._tokens_bl = torch.full((len(trees), longest), pad_id, dtype=torch.long)
        self._positions_bl = torch.zeros((len(trees), longest), dtype=torch.long)
        self._segments_bl = torch.full((len(trees), longest), -1, dtype=torch.long)
        self._plain = all(len(tree.continuations) == 1 for tree in trees)
        rows: list[int] = []
        columns: list[int] = []
        targets: list[int] = []
        for row, tree in enumerate(trees):
            context = len(tree.context)
            self._place(row, 0, tree.context, 0, 0)
            start = context
            for number, tokens in enumerate(tree.continuations, start=1):
                self._place(row, start, tokens[:-1], context, number)
                rows += [row] * len(tokens)
                # A position predicts the next token: the context's last one predicts the first of every continuation.
                columns += [context - 1, *range(start, start + len(tokens) - 1)]
                targets += list(tokens)
                start += len(tokens) - 1
        self.rows_n = torch.tensor(rows)
        self.columns_n = torch.tensor(columns)
        self.targets_n = torch.tensor(targets)

    def _place(self, row: int, start: int, tokens: Sequence[int], position: int, segment: int) -> None:
        stop = start + len(tokens)
        self._tokens_bl[row, start:stop] = torch.tensor(tokens, dtype=torch.long)
        self._positions_bl[row, start:stop] = torch.arange(position, position + len(tokens))
        self._segments_bl[row, start:stop] = segment

    def inputs(self, device: torch.device, dtype: torch.dtype) -> ModelInputs:
        """Return the arguments of the forward pass, with mask and positions where rows hold several continuations."""
        inputs: ModelInputs = {"input_ids": self._tokens_bl.to(device), "use_cache": False}
        # Causal attention is all that rows of one continuation need.
        if self._plain:
            return inputs
        segments_bl = self._segments_bl
        length = segments_bl.shape[1]
        causal_ll = torch.ones(length, length, dtype=torch.bool).tril()
        same_bll = segments_bl[:, :, None] == segments_bl[:, None, :]
        context_bll = (segments_bl == 0)[:, None, :]
        allowed_bll = causal_ll & (same_bll | context_bll)
        mask_b1ll = torch.zeros(allowed_bll.shape, dtype=dtype).masked_fill(
            ~allowed_bll, torch.finfo(dtype).min
        )
        return inputs | {
            "attention_mask": mask_b1ll[:, None].to(device),
            "position_ids": self._positions_bl.to(device),
        }
