"""Tests how records become examples and pairs: the layouts that are recognized, the fields that count, what is refused."""

# ruff: noqa: E501 (a sentence stands in one piece)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.stages.tuning_data import FieldNames, InstructionSource, PreferenceInput
from dapt_trainer.data.dedup.contamination import EvaluationItem, contamination_index
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.items.tuning_records import (
    TuningRecord,
    read_instructions,
    read_preferences,
    without_items,
    without_repeats,
)
from support.tuning_texts import turn

CHAT = 'an example is {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]} or {"prompt": text, "response": text}'
PAIR = 'a pair is {"prompt": text or messages, "chosen": text or messages, "rejected": text or messages}'
ASKED = [turn("user", "a"), turn("assistant", "b")]


def read(
    tmp_path: Path, *records: Any, fields: FieldNames | None = None, form: Any = "messages"
) -> tuple[list[TuningRecord], list[str]]:
    source = InstructionSource(source=write(tmp_path, records), format=form, fields=fields)
    problems = Problems()
    found = read_instructions(source, "F", problems)
    found.report(problems)
    return list(found.values), shortened(tmp_path, problems)


def read_pairs(
    tmp_path: Path, *records: Any, fields: FieldNames | None = None
) -> tuple[list[TuningRecord], list[str]]:
    problems = Problems()
    found = read_preferences(PreferenceInput(source=write(tmp_path, records), fields=fields), "F", problems)
    found.report(problems)
    return list(found.values), shortened(tmp_path, problems)


def write(tmp_path: Path, records: Any) -> str:
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return f"file://{path}"


def shortened(tmp_path: Path, problems: Problems) -> list[str]:
    return [sentence.replace(f"F: {tmp_path}/r.jsonl:", "") for sentence in problems.sentences()]


def texts(record: TuningRecord, number: int = 0) -> list[tuple[Any, Any]]:
    return [(message["role"], message["content"]) for message in record.conversations[number].messages]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": ASKED},
        {"messages": json.dumps(ASKED)},
        {"messages": [turn("user", [{"type": "text", "text": "a"}]), turn("assistant", ["b"])]},  # type: ignore[arg-type]
        {"messages": [turn("user", "a") | {"weight": None, "name": ""}, turn("assistant", "b") | {"tool_calls": []}]},
        {"messages": ASKED, "prompt": "a", "prompt_id": "x", "category": "qa"},
        {"messages": ASKED, "tools": None, "conversations": None},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"conversations": [{"from": "human", "value": "a", "weight": 0}, {"from": "gpt", "value": "b", "weight": 1}]},
        {"conversation": ASKED},
        {"prompt": "a", "response": "b"},
        {"prompt": [turn("user", "a")], "completion": [turn("assistant", "b")]},
        {"prompt": json.dumps([turn("user", "a")]), "response": "b"},
        {"prompt": "\n\nHuman: a\n\nAssistant:", "completion": " b"},
        {"conversation": [turn("user", "a") | {"toxic": False, "redacted": False, "country": "NO"}, turn("assistant", "b")]},
        {"instruction": "a", "input": " ", "output": "b", "text": "Below is an instruction"},
        {"instruction": "a", "context": "", "response": "b"},
        {"question": "a", "answer": "b"},
        {"system_prompt": "", "question": "a", "response": "b"},
    ],
)  # fmt: skip
def test_an_example_is_read_in_every_layout(tmp_path: Path, record: dict[str, Any]) -> None:
    (found,), problems = read(tmp_path, record)
    assert problems == []
    assert texts(found) == [("user", "a"), ("assistant", "b")]
    assert found.conversations[0].learned == [1]
    assert found.conversations[0].checked_fields == []


