"""Reads preference pairs: one prompt and two answers to it.

A pair may have its prompt in a field of its own; `chosen` and `rejected` may also begin with the prompt's messages, or
hold a whole dialogue as text ("Human: ... Assistant: ..."): the prompt is then taken off them, as TRL does. Of several
answers with scores the best and the worst are the pair.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from dapt_contract.base import JsonObject
from dapt_contract.stages.tuning_data import FieldNames
from dapt_trainer.data.chat.rendering import Conversation, Message
from dapt_trainer.data.items.messages import (
    Messages,
    RecordError,
    dialogue_of,
    is_empty,
    learned_messages,
    normalized_messages,
    read_messages,
)
from dapt_trainer.data.items.record_formats import (
    JUDGEMENTS,
    LAYOUTS,
    Layout,
    TuningRecord,
    joined_prompt,
    messages_of,
    missing_field,
    parts_of,
    with_system,
)

ACCEPTED_PAIR = (
    'a pair is {"prompt": text or messages, "chosen": text or messages, "rejected": text or messages}'
)
_PROMPT_FIELDS = ("prompt", "question", "instruction")


@dataclass(frozen=True)
class _Ranking:
    """Names the fields of a record with several answers."""

    answers: str
    text: str
    score: str
    lowest_is_best: bool = False


_RANKINGS = (
    _Ranking("completions", "response", "overall_score"),
    _Ranking("answers", "answer", "rank", lowest_is_best=True),
)
"""Of UltraFeedback, before it was binarized, and of Nectar."""


def read_pair(record: JsonObject, names: FieldNames) -> TuningRecord:
    """Return the two conversations of a pair, which begin alike.

    Raises:
        RecordError: a part is missing, or says something that cannot be honoured.
    """
    # 1. Bring each part into the form of a list of messages.
    record, ranked = _best_and_worst(_without_nesting(record), names)
    used = set[str]()
    chosen_name = names.chosen or ("chosen" if "chosen" in record else "preferred_output")
    rejected_name = names.rejected or ("rejected" if "rejected" in record else "non_preferred_output")
    if chosen_name not in record and names.chosen is None:
        chosen_name = "chosen"
    if rejected_name not in record and names.rejected is None:
        rejected_name = "rejected"
    answers = []
    for name in (chosen_name, rejected_name):
        if is_empty(record.get(name)):
            raise RecordError(_missing_answer(record, name))
        answers.append(dialogue_of(record[name]) or messages_of(record[name], name, "assistant", names))
        used.add(name)
    chosen, rejected = answers
    # 2. Find the prompt, which may stand in both answers instead of in a field of its own.
    prompt, prompt_fields = _prompt(record, names)
    used |= prompt_fields
    if any(dialogue_of(record.get(name)) for name in prompt_fields):
        # The space between "Assistant:" and what it says.
        chosen, rejected = _stripped(chosen), _stripped(rejected)
    shared = _shared_beginning(chosen, rejected)
    if prompt is None or _ends_with(shared.messages, prompt.messages):
        prompt = shared
    if not prompt.messages and "prompt" in record:
        raise RecordError(f"field 'prompt' is empty; {ACCEPTED_PAIR}")
    if not prompt.messages:
        raise RecordError(
            f"its fields are {', '.join(record)}, none is a prompt, and {chosen_name!r} and {rejected_name!r} do not "
            f"begin alike; {ACCEPTED_PAIR}, or name its fields with `fields`"
        )
    # A whole conversation as `messages` next to the pair must be the chosen one.
    if "messages" not in used and not is_empty(record.get("messages")):
        whole = read_messages(record["messages"], "messages", names)
        if whole.messages in (chosen.messages, [*prompt.messages, *chosen.messages]):
            used.add("messages")
    if prompt.messages[-1]["role"] not in ("user", "tool"):
        raise RecordError(
            f"the prompt ends with a message by {prompt.messages[-1]['role']!r}; it must end with the user's"
        )
    # 3. What is left of each must be an answer, and the two must differ.
    chosen, rejected = _without(prompt, chosen), _without(prompt, rejected)
    for name, answer in ((chosen_name, chosen), (rejected_name, rejected)):
        _check_answer(name, answer)
    if normalized_messages(chosen.messages) == normalized_messages(rejected.messages):
        raise RecordError(
            f"{chosen_name!r} and {rejected_name!r} have the same text; a pair needs two different answers"
        )
    # 4. Both are learned after the same prompt, with the same tools.
    prompt, system = with_system(prompt, record, names)
    parts = parts_of(record, used | system, names)
    conversations = tuple(
        Conversation(
            whole.messages,
            learned_messages(whole, len(prompt.messages)),
            parts.variables,
            whole.checked_fields,
        )
        for whole in (chosen.after(prompt), rejected.after(prompt))
    )
    is_usual = (
        prompt_fields <= {"prompt"} and chosen_name == "chosen" and names == FieldNames() and not ranked
    )
    answer_fields = [ranked] if ranked else [chosen_name, rejected_name]
    pair_fields = [*sorted(prompt_fields & record.keys()), *answer_fields]
    layout = "" if is_usual else f"pairs ({', '.join(pair_fields)})"
    return TuningRecord(conversations, None, layout, parts.unused_fields)


def _prompt(record: JsonObject, names: FieldNames) -> tuple[Messages | None, set[str]]:
    """Return the prompt of a pair and the fields that it was made of; None where it has no field of its own."""
    name = names.messages or names.prompt
    if name is not None:
        if is_empty(record.get(name)):
            raise RecordError(missing_field(record, name, ACCEPTED_PAIR))
    else:
        fitting = [field for field in _PROMPT_FIELDS if not is_empty(record.get(field))]
        if len(fitting) > 1:
            raise RecordError(
                f"{' and '.join(map(repr, fitting))} may each be the prompt; say which with `fields`"
            )
        others = [field for field in ("conversations", "input") if not is_empty(record.get(field))]
        others += [
            field for field in ("messages", "conversation") if _ends_with_user(record.get(field), names)
        ]
        name = next(iter([*fitting, *others]), None)
        if name is None:
            return None, set()
    addition = names.input or ("input" if name == "instruction" else "")
    layout = Layout("", prompt=name, input=addition)
    value = joined_prompt(record, layout)
    messages = dialogue_of(value) or messages_of(value, name, "user", names)
    return messages, set(layout.fields)


def _ends_with_user(value: object, names: FieldNames) -> bool:
    """Return whether a field holds messages that an answer can follow."""
    try:
        return read_messages(value, "", names).messages[-1]["role"] in ("user", "tool")
    except RecordError:
        return False


def _ends_with(shared: Sequence[Message], prompt: Sequence[Message]) -> bool:
    """Return whether what both answers begin with ends with the prompt, which then repeats its last messages alone."""
    end = shared[len(shared) - len(prompt) :] if len(prompt) <= len(shared) else []
    return bool(end) and all(
        one["role"] == other["role"] and str(one["content"]).strip() == str(other["content"]).strip()
        for one, other in zip(end, prompt, strict=True)
    )


def _best_and_worst(record: JsonObject, names: FieldNames) -> tuple[JsonObject, str]:
    """Return a record of several answers with scores as a pair, and a description; other records as they are.

    Raises:
        RecordError: an answer has no text or score, or all scores are equal.
    """
    ranking = next((ranking for ranking in _RANKINGS if not is_empty(record.get(ranking.answers))), None)
    if ranking is None or names.chosen or names.rejected or "chosen" in record:
        return record, ""
    scored = []
    answers = record[ranking.answers]
    for number, answer in enumerate(answers if isinstance(answers, list) else [answers]):
        text, score = (
            (answer.get(ranking.text), answer.get(ranking.score))
            if isinstance(answer, dict)
            else (None, None)
        )
        if not isinstance(score, int | float) or is_empty(text):
            raise RecordError(
                f"{ranking.answers}[{number}] has no {ranking.text} with {ranking.score}, by which the best and the "
                "worst answer become a pair"
            )
        scored.append((-score if ranking.lowest_is_best else score, text))
    best, worst = max(scored, key=lambda entry: entry[0]), min(scored, key=lambda entry: entry[0])
    if best[0] == worst[0]:
        raise RecordError(
            f"the {ranking.score} of all {ranking.answers} is equal; a pair needs a better and a worse answer"
        )
    others = {name: value for name, value in record.items() if name != ranking.answers}
    description = f"best and worst of {ranking.answers} by {ranking.score}"
    return others | {"chosen": best[1], "rejected": worst[1]}, description


def _missing_answer(record: JsonObject, name: str) -> str:
    judged = next((field for field in JUDGEMENTS if isinstance(record.get(field), bool)), None)
    if judged and name not in record:
        return f"field {judged!r} judges one answer (KTO), which is not learned from; {ACCEPTED_PAIR}"
    if "chosen" in record or "rejected" in record:
        return missing_field(record, name, ACCEPTED_PAIR)
    if any(layout.fits(record) for layout in LAYOUTS):
        return f"it is an example with one answer, which belongs to spec.finetuning.data; {ACCEPTED_PAIR}"
    return f"{missing_field(record, name, ACCEPTED_PAIR)}, or name its fields with `fields`"


def _without_nesting(record: JsonObject) -> JsonObject:
    """Return a record of OpenAI's preference files, whose input is an object, in the form of all others."""
    inner = record.get("input")
    if not isinstance(inner, dict) or "messages" not in inner:
        return record
    outer = {name: value for name, value in record.items() if name != "input"}
    return outer | {("prompt" if name == "messages" else name): value for name, value in inner.items()}


