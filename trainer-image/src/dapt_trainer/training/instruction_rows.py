"""Tokenizes conversations for fine-tuning and packs them whole into rows, in an order that the seed decides.

Packing is best-fit over the whole data set and cuts nothing: each conversation is in one row, its positions start at 0,
and no attention reaches another conversation (as in the packed corpus). So the loss of a packed batch is the mean over
the response tokens of its conversations, as if each had been read alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dapt_contract.layout import INSTRUCTIONS
from dapt_trainer.context import ProgressBoard, SilentProgress
from dapt_trainer.data.packing.best_fit import best_fit
from dapt_trainer.data.packing.mixture import permuted
from dapt_trainer.data.packing.torch_dataset import IGNORED_LABEL
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.protocols import Tokenizer
from dapt_trainer.training.chat import (
    LINES_PER_HEARTBEAT,
    MAX_TEMPLATE_PROBLEMS,
    Example,
    Messages,
    TemplateError,
    encode,
    encode_plain,
    with_template,
)

_ROW_LENGTH_MULTIPLE = 8
"""Row lengths are multiples of this: tensor cores are fastest then, and few shapes are compiled."""


@dataclass(frozen=True)
class Conversation:
    """Holds one line of the instructions."""

    line: int
    messages: Messages
    plain: bool = False
    """Whether prompt and response are plain text, without a chat template."""


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


def instructions_file(work: Path) -> Path:
    """Return the file in which prepare writes the conversations."""
    return work / INSTRUCTIONS / "train.jsonl"


def read_conversations(work: Path) -> list[Conversation]:
    """Return the conversations that prepare wrote.

    Raises:
        InputError: there are none, or a line is damaged.
    """
    path = instructions_file(work)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no instructions there; run prepare again") from error
    conversations = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
            conversations.append(Conversation(number, record["messages"], bool(record.get("plain"))))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}:{number}: not a list of messages; run prepare again") from error
    if not conversations:
        raise InputError(f"{path}: no conversation in it; give finetuning.data or leave finetuning out")
    return conversations


def tokenize(tokenizer: Tokenizer, conversation: Conversation) -> list[Example]:
    """Return the examples of one conversation, uncut.

    Raises:
        TemplateError: the chat template cannot render it.
    """
    if conversation.plain:
        prompt, response = (message["content"] for message in conversation.messages)
        return [encode_plain(tokenizer, prompt, response)]
    return encode(tokenizer, conversation.messages)


def tokenize_all(
    tokenizer: Tokenizer, work: Path, *, sequence_length_tokens: int, progress: ProgressBoard | None = None
) -> Examples:
    """Return the examples of all conversations, cut at the sequence length.

    A tokenizer without a chat template gets the plain one, unless every example is plain text.

    Raises:
        InputError: none has a response within it, or the chat template cannot render some of them.
    """
    board = progress or SilentProgress()
    conversations = read_conversations(work)
    if not all(conversation.plain for conversation in conversations):
        with_template(tokenizer)
    kept: list[Example] = []
    cut = dropped = 0
    problems: list[str] = []
    for number, conversation in enumerate(conversations):
        if number % LINES_PER_HEARTBEAT == 0:
            board.heartbeat()
        try:
            whole = tokenize(tokenizer, conversation)
        except TemplateError as error:
            problems.append(f"{instructions_file(work)}:{conversation.line}: {error}")
            if len(problems) == MAX_TEMPLATE_PROBLEMS:
                break
            continue
        for example in whole:
            short = example.cut(sequence_length_tokens)
            if short.response_tokens:
                kept.append(short)
                cut += len(short.labels) < len(example.labels)
            else:
                dropped += 1
    if problems:
        raise InputError(*problems)
    if not kept:
        raise InputError(
            f"none of {len(conversations)} conversations has a response within {sequence_length_tokens} tokens; "
            "raise finetuning.sequenceLength or shorten the prompts"
        )
    return Examples(tuple(kept), cut, dropped)


class PackedExamples:
    """Orders packed rows: row k is packed row P_epoch(k mod n) of epoch k // n.

    The permutation P is new each epoch and a pure function of the seed. An epoch is every packed row once, and so every
    conversation once. Data that packs into less than one global batch is spread over as many rows as the batch has, as
    far as it has conversations: an epoch stays a step.

    Args:
        examples: none longer than a sequence.
        sequence_length_tokens: no row is longer; all are as long as the fullest one.
        global_batch_size: rows of an optimizer step.
        seed: decides the order.
        padding_id: token id at positions without a token.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        sequence_length_tokens: int,
        global_batch_size: int,
        seed: int,
        padding_id: int,
    ) -> None:
        self._examples = examples
        self._seed = seed
        self._padding_id = padding_id
        lengths = [len(example.input_ids) for example in examples]
        rows = best_fit(lengths, sequence_length_tokens)
        if len(rows) < min(global_batch_size, len(examples)):
            rows = _spread(rows, lengths, min(global_batch_size, len(examples)))
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
    spread = [list(row) for row in rows]
    while len(spread) < num_rows:
        splittable = (row for row in spread if len(row) > 1)
        fullest = max(splittable, key=lambda row: sum(lengths[number] for number in row))
        spread.remove(fullest)
        halves: tuple[list[int], list[int]] = ([], [])
        for number in sorted(fullest, key=lambda number: -lengths[number]):
            min(halves, key=lambda half: sum(lengths[member] for member in half)).append(number)
        spread += halves
    return spread
