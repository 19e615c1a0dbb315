"""Preference pairs as tokens: one prompt, and two answers to it.

Both answers are rendered by the chat template after the same prompt, as in fine-tuning (`training/chat.py`): an answer
is what the assistant says, up to and with the token that ends its turn. A pair's answers are cut at the sequence
length; a pair whose prompt leaves no room for one of them teaches nothing and is left out, and counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dapt_contract.layout import PREFERENCES
from dapt_trainer.context import ProgressBoard, SilentProgress
from dapt_trainer.data.packing.mixture import permuted
from dapt_trainer.errors import InputError
from dapt_trainer.training.chat import Example, Messages, TemplateError, encode

_MOST_PROBLEMS = 5
_BEAT_EVERY = 256


@dataclass(frozen=True)
class Pair:
    """One prompt with its two answers; labels are on the answers alone."""

    chosen: Example
    rejected: Example

    @property
    def tokens(self) -> int:
        """Of both texts."""
        return len(self.chosen.input_ids) + len(self.rejected.input_ids)


@dataclass(frozen=True)
class Pairs:
    """What is learned from, and what was lost to the sequence length."""

    kept: tuple[Pair, ...]
    cut: int
    """Pairs of which an answer's end was cut off."""
    dropped: int
    """Pairs whose prompt leaves no room for an answer."""


def preferences_file(work: Path) -> Path:
    """Where prepare leaves the pairs."""
    return work / PREFERENCES / "train.jsonl"


def tokenize_pair(tokenizer: Any, prompt: Messages, chosen: Messages, rejected: Messages) -> Pair:
    """One pair, uncut.

    Raises:
        TemplateError: the chat template does not go with it.
    """

    def answered(answer: Messages) -> Example:
        found = encode(tokenizer, [*prompt, *answer], first=len(prompt))
        if len(found) != 1:
            raise TemplateError(
                "the chat template renders earlier turns otherwise once later ones follow, so an answer of several "
                "turns has no one text: give answers of one turn"
            )
        return found[0]

    return Pair(answered(chosen), answered(rejected))


def tokenize_pairs(
    tokenizer: Any, work: Path, *, sequence_length_tokens: int, progress: ProgressBoard | None = None
) -> Pairs:
    """All pairs that prepare left, cut at the sequence length.

    Raises:
        InputError: there are none, a line is damaged, the chat template does not go with some of them, or no pair has
            room for both its answers.
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
        if number % _BEAT_EVERY == 0:
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
        if len(problems) == _MOST_PROBLEMS:
            break
    if problems:
        raise InputError(*problems)
    if not kept:
        found = f"none of {dropped} pairs" if dropped else "no pair in it, so none"
        raise InputError(
            f"{path}: {found} has a prompt and both answers begun within {sequence_length_tokens} tokens; raise "
            "finetuning.sequenceLength or corpus.sequenceLength, or shorten the prompts"
        )
    return Pairs(tuple(kept), cut, dropped)


class ShuffledPairs:
    """Row k is pair P_epoch(k mod n) of epoch k // n: a new permutation each epoch, a pure function of the seed.

    Args:
        pairs: of the data set.
        rows: of the whole run.
        seed: decides the order.
    """

    def __init__(self, pairs: Sequence[Pair], *, rows: int, seed: int) -> None:
        self.pairs = pairs
        self._rows = rows
        self._seed = seed
        self.reference: np.ndarray[Any, Any] | None = None
        """Log-probabilities by the reference, fp32 [pairs, 2]: chosen, rejected; None until they were computed."""

    def __len__(self) -> int:
        """Rows of the whole run."""
        return self._rows

    def number(self, index: int) -> int:
        """The pair at a row."""
        epoch, place = divmod(index, len(self.pairs))
        chosen = permuted(np.array([place], dtype=np.int64), len(self.pairs), (self._seed, 2, epoch))
        return int(chosen[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The pair at a row, with the reference's two log-probabilities in nats once they are known."""
        number = self.number(index)
        row: dict[str, Any] = {"pair": self.pairs[number]}
        if self.reference is not None:
            row["reference"] = self.reference[number]
        return row


def collate_pairs(rows: Sequence[dict[str, Any]], *, padding_id: int) -> dict[str, Any]:
    """A batch as TRL's DPO loss reads it: all chosen texts, then all rejected ones, padded at their ends.

    Shapes: [2 x pairs, longest text]; the reference's log-probabilities [pairs].
    """
    import torch

    texts = [row["pair"].chosen for row in rows] + [row["pair"].rejected for row in rows]
    shape = (len(texts), max(len(text.input_ids) for text in texts))
    ids = torch.full(shape, padding_id, dtype=torch.long)
    attention, completion = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for place, text in enumerate(texts):
        length = len(text.input_ids)
        ids[place, :length] = torch.from_numpy(np.asarray(text.input_ids, dtype=np.int64))
        attention[place, :length] = 1
        completion[place, :length] = torch.from_numpy(np.asarray(text.labels) >= 0)
    batch = {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}
    if "reference" in rows[0]:
        known = torch.tensor(np.stack([row["reference"] for row in rows]))
        batch |= {"ref_chosen_logps": known[:, 0], "ref_rejected_logps": known[:, 1]}
    return batch