def _check_answer(name: str, answer: Messages) -> None:
    for index, verb in ((0, "begin"), (-1, "end")):
        author = f"by {answer.messages[index]['role']!r}" if answer.messages else "none after the prompt"
        if author != "by 'assistant'":
            raise RecordError(f"{name!r} must {verb} with the assistant's message, it is {author}")
    if any(not message["content"] and len(message) == 2 for message in answer.messages):
        raise RecordError(f"{name!r} has an empty message")
    if not all(answer.weights.values()):
        raise RecordError(
            f"{name!r} has a message of weight 0, but all of an answer is compared; remove the weight"
        )


def _shared_beginning(chosen: Messages, rejected: Messages) -> Messages:
    """Return the messages that both begin with, up to the last one by the user or a tool."""
    pairs = itertools.takewhile(
        lambda pair: pair[0] == pair[1], zip(chosen.messages, rejected.messages, strict=False)
    )
    shared = [message for message, _ in pairs]
    while shared and shared[-1]["role"] == "assistant":
        shared.pop()
    return Messages(
        shared, {}, [(index, name) for index, name in chosen.checked_fields if index < len(shared)]
    )


def _stripped(answer: Messages) -> Messages:
    """Return an answer without the white space around its texts."""
    texts = [
        message | {"content": text.strip()} if isinstance(text := message["content"], str) else message
        for message in answer.messages
    ]
    return Messages(texts, answer.weights, answer.checked_fields)


def _without(prompt: Messages, answer: Messages) -> Messages:
    """Return an answer without the prompt's messages, which it may begin with."""
    count = len(prompt.messages)
    if answer.messages[:count] != prompt.messages:
        return answer
    return Messages(
        answer.messages[count:],
        {index - count: learned for index, learned in answer.weights.items() if index >= count},
        [(index - count, name) for index, name in answer.checked_fields if index >= count],
    )
