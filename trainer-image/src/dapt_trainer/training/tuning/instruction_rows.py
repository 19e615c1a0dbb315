"""Tokenizes conversations for fine-tuning and packs them whole into rows, in an order that the seed decides.

Packing is best-fit over the whole data set and cuts nothing: each conversation is in one row, its positions start at 0,
and no attention reaches another conversation (as in the packed corpus). So the loss of a packed batch is the mean over
the response tokens of its conversations, as if each had been read alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dapt_trainer.context import ProgressBoard, SilentProgress
from dapt_trainer.data.chat.rendering import LabelledText
from dapt_trainer.data.chat.tokens import Example, cut_examples
from dapt_trainer.data.packing.best_fit import best_fit
from dapt_trainer.data.packing.mixture import permuted
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.labels import IGNORED_LABEL
from dapt_trainer.modeling.protocols import Tokenizer
from dapt_trainer.training.tuning.chat import LINES_PER_HEARTBEAT, encoder_of, with_template
from dapt_trainer.training.tuning.tuning_lines import read_tuning_lines

_ROW_LENGTH_MULTIPLE = 8
"""Row lengths are multiples of this: tensor cores are fastest then, and few shapes are compiled."""


@dataclass(frozen=True)
class Examples:
    """Holds the examples of a data set, and how many the sequence length cut or dropped."""

    kept: tuple[Example, ...]
    cut: int
    """Number of examples whose end was cut off."""
    dropped: int
    """Number of examples without a response token within the length."""

    @property
    def response_tokens(self) -> int:
        """Return the response tokens of all kept examples."""
        return sum(example.response_tokens for example in self.kept)


def read_texts(folder: Path, expected_digest: str | None = None) -> list[tuple[LabelledText, ...]]:
    """Return the texts of each conversation that was prepared in a folder.

    Raises:
        InputError: as `read_tuning_lines`.
    """
    conversations = []
    for place, record in read_tuning_lines(folder, "spec.finetuning.data", expected_digest):
        texts = record.get("texts")
        try:
            conversations.append(
                tuple(map(LabelledText.of_line, texts if isinstance(texts, list) else [None]))
            )
        except (ValueError, TypeError) as error:
            raise InputError(f"{place}: not an example; run tuning_data again") from error
    return conversations


def tokenize_all(
    tokenizer: Tokenizer,
    folder: Path,
    *,
    sequence_length_tokens: int,
    expected_digest: str | None = None,
    progress: ProgressBoard | None = None,
) -> Examples:
    """Return the examples of all conversations, cut at the sequence length.

    A tokenizer without a chat template gets the plain one, unless every example is plain text.

    Args:
        tokenizer: of the model.
        folder: in which the examples were prepared.
        sequence_length_tokens: no example is longer.
        expected_digest: first digits of the file's SHA-256; None: it is not known.
        progress: gets heartbeats.

    Raises:
        InputError: as `read_tuning_lines`; also when no example has a response within the length.
    """
    board = progress or SilentProgress()
    conversations = read_texts(folder, expected_digest)
    if not all(text.is_plain for texts in conversations for text in texts):
        with_template(tokenizer)
    encoder = encoder_of(tokenizer)
    kept: list[Example] = []
    cut = dropped = 0
    for number, texts in enumerate(conversations):
        if number % LINES_PER_HEARTBEAT == 0:
            board.heartbeat()
        examples, num_cut, num_dropped = cut_examples(texts, encoder, sequence_length_tokens)
        kept += examples
        cut += num_cut
        dropped += num_dropped
    if not kept:
        raise InputError(
            f"none of {len(conversations)} conversations has a response within {sequence_length_tokens} tokens; "
            "raise finetuning.sequenceLength or shorten the prompts"
        )
    return Examples(tuple(kept), cut, dropped)


class PackedExamples:
    """Orders packed rows: row k is packed row P_epoch(k mod n) of epoch k // n.

    The permutation P is new each epoch and a pure function of the seed. An epoch is every packed row once, and so every
    conversation once. Data that packs into less rows than the minimum is spread over as many, as far as it has
    conversations: an epoch fills a global batch, and small data makes enough steps.

    Args:
        examples: none longer than a sequence.
        sequence_length_tokens: no row is longer; all are as long as the fullest one.
        minimum_rows: smallest number of rows of an epoch, at most one an example.
        seed: decides the order.
        padding_id: token id at positions without a token.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        sequence_length_tokens: int,
        minimum_rows: int,
        seed: int,
        padding_id: int,
    ) -> None:
        self._examples = examples
        self._seed = seed
        self._padding_id = padding_id
        lengths = [len(example.input_ids) for example in examples]
        rows = best_fit(lengths, sequence_length_tokens)
        if len(rows) < min(minimum_rows, len(examples)):
            rows = _spread(rows, lengths, min(minimum_rows, len(examples)))
        self._rows = rows
        self._used = [sum(lengths[example] for example in row) for row in rows]
        self.row_length = min(
            -(-max(self._used) // _ROW_LENGTH_MULTIPLE) * _ROW_LENGTH_MULTIPLE, sequence_length_tokens
        )
        self._total = len(rows)

    @property
    def rows(self) -> int:
        """Return the number of packed rows, which is one epoch."""
        return len(self._rows)

    @property
    def fill_fraction(self) -> float:
        """Return the fraction of positions that have a token."""
        return sum(self._used) / (len(self._rows) * self.row_length)

    def members(self, index: int) -> tuple[int, ...]:
        """Return the examples in a row of the order."""
        return tuple(self._rows[self._packed(index)])

    def tokens(self, index: int) -> int:
        """Return the number of positions with a token in a row of the order."""
        return self._used[self._packed(index)]

    def limit(self, rows: int) -> None:
        """Set the number of rows of the whole run."""
        self._total = rows

    def __len__(self) -> int:
        """Return the rows of the whole run; one epoch unless `limit` set it."""
        return self._total

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `labels` and `position_ids` of one row of the order, each int64 [row_length]."""
        ids = np.full(self.row_length, self._padding_id, dtype=np.int64)
        labels = np.full(self.row_length, IGNORED_LABEL, dtype=np.int64)
        positions = np.arange(self.row_length, dtype=np.int64)
        start = 0
        for number in self.members(index):
            example = self._examples[number]
            end = start + len(example.input_ids)
            ids[start:end] = example.input_ids
            labels[start:end] = example.labels
            labels[start] = IGNORED_LABEL  # the token before it belongs to another conversation
            positions[start:] = np.arange(self.row_length - start)
            start = end
        positions[start:] = np.arange(self.row_length - start)  # positions without a token are a segment too
        return {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "position_ids": torch.from_numpy(positions),
        }

    def _packed(self, index: int) -> int:
        epoch, position = divmod(index, len(self._rows))
        chosen = permuted(np.array([position], dtype=np.int64), len(self._rows), (self._seed, 1, epoch))
        return int(chosen[0])


def _spread(rows: Sequence[Sequence[int]], lengths: Sequence[int], num_rows: int) -> list[list[int]]:
    """Split the fullest rows in two until there are `num_rows`; a row of one conversation stays."""
    spread = dict(enumerate(list(row) for row in rows))
    splittable = [(-_tokens_of(row, lengths), number) for number, row in spread.items() if len(row) > 1]
    heapq.heapify(splittable)
    next_number = len(spread)
    while len(spread) < num_rows:
        _, fullest = heapq.heappop(splittable)
        halves: tuple[list[int], list[int]] = ([], [])
        for example in sorted(spread.pop(fullest), key=lambda example: -lengths[example]):
            min(halves, key=lambda half: _tokens_of(half, lengths)).append(example)
        for half in halves:
            spread[next_number] = half
            if len(half) > 1:
                heapq.heappush(splittable, (-_tokens_of(half, lengths), next_number))
            next_number += 1
    return list(spread.values())


def _tokens_of(row: Sequence[int], lengths: Sequence[int]) -> int:
    return sum(lengths[example] for example in row)