def test_system_and_input_are_part_of_the_prompt(tmp_path: Path) -> None:
    found, problems = read(
        tmp_path,
        {"system": "s", "prompt": "a", "response": "b"},
        {
            "system_prompt": "s",
            "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        },
        {"messages": [turn("developer", "s"), *ASKED], "system": "s"},
        {"instruction": "x", "input": "y", "output": "b"},
    )
    assert problems == []
    assert [texts(record)[0] for record in found] == [("system", "s")] * 3 + [("user", "x\n\ny")]


def test_weights_decide_what_is_learned(tmp_path: Path) -> None:
    wrong, right = turn("assistant", "3"), turn("assistant", "2")
    chat = [turn("user", "1+1?"), wrong | {"weight": 0}, turn("user", "no"), right | {"train": True}]
    tail = [turn("user", "1+1?"), right, turn("user", "sure?"), wrong | {"train": False}]
    found, problems = read(tmp_path, {"messages": chat}, {"messages": tail})
    assert problems == []
    assert [record.conversations[0].learned for record in found] == [[3], [1]]
    assert texts(found[1]) == [("user", "1+1?"), ("assistant", "2")]


def test_what_a_template_must_use_is_noted(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Oslo"}'}}
    messages = [
        turn("user", "a") | {"name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [call], "thinking": "hm", "score": 3},
        turn("tool", "") | {"tool_call_id": "c1", "name": "f"},
        turn("assistant", "b"),
    ]
    (record,), problems = read(
        tmp_path,
        {"messages": messages, "tools": json.dumps([{"name": "f"}]), "chat_template_kwargs": {"mode": "x"}},
    )
    assert problems == []
    conversation = record.conversations[0]
    assert sorted(conversation.checked_fields) == [(0, "name"), (1, "thinking"), (1, "tool_calls")]
    assert conversation.variables == {"tools": [{"name": "f"}], "mode": "x"}
    calls: Any = conversation.messages[1]["tool_calls"]
    assert calls == [call | {"function": {"name": "f", "arguments": {"city": "Oslo"}}}]
    assert "score" not in conversation.messages[1]
    assert conversation.messages[2]["tool_call_id"] == "c1"


def test_calls_of_sharegpt_are_tool_calls(tmp_path: Path) -> None:
    turns = [
        ("human", "a"),
        ("function_call", '{"name": "f", "arguments": {"x": 1}}'),
        ("observation", "o"),
        ("gpt", "b"),
    ]
    record = {
        "conversations": [{"from": role, "value": text} for role, text in turns],
        "tools": '[{"name": "f"}]',
    }
    (found,), problems = read(tmp_path, record)
    assert problems == []
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert found.conversations[0].messages[1] == {"role": "assistant", "content": None, "tool_calls": [call]}
    assert found.conversations[0].learned == [1, 3]


def test_reasoning_of_a_record_belongs_to_its_answer(tmp_path: Path) -> None:
    (record,), problems = read(tmp_path, {"prompt": "a", "response": "b", "reasoning": "c"})
    assert problems == []
    assert record.conversations[0].messages[1] == turn("assistant", "b") | {"reasoning": "c"}
    assert record.conversations[0].checked_fields == [(1, "reasoning")]


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"text": "a"}, f"its fields are text; {CHAT}, or name its fields with `fields`"),
        ({"messages": ASKED, "conversations": ASKED}, "its fields fit several formats (messages and conversations); say with `fields` which of them to read"),
        ({"prompt": "a", "instruction": "a", "response": "b"}, "its fields fit several formats (prompt + response and instruction + context + response); say with `fields` which of them to read"),
        ({"prompt": "a", "response": " "}, "field 'response' is empty"),
        ({"prompt": 3, "response": "b"}, "field 'prompt' is neither a text nor a list of messages"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "messages[0].role is 'bot'; accepted are system, user, assistant, tool, developer, gpt, human, observation, function_call, tool_call: map other names with `fields: {roles: ...}`"),
        ({"messages": [turn("user", ""), ASKED[1]]}, "messages[0].content is empty; a message needs a text, a list of text parts, or tool_calls"),
        ({"messages": [ASKED[0], {"role": "assistant", "content": None}]}, "messages[1].content is null; a message needs a text, a list of text parts, or tool_calls"),
        ({"messages": ASKED[:1]}, "the last message is by 'user'; it must be the assistant's response, which is learned"),
        ({"messages": ASKED[1:]}, "no message is by 'user'; a response answers a user"),
        ({"messages": [ASKED[0], ASKED[1] | {"weight": 0}]}, "the weight of each of the assistant's messages is 0: nothing is learned; remove the record"),
        ({"messages": [ASKED[0], ASKED[1] | {"weight": 0.5}]}, "messages[1].weight is 0.5; accepted are 0 (context alone) and 1 (learned)"),
        ({"messages": [ASKED[0] | {"train": True}, ASKED[1]]}, "messages[0].train asks to learn a message by 'user'; only the assistant's are"),
        ({"messages": [turn("user", [{"type": "image_url", "image_url": "x"}]), ASKED[1]]}, "messages[0].content[0] is of type 'image_url'; only text is learned from"),  # type: ignore[arg-type]
        ({"messages": ASKED, "images": ["x.png"]}, "field 'images' would change the example and is not used; map it with `fields`, or remove it"),
        ({"messages": ASKED, "functions": [{}]}, "field 'functions' would change the example and is not used; map it with `fields`, or remove it"),
        ({"messages": ASKED, "prompt": "another"}, "field 'prompt' would change the example and is not used; map it with `fields`, or remove it"),
        ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, "field 'history' would change the example and is not used; map it with `fields`, or remove it"),
        ({"messages": [ASKED[0], ASKED[1] | {"function_call": {"name": "f"}}]}, "messages[1].function_call is OpenAI's old form of a tool call; write it as tool_calls"),
        ({"messages": [ASKED[0], ASKED[1] | {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}, "messages[1].tool_calls[0].arguments is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
        ({"messages": [ASKED[0], ASKED[1] | {"tool_calls": [{"function": {"name": "f", "arguments": '{"x": "\\ud83d"}'}}]}]}, "messages[1].tool_calls[0].arguments is not Unicode text (half of a surrogate pair)"),
        ({"prompt": "a", "response": "b", "tools": '[{"name": "\\ud83d"}]'}, "tools is not Unicode text (half of a surrogate pair)"),
        ({"messages": [ASKED[0] | {"tool_calls": [{"function": {"name": "f"}}]}, ASKED[1]]}, "messages[0].tool_calls stands in a message by 'user'; only the assistant calls tools"),
        ({"messages": [ASKED[0], ASKED[1] | {"reasoning": "x", "thinking": "y"}]}, "messages[1].thinking differs from reasoning of the same message; keep one of them"),
        ({"messages": [turn("system", "s"), *ASKED], "system": "t"}, "field 'system' differs from the system message of the same record; keep one of them"),
        ({"prompt": "a", "response": "b", "weight": 0}, "field 'weight' is 0: nothing of the record is learned; remove the record"),
        ({"prompt": "a", "completion": "b", "label": False}, "field 'label' judges the answer, which is not honoured; remove the field"),
        *(({"messages": ASKED, "chat_template_kwargs": {name: "x"}}, f"field 'chat_template_kwargs' has {name!r}, which the template gets from the record or the tokenizer; remove it") for name in ("messages", "add_generation_prompt", "eos_token")),
        ({"messages": ASKED, "kto_tag": False}, "field 'kto_tag' judges the answer, which is not honoured; remove the field"),
        ({"instruction": "a", "output": ["b", "c"]}, "field 'output' is neither a text nor a list of messages"),
        ({"conversations": [ASKED[0], {"role": "function_call", "content": "f()"}]}, "conversations[1].content is not JSON (Expecting value: line 1 column 1 (char 0))"),
        ({"Prompt": "a", "response": "b"}, f"it has 'Prompt' for 'prompt', and names are compared with their case; its fields are Prompt, response; {CHAT}, or name its fields with `fields`"),
        ({"instruction": "a", "input": "b"}, f"field 'output' is missing; its fields are instruction, input; {CHAT}, or name its fields with `fields`"),
        ({"instruction": "a", "output": None}, f"field 'output' is empty; its fields are instruction, output; {CHAT}, or name its fields with `fields`"),
        ({"prompt": "a"}, f"field 'response' or 'completion' is missing; its fields are prompt; {CHAT}, or name its fields with `fields`"),
        ({"response": "a"}, f"field 'prompt' or 'instruction' or 'question' is missing; its fields are response; {CHAT}, or name its fields with `fields`"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, f"it is a pair of answers, which belongs to spec.preference.data; its fields are prompt, chosen, rejected; {CHAT}, or name its fields with `fields`"),
        ("text", "not a JSON object but a string; correct the line"),
    ],
)  # fmt: skip
def test_an_example_that_cannot_be_honoured_is_refused_by_name(
    tmp_path: Path, record: Any, sentence: str
) -> None:
    found, problems = read(tmp_path, {"messages": ASKED}, record)
    assert len(found) == 1
    assert problems == [f"2: {sentence}"]


def test_fields_name_what_to_read_and_nothing_is_guessed(tmp_path: Path) -> None:
    names = FieldNames(messages="talk", role="who", content="said", roles={"bot": "assistant", "me": "user"})
    talk = [{"who": "me", "said": "a"}, {"who": "bot", "said": "b"}]
    (record,), problems = read(tmp_path, {"talk": talk, "id": 1}, fields=names)
    assert (problems, texts(record)) == ([], [("user", "a"), ("assistant", "b")])
    _, problems = read(tmp_path, {"messages": ASKED}, fields=names)
    assert problems == [f"1: no field 'talk' (its fields are messages); {CHAT}"]
    names = FieldNames(prompt="q", input="more", response="r", system="role", tools="api")
    (record,), problems = read(
        tmp_path, {"q": "a", "more": "b", "r": "c", "role": "s", "api": [{"name": "f"}]}, fields=names
    )
    assert (problems, texts(record)[:2]) == ([], [("system", "s"), ("user", "a\n\nb")])
    assert record.conversations[0].variables == {"tools": [{"name": "f"}]}
    _, problems = read(
        tmp_path, {"instruction": "a", "more": "b", "output": "c"}, fields=FieldNames(input="more")
    )
    assert problems == [f"1: no field 'prompt' (its fields are instruction, more, output); {CHAT}"]
    _, problems = read(
        tmp_path, {"q": "a", "r": "c", "input": "lost"}, fields=FieldNames(prompt="q", response="r")
    )
    assert problems == [
        "1: field 'input' would change the example and is not used; map it with `fields`, or remove it"
    ]


def test_plain_text_takes_every_form_without_messages(tmp_path: Path) -> None:
    found, problems = read(
        tmp_path,
        {"prompt": "a ", "response": "b"},
        {"instruction": "a", "output": "b"},
        {"messages": ASKED},
        form="plain",
    )
    assert [record.plain.text for record in found if record.plain] == ["a b", "ab"]
    assert problems == [
        '3: field \'messages\' holds messages, but plain text is read; an example is {"prompt": text, "response": text}'
    ]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No idea.", "score": 3},
        {"prompt": [turn("user", "Why?")], "chosen": [turn("assistant", "Because.")], "rejected": [turn("assistant", "No idea.")]},
        {"prompt": "Why?", "chosen": [turn("user", "Why?"), turn("assistant", "Because.")], "rejected": [turn("user", "Why?"), turn("assistant", "No idea.")], "messages": [turn("user", "Why?"), turn("assistant", "Because.")], "score_chosen": 1.0},
        {"chosen": [turn("user", "Why?"), turn("assistant", "Because.")], "rejected": [turn("user", "Why?"), turn("assistant", "No idea.")]},
        {"chosen": "\n\nHuman: Why?\n\nAssistant: Because.", "rejected": "\n\nHuman: Why?\n\nAssistant: No idea."},
        {"chosen": "Human: Why?\r\n\r\nAssistant: Because.", "rejected": "Human: Why?\n\nAssistant: No idea."},
        {"prompt": "Human: Why?\n\nAssistant:", "chosen": " Because.", "rejected": " No idea."},
        {"prompt": None, "chosen": [turn("user", "Why?"), turn("assistant", "Because.")], "rejected": [turn("user", "Why?"), turn("assistant", "No idea.")]},
        {"prompt": "Why?", "chosen": json.dumps([turn("assistant", "Because.")]), "rejected": json.dumps([turn("assistant", "No idea.")])},
        {"messages": [turn("user", "Why?")], "chosen": "Because.", "rejected": "No idea."},
        {"instruction": "Why?", "completions": [{"response": "Hm.", "overall_score": 5}, {"response": "No idea.", "overall_score": 2.5}, {"response": "Because.", "overall_score": 9, "critique": "Good"}]},
        {"prompt": "\n\nHuman: Why?\n\nAssistant: ", "answers": [{"answer": "No idea.", "rank": 7.0}, {"answer": "Because.", "rank": 1.0}]},
        {"prompt": "\n\nHuman: Why?\n\nAssistant:", "chosen": "Because.", "rejected": "No idea."},
        {"question": "Why?", "system": "", "chosen": "Because.", "rejected": "No idea."},
        {"instruction": "Why?", "input": "", "chosen": "Because.", "rejected": "No idea."},
        {"input": "Why?", "chosen": "Because.", "rejected": "No idea."},
        {"conversations": [{"from": "human", "value": "Why?"}], "chosen": {"from": "gpt", "value": "Because."}, "rejected": {"from": "gpt", "value": "No idea."}},
        {"input": {"messages": [turn("user", "Why?")], "tools": []}, "preferred_output": [turn("assistant", "Because.")], "non_preferred_output": [turn("assistant", "No idea.")]},
    ],
)  # fmt: skip
def test_a_pair_is_read_in_every_layout(tmp_path: Path, record: dict[str, Any]) -> None:
    (found,), problems = read_pairs(tmp_path, record)
    assert problems == []
    assert texts(found, 0) == [("user", "Why?"), ("assistant", "Because.")]
    assert texts(found, 1) == [("user", "Why?"), ("assistant", "No idea.")]
    assert [conversation.learned for conversation in found.conversations] == [[1], [1]]


