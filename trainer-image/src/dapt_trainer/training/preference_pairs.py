"""Tokenizes preference pairs, which are one prompt and two answers to it, and orders and batches them.

Both answers are rendered by the chat template after the same prompt, as in fine-tuning (`training/chat.py`): an answer
is the assistant's text, up to and including the token that ends its turn. A pair's answers are cut at the sequence
length; a pair whose prompt leaves no space for one of them teaches nothing, so it is left out and counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dapt_contract.layout import PREFERENCES
from dapt_trainer.context import ProgressBoard, SilentProgress
from dapt_trainer.data.packing.mixture import permuted
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.protocols import Tokenizer
from dapt_trainer.training.chat import (
    LINES_PER_HEARTBEAT,
    MAX_TEMPLATE_PROBLEMS,
    Example,
    Messages,
    TemplateError,
    encode,
)


@dataclass(frozen=True)
class Pair:
    """Holds one prompt with its two answers; only the answers have labels."""

    chosen: Example
    rejected: Example

    @property
    def tokens(self) -> int:
        """Return the number of tokens of both texts."""
        return len(self.chosen.input_ids) + len(self.rejected.input_ids)


@dataclass(frozen=True)
class Pairs:
    """Holds the pairs of a data set, and how many the sequence length cut or dropped."""

    kept: tuple[Pair, ...]
    cut: int
    """Number of pairs with an answer whose end was cut off."""
    dropped: int
    """Number of pairs whose prompt leaves no space for an answer."""


def preferences_file(work: Path) -> Path:
    """Return the file in which prepare writes the pairs."""
    return work / PREFERENCES / "train.jsonl"


def tokenize_pair(tokenizer: Tokenizer, prompt: Messages, chosen: Messages, rejected: Messages) -> Pair:
    """Return one pair, uncut.

    Raises:
        TemplateError: the chat template cannot render it.
    """

    def answered(answer: Messages) -> Example:
        examples = encode(tokenizer, [*prompt, *answer], first=len(prompt))
        if len(examples) != 1:
            raise TemplateError(
                "the chat template renders earlier turns differently once later ones follow, so an answer of several "
                "turns has no single text; use answers of one turn"
            )
        return examples[0]

    return Pair(answered(chosen), answered(rejected))


def tokenize_pairs(
    tokenizer: Tokenizer, work: Path, *, sequence_length_tokens: int, progress: ProgressBoard | None = None
) -> Pairs:
    """Return all pairs that prepare wrote, cut at the sequence length.

    Raises:
        InputError: there are none, a line is damaged, the chat template cannot render some of them, or no pair has
            space for both its answers.
    """
    board = progress or SilentProgress()
    path = preferences_file(work)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no preference pairs there; run prepare again") from error
    kept: list[Pair] = []
    cut = dropped = 0
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if number % LINES_PER_HEARTBEAT == 0:
            board.heartbeat()
        if not line:
            continue
        try:
            record = json.loads(line)
            whole = tokenize_pair(tokenizer, record["prompt"], record["chosen"], record["rejected"])
        except TemplateError as error:
            problems.append(f"{path}:{number}: {error}")
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}:{number}: not a preference pair; run prepare again") from error
        else:
            short = Pair(whole.chosen.cut(sequence_length_tokens), whole.rejected.cut(sequence_length_tokens))
            if short.chosen.response_tokens and short.rejected.response_tokens:
                kept.append(short)
                cut += short.tokens < whole.tokens
            else:
                dropped += 1
        if len(problems) == MAX_TEMPLATE_PROBLEMS:
            break
    if problems:
        raise InputError(*problems)
    if not kept:
        pairs = f"none of {dropped} pairs" if dropped else "no pair in it, so none"
        raise InputError(
            f"{path}: {pairs} has a prompt and both answers begun within {sequence_length_tokens} tokens; raise "
            "finetuning.sequenceLength or corpus.sequenceLength, or shorten the prompts"
        )
    return Pairs(tuple(kept), cut, dropped)


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
