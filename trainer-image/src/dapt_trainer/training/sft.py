"""Conversations as tokens with labels on the responses alone.

A conversation is rendered turn by turn by the chat template; the text that an assistant turn adds after the generation
prompt is a response, all other text is prompt. Prompt and response are tokenized apart, so that a response starts at a
token boundary, exactly as it does when the model is asked. A prompt token's label is -100, always.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dapt_contract.layout import INSTRUCTIONS
from dapt_trainer.data.mixture import permuted
from dapt_trainer.errors import InputError

IGNORED_LABEL = -100
PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{ 'Answer: ' + message['content'] + eos_token + '\\n' }}"
    "{%- elif message['role'] == 'system' -%}{{ message['content'] + '\\n\\n' }}"
    "{%- else -%}{{ 'Question: ' + message['content'] + '\\n' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Answer: ' }}{%- endif -%}"
)
"""For base models without a chat template of their own; saved with the tuned model."""

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Example:
    """One conversation as tokens; both lists have the same length."""

    input_ids: list[int]
    labels: list[int]
    """The token where it belongs to a response, else -100."""

    @property
    def response_tokens(self) -> int:
        """What the loss counts."""
        return sum(label != IGNORED_LABEL for label in self.labels)


def with_template(tokenizer: Any) -> Any:
    """The tokenizer with its own chat template, or the plain one where it has none."""
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


def read_conversations(work: Path) -> list[Messages]:
    """The conversations that prepare left.

    Raises:
        InputError: there are none, or a line is damaged.
    """
    path = work / INSTRUCTIONS / "train.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no instructions there; run prepare again") from error
    conversations = []
    for number, line in enumerate(lines, start=1):
        try:
            conversations.append(json.loads(line)["messages"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}:{number}: not a list of messages; run prepare again") from error
    if not conversations:
        raise InputError(f"{path}: no conversation in it; give finetuning.data or leave finetuning out")
    return conversations


def segments(tokenizer: Any, messages: Messages) -> Iterator[tuple[str, bool]]:
    """The rendered conversation in pieces of text, each with whether it is a response.

    A template may render an earlier turn otherwise once a later one follows (some drop the reasoning of earlier turns);
    then the last response alone is learned, with everything before it as its prompt.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    whole = _rendered(tokenizer, messages)
    cuts = [_cut(tokenizer, messages, turn) for turn in turns]
    if any(not whole.startswith(before) or not whole.startswith(upto) for before, upto in cuts):
        cuts = cuts[-1:]
    place = 0
    for before, upto in cuts:
        if not whole.startswith(before) or len(before) < place or len(upto) <= len(before):
            return
        yield whole[place : len(before)], False
        yield whole[len(before) : len(upto)], True
        place = len(upto)


def _cut(tokenizer: Any, messages: Messages, turn: int) -> tuple[str, str]:
    """Text up to a response's start, and up to its end."""
    before = _rendered(tokenizer, messages[:turn], add_generation_prompt=True)
    return before, _rendered(tokenizer, messages[: turn + 1])


def _rendered(tokenizer: Any, messages: Messages, *, add_generation_prompt: bool = False) -> str:
    return str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    )


def tokenize(tokenizer: Any, messages: Messages, *, sequence_length_tokens: int) -> Example | None:
    """One conversation, cut at the sequence length; None when no response token is left."""
    input_ids: list[int] = []
    labels: list[int] = []
    for text, is_response in segments(tokenizer, messages):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        input_ids += ids
        labels += ids if is_response else [IGNORED_LABEL] * len(ids)
    example = Example(input_ids[:sequence_length_tokens], labels[:sequence_length_tokens])
    return example if example.response_tokens else None


def tokenize_all(tokenizer: Any, work: Path, *, sequence_length_tokens: int) -> list[Example]:
    """All conversations that have a response within the sequence length.

    Raises:
        InputError: none has.
    """
    conversations = read_conversations(work)
    examples = [
        example
        for messages in conversations
        if (example := tokenize(tokenizer, messages, sequence_length_tokens=sequence_length_tokens))
    ]
    if not examples:
        raise InputError(
            f"none of {len(conversations)} conversations has a response within {sequence_length_tokens} tokens; "
            "raise corpus.sequenceLength or shorten the prompts"
        )
    return examples


class ShuffledExamples:
    """Row k is example P_epoch(k mod n) of epoch k // n: a new permutation each epoch, a pure function of the seed."""

    def __init__(self, examples: list[Example], *, rows: int, seed: int) -> None:
        self._examples = examples
        self._rows = rows
        self._seed = seed

    def __len__(self) -> int:
        """Rows of the whole run."""
        return self._rows

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """`input_ids` and `labels` of one row."""
        example = self.example(index)
        return {"input_ids": example.input_ids, "labels": example.labels}

    def example(self, index: int) -> Example:
        """The example at a row."""
        epoch, place = divmod(index, len(self._examples))
        chosen = permuted(np.array([place], dtype=np.int64), len(self._examples), (self._seed, 1, epoch))
        return self._examples[int(chosen[0])]
