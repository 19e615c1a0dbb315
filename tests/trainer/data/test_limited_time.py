"""Tests that no tuning text or evaluation item keeps a stage busy for ever: it is named, in bounded time."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from dapt_contract.stages.common import ProbeConfig, TaskConfig
from dapt_contract.stages.prepare import PrepareConfig, TextSource
from dapt_contract.stages.tuning_data import InstructionSource, TuningDataConfig
from dapt_trainer.data import stage_inputs
from dapt_trainer.data.chat.rendering import TemplateSet
from dapt_trainer.data.chat.template_files import read_encoder
from dapt_trainer.data.chat.tokens import TextEncoder
from dapt_trainer.data.dedup.contamination import ContaminationIndex, EvaluationItem
from dapt_trainer.data.harness.items import HarnessItems
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.stage_inputs import read_evaluation
from dapt_trainer.data.tuning_data import TuningModel, prepare_or_check
from dapt_trainer.errors import InputError, StopRequested
from dapt_trainer.limited_time import limit_seconds, try_texts, while_beating
from support.toy_corpus import train_tokenizer

SLOW = "a" * 10_000
"""The pattern below reads on to the end of the text from each of its letters: half a second."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = train_tokenizer(["water stone"])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\w+\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def test_record_that_takes_too_long_is_named(tokenizer: Tokenizer) -> None:
    located = [("field: a:1", ["water"]), ("field: a:2", ["stone", SLOW]), ("field: a:3", ["water"])]
    try_texts(located[:1], tokenizer.encode_batch, lambda: None)
    with pytest.raises(
        InputError, match=r"^field: a:2: analysing this text takes more than 0\.1 seconds of pro"
    ):
        try_texts(located, tokenizer.encode_batch, lambda: None, lambda _: 0.1)  # type: ignore[arg-type, return-value]


def test_tuning_text_that_takes_too_long_is_named_by_file_and_line(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    end_of_text = next(token.content for token in tokenizer.get_added_tokens_decoder().values())
    encoder = read_encoder(tmp_path, end_of_text)
    path = tmp_path / "examples.jsonl"
    records = [{"prompt": "water", "response": text} for text in ("stone", SLOW)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = TuningDataConfig(
        kind="instructions", instructions=(InstructionSource(source=f"file://{path}", format="plain"),)
    )
    model = TuningModel(TemplateSet(templates={}), encoder, 64, 64, limit=lambda _: 0.1)  # type: ignore[arg-type, return-value]
    with pytest.raises(InputError) as caught:
        prepare_or_check(config, model, ContaminationIndex(), tmp_path, Problems(), lambda: None)
    assert str(caught.value).startswith(
        f"spec.finetuning.data[0]: {path}:2: analysing this text takes more than 0.1 seconds of processor time"
    )


def test_record_at_which_the_tokenizer_fails_is_named(tokenizer: Tokenizer) -> None:
    """The library gives up on a pattern that tries too many ways, and panics: no Exception, no traceback for it."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.normalizer = normalizers.Replace(Regex(r"(a|aa|aaa)+$"), "")
    with pytest.raises(InputError) as caught:
        try_texts(
            [("field: a:1", ["b" * 40]), ("field: a:2", ["a" * 40 + "!"])],
            tokenizer.encode_batch,
            lambda: None,
        )
    assert str(caught.value) == (
        "field: a:2: the model's tokenizer fails at this text (Onig: Regex search error: retry-limit-in-match over); "
        "remove the text, or use a model with another tokenizer"
    )


def test_tuning_text_at_which_the_tokenizer_fails_is_named_by_file_and_line(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    def encode(text: str) -> list[int]:
        if text.startswith("bad"):
            raise Exception("no such token.\nmore")  # as the library does
        return [1, 2]

    path = tmp_path / "examples.jsonl"
    records = [{"prompt": prompt, "response": "b"} for prompt in ("good", "bad")]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = TuningDataConfig(
        kind="instructions", instructions=(InstructionSource(source=f"file://{path}", format="plain"),)
    )
    model = TuningModel(TemplateSet(templates={}), TextEncoder(encode, encode, 0), 64, 64)
    with pytest.raises(InputError) as caught:
        prepare_or_check(config, model, ContaminationIndex(), tmp_path, Problems(), lambda: None)
    assert str(caught.value) == (
        f"spec.finetuning.data[0]: {path}:2: the model's tokenizer fails at this text (no such token); remove the "
        "text, or use a model with another tokenizer"
    )


def test_item_of_a_harness_task_is_tokenized_with_its_number(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [EvaluationItem("arc", question, "yes", choices=("yes", "no")) for question in ("Wet?", "Dry?")]
    seen: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(stage_inputs, "try_texts", lambda located, *_: seen.extend(located))
    monkeypatch.setattr(stage_inputs, "read_harness_tasks", lambda *_, **__: HarnessItems(items))
    config = PrepareConfig(
        model_source="m",
        domain=(TextSource(source="d"),),
        general=(TextSource(source="g"),),
        tasks=(TaskConfig(name="arc", side="general"),),
    )
    read_evaluation(config, tmp_path, tmp_path, Problems(), lambda: None, tokenizer.to_str())
    assert seen == [
        (f"spec.evaluation.general.tasks[arc]: item {number}", [question, "yes", "yes", "no"])
        for number, question in ((1, "Wet?"), (2, "Dry?"))
    ]


@pytest.mark.parametrize("kind", ["task", "probe"])
def test_evaluation_item_is_tokenized_with_its_file_and_line(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    seen: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(stage_inputs, "try_texts", lambda located, *_: seen.extend(located))
    path = tmp_path / "items.jsonl"
    key = {"task": "question", "probe": "prompt"}[kind]
    path.write_text(json.dumps({key: "Is water wet?", "choices": ["yes", "no"], "answer": 0}) + "\n")
    task = TaskConfig(name="wet", side="domain", source=f"file://{path}")
    probe = ProbeConfig(name="wet", side="domain", source=f"file://{path}")
    chosen = {"tasks": (task,)} if kind == "task" else {"probes": (probe,)}
    config = PrepareConfig(
        model_source="m", domain=(TextSource(source="d"),), general=(TextSource(source="g"),), **chosen
    )
    read_evaluation(config, None, tmp_path, Problems(), lambda: None, tokenizer.to_str())
    field = {"task": "spec.evaluation.domain.tasks", "probe": "spec.evaluation.probes.domain"}[kind]
    assert seen == [(f"{field}[wet]: {path}:1", ["Is water wet?", "yes", "no"])]


def test_limit_grows_with_the_text() -> None:
    assert (limit_seconds(0), limit_seconds(2_000_000)) == (60, 120)


def test_long_call_is_waited_for_with_heartbeats() -> None:
    has_beaten = threading.Event()
    assert while_beating(lambda: has_beaten.wait(60), has_beaten.set, every_seconds=0.001)


def test_long_call_ends_where_the_heartbeat_stops_it() -> None:
    def beat() -> None:
        raise StopRequested("stop requested")

    forever = threading.Event()
    with pytest.raises(StopRequested):
        while_beating(forever.wait, beat, every_seconds=0.001)
    forever.set()


def test_time_limit_of_a_long_call_is_its_own_error() -> None:
    def download() -> None:
        raise TimeoutError("the server does not answer")

    with pytest.raises(TimeoutError, match="does not answer"):
        while_beating(download, lambda: None)