def test_a_pair_of_several_turns_keeps_its_turns_its_system_and_its_tools(tmp_path: Path) -> None:
    turns = [turn("user", "Hi"), turn("assistant", "Hello."), turn("user", "Why?")]
    record = {
        "prompt": turns,
        "chosen": [turn("assistant", "x"), turn("user", "y"), turn("assistant", "z")],
        "rejected": [turn("assistant", "n")],
        "system": "s",
        "tools": [{"name": "f"}],
    }
    (found,), problems = read_pairs(tmp_path, record)
    assert problems == []
    assert [role for role, _ in texts(found, 0)] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert [conversation.learned for conversation in found.conversations] == [[4, 6], [4]]
    assert all(conversation.variables == {"tools": [{"name": "f"}]} for conversation in found.conversations)


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"chosen": "a", "rejected": "b"}, f"its fields are chosen, rejected, none is a prompt, and 'chosen' and 'rejected' do not begin alike; {PAIR}, or name its fields with `fields`"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, f"field 'prompt' is empty; {PAIR}"),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, "field 'chosen' is neither a text nor a list of messages"),
        ({"prompt": "q", "chosen": "a", "rejected": []}, f"field 'rejected' is empty; {PAIR}"),
        ({"prompt": "q", "response": "a"}, f"it is an example with one answer, which belongs to spec.finetuning.data; {PAIR}"),
        ({"prompt": "q", "good": "a", "bad": "b"}, f"no field 'chosen' (its fields are prompt, good, bad); {PAIR}, or name its fields with `fields`"),
        ({"prompt": "q", "chosen": "a"}, f"no field 'rejected' (its fields are prompt, chosen); {PAIR}"),
        ({"prompt": [turn("assistant", "q")], "chosen": "a", "rejected": "b"}, "the prompt ends with a message by 'assistant'; it must end with the user's"),
        ({"prompt": "q", "chosen": [turn("user", "a")], "rejected": "b"}, "'chosen' must begin with the assistant's message, it is by 'user'"),
        ({"prompt": "q", "chosen": "a", "rejected": [turn("assistant", "b"), turn("user", "c")]}, "'rejected' must end with the assistant's message, it is by 'user'"),
        ({"prompt": "q", "chosen": [turn("user", "q")], "rejected": "b"}, "'chosen' must begin with the assistant's message, it is none after the prompt"),
        ({"prompt": "q", "chosen": "Yes  sir", "rejected": "yes sir"}, "'chosen' and 'rejected' have the same text; a pair needs two different answers"),
        ({"prompt": "q", "completion": "a", "label": True}, f"field 'label' judges one answer (KTO), which is not learned from; {PAIR}"),
        ({"instruction": "q", "completions": [{"response": "a", "overall_score": 5}, {"response": "b", "overall_score": 5}]}, "the overall_score of all completions is equal; a pair needs a better and a worse answer"),
        ({"instruction": "q", "completions": [{"response": "a"}]}, "completions[0] has no response with overall_score, by which the best and the worst answer become a pair"),
        ({"prompt": "q", "question": "q", "chosen": "a", "rejected": "b"}, "'prompt' and 'question' may each be the prompt; say which with `fields`"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "images": ["x"]}, "field 'images' would change the example and is not used; map it with `fields`, or remove it"),
        ({"prompt": "q", "chosen": [turn("assistant", "a") | {"weight": 0}], "rejected": "b"}, "'chosen' has a message of weight 0, but all of an answer is compared; remove the weight"),
    ],
)  # fmt: skip
def test_a_bad_pair_is_reported_with_file_and_line(tmp_path: Path, record: Any, sentence: str) -> None:
    found, problems = read_pairs(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b"}, record)
    assert len(found) == 1
    assert problems == [f"2: {sentence}"]


def test_a_prompt_that_repeats_the_last_question_leaves_what_stands_before_it(tmp_path: Path) -> None:
    before = [
        turn("system", "s"),
        turn("user", "Hi") | {"name": "Ann"},
        turn("assistant", "Hello."),
        turn("user", "Why?"),
    ]
    answers = {"chosen": [*before, turn("assistant", "x")], "rejected": [*before, turn("assistant", "y")]}
    (found,), problems = read_pairs(tmp_path, {"prompt": " Why?\n"} | answers)
    assert problems == []
    assert [role for role, _ in texts(found, 1)] == ["system", "user", "assistant", "user", "assistant"]
    assert [conversation.learned for conversation in found.conversations] == [[4], [4]]
    # What stands in the prompt must be used by the template too.
    assert [conversation.checked_fields for conversation in found.conversations] == [[(1, "name")]] * 2


def test_fields_of_pairs_are_mapped(tmp_path: Path) -> None:
    names = FieldNames(prompt="q", chosen="good", rejected="bad")
    (found,), problems = read_pairs(tmp_path, {"q": "Why?", "good": "Because.", "bad": "No."}, fields=names)
    assert problems == []
    assert texts(found, 1) == [("user", "Why?"), ("assistant", "No.")]
    assert found.layout == "pairs (q, good, bad)"


def test_repeated_pairs_are_dropped_over_all_sources_and_swapped_pairs_are_kept(tmp_path: Path) -> None:
    seen: set[str] = set()
    for records, kept in (
        ([("Why?", "Because.", "No."), ("why?", " because.", "NO."), ("Why?", "No.", "Because.")], 2),
        ([("Why?", "Because.", "No."), ("Who?", "Me.", "You.")], 1),
    ):
        source = PreferenceInput(
            source=write(
                tmp_path,
                [dict(zip(("prompt", "chosen", "rejected"), record, strict=True)) for record in records],
            )
        )
        found, repeats = without_repeats(read_preferences(source, "F", Problems()).records, seen)
        assert (len(found), repeats) == (kept, len(records) - kept)


def test_items_are_found_in_prompts_answers_reasoning_and_tool_results(tmp_path: Path) -> None:
    question = "which bone of the human arm is the longest one"
    index = contamination_index([EvaluationItem("bones", question, "humerus")])
    records = [
        {"messages": ASKED},
        {"prompt": f"Tell me {question}", "response": "a"},
        {"prompt": "Ask me", "response": f"Well: {question.upper()}?"},
        {"prompt": "Ask me", "response": "a", "reasoning": question},
        {"messages": [ASKED[0], ASKED[1], turn("tool", question), ASKED[1]]},
    ]
    source = InstructionSource(source=write(tmp_path, records), format="messages")
    kept, contaminated = without_items(read_instructions(source, "F", Problems()).records, index)
    assert (len(kept), contaminated) == (1, 4)
    assert kept[0].location.endswith(":1")
