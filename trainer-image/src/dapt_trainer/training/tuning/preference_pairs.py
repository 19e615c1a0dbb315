"""Tokenizes preference pairs, which are one prompt and two answers to it, and orders and batches them.

Both answers were rendered by the chat template after the same prompt, as in fine-tuning (`data/chat`): an answer is the
assistant's text, up to and including the token that ends its turn. A pair's answers are cut at the sequence length. A
pair whose prompt leaves no space for one of them, or whose answers are equal up to there, teaches nothing: it is left
out and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dapt_trainer.context import ProgressBoard, SilentProgress
from dapt_trainer.data.chat.rendering import LabelledText
from dapt_trainer.data.chat.tokens import Lengths, Pair, cut_pair
from dapt_trainer.data.packing.mixture import permuted
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.protocols import Tokenizer
from dapt_trainer.training.tuning.chat import LINES_PER_HEARTBEAT, encoder_of
from dapt_trainer.training.tuning.tuning_lines import read_tuning_lines


@dataclass(frozen=True)
class Pairs:
    """Holds the pairs of a data set, and how many the sequence length cut or dropped."""

    kept: tuple[Pair, ...]
    cut: int
    """Number of pairs with an answer whose end was cut off."""
    dropped: int
    """Number of pairs whose prompt leaves no space for an answer."""
    equal: int = 0
    """Number of pairs whose answers are equal once they are cut."""


def tokenize_pairs(
    tokenizer: Tokenizer,
    folder: Path,
    *,
    sequence_length_tokens: int,
    expected_digest: str | None = None,
    progress: ProgressBoard | None = None,
) -> Pairs:
    """Return all pairs that were prepared in a folder, cut at the sequence length.

    Args:
        tokenizer: of the model.
        folder: in which the pairs were prepared.
        sequence_length_tokens: no text is longer.
        expected_digest: first digits of the file's SHA-256; None: it is not known.
        progress: gets heartbeats.

    Raises:
        InputError: as `read_tuning_lines`; also when no pair has space for both its answers.
    """
    board = progress or SilentProgress()
    encoder = encoder_of(tokenizer)
    kept: list[Pair] = []
    lengths = Lengths()
    records = read_tuning_lines(folder, "spec.preference.data", expected_digest)
    for number, (place, record) in enumerate(records):
        if number % LINES_PER_HEARTBEAT == 0:
            board.heartbeat()
        try:
            chosen, rejected = (LabelledText.of_line(record.get(name)) for name in ("chosen", "rejected"))
        except (ValueError, TypeError) as error:
            raise InputError(f"{place}: not a preference pair; run tuning_data again") from error
        pair = cut_pair(chosen, rejected, encoder, sequence_length_tokens, lengths)
        if pair is not None:
            kept.append(pair)
    if not kept:
        raise InputError(
            f"{folder}: none of {lengths.without_response + lengths.equal} pairs has a prompt and two different "
            f"answers begun within {sequence_length_tokens} tokens; raise finetuning.sequenceLength or "
            "corpus.sequenceLength, or shorten the prompts"
        )
    return Pairs(tuple(kept), lengths.cut, lengths.without_response, lengths.equal)


@dataclass(frozen=True)
class PairRow:
    """Holds a pair with the reference's log-probabilities of both answers in nats, fp32 [2], once they are known."""

    pair: Pair
    reference: npt.NDArray[np.float32] | None


class ShuffledPairs:
    """Orders pairs: row k is pair P_epoch(k mod n) of epoch k // n.

    The permutation P is new each epoch and a pure function of the seed.

    Args:
        pairs: of the data set.
        rows: number of rows of the whole run.
        seed: decides the order.
    """

    def __init__(self, pairs: Sequence[Pair], *, rows: int, seed: int) -> None:
        self.pairs = pairs
        self._rows = rows
        self._seed = seed
        self.reference: npt.NDArray[np.float32] | None = None
        """Log-probabilities by the reference, fp32 [pairs, 2]: chosen, rejected; None until they were computed."""

    def __len__(self) -> int:
        """Return the number of rows of the whole run."""
        return self._rows

    def number(self, index: int) -> int:
        """Return the index of the pair at a row."""
        epoch, position = divmod(index, len(self.pairs))
        chosen = permuted(np.array([position], dtype=np.int64), len(self.pairs), (self._seed, 2, epoch))
        return int(chosen[0])

    def __getitem__(self, index: int) -> PairRow:
        """Return the pair at a row."""
        number = self.number(index)
        return PairRow(self.pairs[number], None if self.reference is None else self.reference[number])


def collate_pairs(rows: Sequence[PairRow], *, padding_id: int) -> dict[str, torch.Tensor]:
    """Return a batch as TRL's DPO loss reads it: all chosen texts, then all rejected ones, padded at their ends.

    Shapes: [2 x pairs, longest text]; the reference's log-probabilities [pairs].
    """
    texts = [row.pair.chosen for row in rows] + [row.pair.rejected for row in rows]
    shape = (len(texts), max(len(text.input_ids) for text in texts))
    ids = torch.full(shape, padding_id, dtype=torch.long)
    attention, completion = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for index, text in enumerate(texts):
        length = len(text.input_ids)
        ids[index, :length] = torch.from_numpy(np.asarray(text.input_ids, dtype=np.int64))
        attention[index, :length] = 1
        completion[index, :length] = torch.from_numpy(np.asarray(text.labels) >= 0)
    batch = {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}
    # Unknown while the reference itself reads the pairs.
    references = [row.reference for row in rows if row.reference is not None]
    if references:
        reference = torch.tensor(np.stack(references))
        batch |= {"ref_chosen_logps": reference[:, 0], "ref_rejected_logps": reference[:, 1]}
    return batch
