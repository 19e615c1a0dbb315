"""Tests what prepare and tuning_data write of examples and pairs, what they leave out, and what they refuse."""

# ruff: noqa: E501 (a sentence stands in one piece)

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.run_identity import RunIdentity
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.common import TaskConfig
from dapt_contract.stages.prepare import PrepareConfig
from dapt_contract.stages.tuning_data import (
    FieldNames,
    InstructionSource,
    PreferenceInput,
    TuningDataConfig,
    TuningDataReport,
)
from dapt_trainer.context import StageContext
from dapt_trainer.data.chat.rendering import LabelledText
from dapt_trainer.data.packing.data_manifest import read_manifest, write_manifest
from dapt_trainer.data.packing.recorded_data import require_recorded_data
from dapt_trainer.errors import InputError, StopRequested
from dapt_trainer.stages import tuning_data
from support.chat_templates import CHATML
from support.toy_corpus import Board
from support.tuning_texts import turn

QUESTION = "which bone of the human arm is the longest one"
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def write(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return f"file://{path}"


def examples(*uris: str, form: Any = "messages", **changes: Any) -> TuningDataConfig:
    sources = tuple(InstructionSource(source=uri, format=form) for uri in uris)
    return TuningDataConfig(kind="instructions", instructions=sources, **changes)


def pairs(*uris: str, **changes: Any) -> TuningDataConfig:
    return TuningDataConfig(
        kind="preferences", preferences=tuple(PreferenceInput(source=uri) for uri in uris), **changes
    )


def with_data(config: PrepareConfig, *data: TuningDataConfig, **changes: Any) -> PrepareConfig:
    return config.model_copy(update={"tuning_data": data} | changes)


def bones(tmp_path: Path) -> TaskConfig:
    uri = write(tmp_path / "bones.jsonl", {"question": QUESTION, "choices": ["humerus", "ulna"], "answer": 0})
    return TaskConfig(name="bones", side="domain", source=uri)


def lines(work: Path, config: TuningDataConfig) -> list[dict[str, Any]]:
    text = (work / config.folder / "train.jsonl").read_text()
    return [json.loads(line) for line in text.split("\n") if line]


def responses(work: Path, config: TuningDataConfig) -> list[str]:
    texts = [LabelledText.of_line(text) for line in lines(work, config) for text in line["texts"]]
    return [text.text[start:end] for text in texts for start, end in text.responses]


@pytest.fixture
def read_again(tmp_path: Path, board: Board) -> Callable[..., TuningDataReport]:
    """Runs the stage on the volume that prepare has left."""

    def run(config: TuningDataConfig, try_number: int = 1) -> TuningDataReport:
        identity = RunIdentity(
            namespace="default", name="toy", uid="u", stage="tuning_data", attempt=1,
            try_number=try_number, fence=try_number,
        )  # fmt: skip
        stage = StageFile(run=identity, kind="tuning_data", config=config)
        work = tmp_path / "work"
        return tuning_data.run(config, StageContext(stage=stage, work=work, scratch=tmp_path, progress=board))

    return run


def test_examples_are_written_rendered_with_what_is_learned(config, prepare, tmp_path: Path) -> None:
    chat = write(tmp_path / "m.jsonl", {"messages": [turn("user", "a"), turn("assistant", "b")], "id": 1})
    pair = write(tmp_path / "p.jsonl", {"prompt": "c", "response": "d"})
    data = examples(chat, pair)
    facts = prepare(with_data(config, data)).facts
    assert facts.instruction_examples == 2
    assert (facts.tuning_data[0].kind, facts.tuning_data[0].records) == ("instructions", 2)
    assert facts.tuning_data[0].config_digest == data.digest
    assert lines(tmp_path / "work", data) == [
        {"texts": [{"text": "Question: a\nAnswer: b<|end|>", "responses": [[20, 28]]}]},
        {"texts": [{"text": "Question: c\nAnswer: d<|end|>", "responses": [[20, 28]]}]},
    ]


def test_plain_examples_are_marked_and_keep_their_white_space(config, prepare, tmp_path: Path) -> None:
    data = examples(
        write(tmp_path / "plain.jsonl", {"prompt": "Code of cholera: ", "response": "A00\n"}), form="plain"
    )
    assert prepare(with_data(config, data)).facts.instruction_examples == 1
    assert lines(tmp_path / "work", data) == [
        {"texts": [{"text": "Code of cholera: A00\n", "responses": [[17, 21]], "plain": True}]}
    ]


def test_pairs_are_written_once_and_without_items(config, prepare, tmp_path: Path) -> None:
    records = [("a", "b", "c"), ("A", "b", "c"), (QUESTION, "humerus", "ulna"), ("d", "e", "f")]
    path = tmp_path / "pairs.jsonl"
    data = pairs(write(path, *({"prompt": p, "chosen": c, "rejected": r} for p, c, r in records)))
    config = with_data(config, data, tasks=(bones(tmp_path),))
    report = prepare(config)
    assert report.facts.preference_pairs == 2
    written = lines(tmp_path / "work", data)
    assert [line["chosen"]["text"] for line in written] == [
        "Question: a\nAnswer: b<|end|>", "Question: d\nAnswer: e<|end|>",
    ]  # fmt: skip
    assert written[0]["rejected"]["text"] == "Question: a\nAnswer: c<|end|>"
    assert (
        f"file://{path}",
        f"file://{path} (1 files, {path.stat().st_size} bytes)",
    ) in report.resolved_sources
    assert report.facts.warnings[-2:] == (
        "spec.preference.data: 1 of 4 pairs repeat an earlier one and are learned from once.",
        "spec.preference.data: 1 of 4 pairs contain an evaluation item and are left out.",
    )
    without = prepare(with_data(config), work=tmp_path / "other")
    assert without.facts.data_digest != report.facts.data_digest
    require_recorded_data(tmp_path / "work", report.facts.data_digest)
    assert not (tmp_path / "other/preferences").exists()


def test_pairs_that_are_all_items_end_the_stage(config, prepare, tmp_path: Path) -> None:
    uri = write(tmp_path / "pairs.jsonl", {"prompt": QUESTION, "chosen": "humerus", "rejected": "ulna"})
    with pytest.raises(InputError) as caught:
        prepare(with_data(config, pairs(uri), tasks=(bones(tmp_path),)))
    assert caught.value.problems == (
        "spec.preference.data: each of the 1 pairs contains an evaluation item; give others, or evaluate on other items",
    )


def test_examples_with_items_are_left_out_unless_cleaning_is_off(config, prepare, tmp_path: Path) -> None:
    records = [("Tell me " + QUESTION, "The humerus."), ("Which bone is it?", "The femur.")]
    uri = write(tmp_path / "sft.jsonl", *({"prompt": p, "response": r} for p, r in records))
    changes = {"tasks": (bones(tmp_path),)}
    facts = prepare(with_data(config, examples(uri), **changes)).facts
    assert facts.instruction_examples == 1
    assert facts.warnings[-1] == (
        "spec.finetuning.data: 1 of 2 examples contain an evaluation item and are left out."
    )
    uncleaned = with_data(config, examples(uri, decontaminate=False), **changes, decontaminate=False)
    assert prepare(uncleaned, work=tmp_path / "other").facts.instruction_examples == 2


def test_data_is_cleaned_on_a_volume_from_before_the_items_were_kept(
    config, prepare, read_again, tmp_path: Path
) -> None:
    tasks = (bones(tmp_path),)
    prepare(config.model_copy(update={"tasks": tasks}))
    work = tmp_path / "work"
    shutil.rmtree(work / "items")
    manifest = read_manifest(work)
    write_manifest(work / "data", manifest.model_copy(update={"files": ()}), run_key="")
    records = [("Tell me " + QUESTION, "The humerus."), ("Which bone is it?", "The femur.")]
    uri = write(tmp_path / "sft.jsonl", *({"prompt": p, "response": r} for p, r in records))
    data = examples(uri, tasks=(*tasks, TaskConfig(name="mmlu", side="general")))
    facts = read_again(data).facts
    assert (facts.records, facts.contaminated) == (1, 1)
    assert facts.warnings[-1] == (
        "spec.finetuning.data: the items of mmlu were not searched for, since the work volume was prepared by a version of dapt that did not keep them."
    )


def test_items_that_changed_on_the_volume_are_not_searched_for(
    config, prepare, read_again, tmp_path: Path
) -> None:
    tasks = (bones(tmp_path),)
    prepare(config.model_copy(update={"tasks": tasks}))
    uri = write(tmp_path / "sft.jsonl", {"prompt": "a", "response": "b"})
    changed = examples(uri, tasks=tasks).model_copy(update={"prepared_digest": "manifest-sha256:1"})
    with pytest.raises(
        InputError, match=r"manifest\.json: lists data with the digest [0-9a-f]{12}, and 1 is what"
    ):
        read_again(changed)
    path = tmp_path / "work/items/items.jsonl"
    path.write_bytes(b"")
    with pytest.raises(InputError, match=f"{path}: has the SHA-256 e3b0c44298fc, and"):
        read_again(examples(uri, tasks=tasks))
    path.unlink()
    with pytest.raises(InputError, match=f"{path}: is missing, and"):
        read_again(examples(uri, tasks=tasks))


def test_the_tokens_of_what_is_learned_are_counted(config, prepare, tmp_path: Path) -> None:
    sft = write(
        tmp_path / "sft.jsonl", {"prompt": "a", "response": "b"}, {"prompt": "c", "response": "x y " * 200}
    )
    rated = write(tmp_path / "pairs.jsonl", {"prompt": "a", "chosen": "b", "rejected": "x y " * 200})
    facts = prepare(with_data(config, examples(sft), pairs(rated))).facts
    short = facts.tuning_data[0].tokens - 128
    assert 0 < short < 40
    # The chosen answer with its prompt is as long as the short example, and the rejected one is cut.
    assert facts.tuning_data[1].tokens == short + 128


def test_what_the_template_rejects_is_found_in_preparation_with_its_line(
    config, prepare, model: Path, tmp_path: Path
) -> None:
    (model / "chat_template.jinja").write_text(NO_SYSTEM)
    good = {"messages": [turn("user", "a"), turn("assistant", "b")]}
    bad = {"messages": [turn("system", "brief"), *good["messages"]]}
    path = tmp_path / "sft.jsonl"
    data = examples(write(path, good, bad, good, bad, bad))
    with pytest.raises(InputError) as caught:
        prepare(with_data(config, data))
    assert caught.value.problems == (
        f"spec.finetuning.data[0]: {path}:2: the model's chat template rejects the conversation: System role not supported (2 more records have the same fault)",
    )
    write(path, good)
    assert prepare(with_data(config, data), try_number=2).facts.instruction_examples == 1


def test_a_share_of_bad_records_is_skipped_and_counted(config, prepare, model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(NO_SYSTEM)
    good = [{"messages": [turn("user", f"a{n}"), turn("assistant", "b")]} for n in range(8)]
    path = tmp_path / "sft.jsonl"
    uri = write(path, *good, {"messages": [turn("system", "brief"), *good[0]["messages"]]}, {"text": "x"})
    data = examples(uri, bad_records_max_fraction=0.2)
    facts = prepare(with_data(config, data)).facts
    assert (facts.tuning_data[0].records, facts.tuning_data[0].bad_records) == (8, 2)
    assert "spec.finetuning.data: 2 bad records are skipped." in facts.warnings
    with pytest.raises(InputError) as caught:
        prepare(with_data(config, examples(uri, bad_records_max_fraction=0.1)), work=tmp_path / "other")
    assert caught.value.problems[0].startswith(f"spec.finetuning.data[0]: {path}:10: its fields are text; ")
    assert caught.value.problems[1].startswith(
        f"spec.finetuning.data[0]: {path}:9: the model's chat template "
    )
    assert caught.value.problems[2] == (
        "spec.finetuning.data[0]: 2 of 10 records are bad, over the share of 0.1 that "
        "spec.finetuning.badRecords.maxFraction allows; correct them, or raise it"
    )


def test_a_bad_pair_leaves_the_others_as_they_are(config, prepare, tmp_path: Path) -> None:
    """A chosen answer with the token that ends a turn is rejected; the pair's other answer is no later pair's."""
    answers = [("b0", "c0"), ("b1<|end|>b1", "c1"), ("b2", "c2<|end|>c2"), ("b3", "c3"), ("b4", "c4")]
    uri = write(
        tmp_path / "p.jsonl",
        *({"prompt": f"a{n}", "chosen": b, "rejected": c} for n, (b, c) in enumerate(answers)),
    )
    data = pairs(uri, bad_records_max_fraction=0.5)
    facts = prepare(with_data(config, data)).facts.tuning_data[0]
    assert (facts.records, facts.bad_records) == (3, 2)
    assert [
        (line["chosen"]["text"], line["rejected"]["text"]) for line in lines(tmp_path / "work", data)
    ] == [(f"Question: a{n}\nAnswer: b{n}<|end|>", f"Question: a{n}\nAnswer: c{n}<|end|>") for n in (0, 3, 4)]


def test_conversations_past_the_limits_are_bad_records_up_to_a_number(
    config, prepare, model: Path, tmp_path: Path
) -> None:
    loop = "{% if messages[0].content == 'loop' %}{{ 'x' * 9000000000 }}{% endif %}"
    (model / "chat_template.jinja").write_text(loop + NO_SYSTEM)
    good = [{"prompt": f"a{n}", "response": "b"} for n in range(8)]
    slow = {"prompt": "loop", "response": "b"}
    data = examples(
        write(tmp_path / "two.jsonl", slow, *good[:4], slow, *good[4:]), bad_records_max_fraction=0.5
    )
    facts = prepare(with_data(config, data)).facts.tuning_data[0]
    assert (facts.records, facts.bad_records) == (8, 2)
    uri = write(tmp_path / "three.jsonl", slow, slow, *good, slow, slow)
    for share, line in ((0.5, 11), (0.0, 1)):
        with pytest.raises(InputError) as caught:
            prepare(
                with_data(config, examples(uri, bad_records_max_fraction=share)), work=tmp_path / str(share)
            )
        (problem,) = caught.value.problems
        assert problem.startswith(
            f"spec.finetuning.data[0]: {tmp_path}/three.jsonl:{line}: rendering the conversation takes more than "
        )


def test_what_the_sequence_length_does_is_counted_before_anything_is_trained(
    config, prepare, tmp_path: Path
) -> None:
    uri = write(
        tmp_path / "sft.jsonl",
        {"prompt": "a", "response": "b"},
        {"prompt": "a", "response": "x y " * 200},
        {"prompt": "x y " * 200, "response": "b"},
    )
    facts = prepare(with_data(config, examples(uri))).facts
    assert (facts.tuning_data[0].records, facts.tuning_data[0].without_response) == (2, 1)
    assert facts.warnings[-2:] == (
        "spec.finetuning.data: 1 examples have no response within 128 tokens and are left out; raise spec.finetuning.sequenceLength.",
        "spec.finetuning.data: 1 examples are cut at 128 tokens.",
    )
    with pytest.raises(InputError) as caught:
        prepare(with_data(config, examples(uri, sequence_length_tokens=2)), work=tmp_path / "other")
    assert caught.value.problems == (
        "spec.finetuning.data: none of 3 examples has a response within 2 tokens; raise spec.finetuning.sequenceLength, or shorten the prompts",
    )
    equal = write(tmp_path / "dpo.jsonl", {"prompt": "a", "chosen": "x y " * 200 + "1", "rejected": "x y " * 200 + "2"},
                  {"prompt": "a", "chosen": "b", "rejected": "c"})  # fmt: skip
    facts = prepare(with_data(config, pairs(equal)), work=tmp_path / "pairs").facts
    assert (facts.tuning_data[0].records, facts.tuning_data[0].equal_pairs) == (1, 1)
    write(
        tmp_path / "dpo.jsonl", {"prompt": "a", "chosen": "x y " * 200 + "1", "rejected": "x y " * 200 + "2"}
    )
    with pytest.raises(
        InputError, match="none of 1 pairs has two different answers within 128 tokens; raise "
    ):
        prepare(with_data(config, pairs(equal)), work=tmp_path / "none")


def test_the_stage_alone_ends_with_the_files_of_prepare(config, prepare, read_again, tmp_path: Path) -> None:
    records = [("Tell me " + QUESTION, "The humerus."), ("Which bone is it?", "The femur.")]
    uri = write(tmp_path / "sft.jsonl", *({"prompt": p, "response": r} for p, r in records))
    data = examples(uri, tasks=(bones(tmp_path),))
    prepared = prepare(with_data(config, data, tasks=(bones(tmp_path),))).facts.tuning_data[0]
    written = (tmp_path / "work" / data.folder / "train.jsonl").read_bytes()
    # An edit before the stage that learns has started: other data, the same corpus.
    corpus = (tmp_path / "work/data/manifest.json").read_bytes()
    other = examples(write(tmp_path / "new.jsonl", {"prompt": "c", "response": "d"}))
    assert read_again(other).facts.records == 1
    assert other.folder != data.folder
    again = read_again(data, try_number=2)
    assert again.facts.model_copy(update={"warnings": ()}) == prepared
    assert again.facts.warnings == (
        "spec.finetuning.data: 1 of 2 examples contain an evaluation item and are left out.",
    )
    assert (tmp_path / "work" / data.folder / "train.jsonl").read_bytes() == written
    assert (tmp_path / "work/data/manifest.json").read_bytes() == corpus
    assert [path.name for path in (tmp_path / "work/stages").glob("tuning*/try-*/prepared")] == []


def test_content_corrected_in_place_is_read_by_the_next_run(
    config, prepare, read_again, tmp_path: Path
) -> None:
    path = tmp_path / "sft.jsonl"
    prepare(config)
    data = examples(write(path, {"prompt": "a"}))
    with pytest.raises(InputError) as caught:
        read_again(data)
    assert caught.value.problems[0].startswith(f"spec.finetuning.data[0]: {path}:1: ")
    assert not (tmp_path / "work" / data.folder).exists()
    write(path, {"prompt": "a", "response": "b"})
    assert read_again(data, try_number=2).facts.records == 1
    write(path, {"prompt": "a", "response": "c"})
    read_again(data, try_number=3)
    assert responses(tmp_path / "work", data) == ["c<|end|>"]


def test_a_stopped_run_leaves_nothing_and_the_next_one_starts_again(
    config, prepare, read_again, tmp_path: Path, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(config)
    data = examples(write(tmp_path / "sft.jsonl", {"prompt": "a", "response": "b"}))
    monkeypatch.setattr(board, "stop_requested", lambda: True)
    with pytest.raises(StopRequested):
        read_again(data)
    assert not (tmp_path / "work" / data.folder).exists()
    monkeypatch.setattr(board, "stop_requested", lambda: False)
    assert read_again(data, try_number=2).facts.records == 1


def test_the_stage_needs_a_finished_prepare(read_again, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with pytest.raises(InputError, match="run prepare"):
        read_again(examples(write(tmp_path / "sft.jsonl", {"prompt": "a", "response": "b"})))


def test_recognized_layouts_and_unused_fields_are_said(config, prepare, tmp_path: Path) -> None:
    uri = write(
        tmp_path / "alpaca.jsonl",
        {"instruction": "Name it.", "input": "A00", "output": "Cholera.", "difficulty": 3, "id": 7},
        {"instruction": "Name it.", "input": "", "output": "Cholera.", "difficulty": 3, "subject": "x"},
    )
    warnings = prepare(with_data(config, examples(uri))).facts.warnings
    assert warnings[-2:] == (
        "spec.finetuning.data[0]: 2 records are read as Alpaca (instruction, input, output).",
        "spec.finetuning.data[0]: nothing is learned from the fields difficulty, subject.",
    )


def test_every_kind_of_record_file_is_read_alike(config, prepare, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet
    import zstandard

    rows = [
        {"messages": [turn("user", f"q{n}"), turn("assistant", f"line\u2028break {n}")], "source": None}
        for n in range(3)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + text)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(text))
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "flat.json").write_text(json.dumps(rows))
    (tmp_path / "array.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    names = ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "array.json", "flat.json", "array.json.gz", "a.parquet")
    data = examples(*(f"file://{tmp_path}/{name}" for name in names))
    prepare(with_data(config, data))
    expected = [f"line\u2028break {n}<|end|>" for n in range(3)]
    assert responses(tmp_path / "work", data) == expected * len(names)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", b'[{"prompt": "a"', "{path}: its array breaks off in element 1; copy it again"),
        ("a.parquet", b"PAR1 no table", "{path}: not a readable Parquet file after row 0 ("),
        ("a.txt", b"text", "{path}: not a file of records; accepted are .jsonl, .ndjson and .json (one record a line, or an array), also .gz or .zst, and .parquet"),
        ("a.jsonl", b'{"prompt": "a", "response": "\\ud800"}\n', "{path}:1: not Unicode text (half of a surrogate pair); correct the line"),
        ("a.json", b'[{"prompt": "a", "response": "\\ud800"}]', "{path}:1: not Unicode text (half of a surrogate pair); correct the line"),
        ("a.json", b"[3, 4]", "{path}:1: not a JSON object but a number; correct the line (1 more record has the same fault)"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(
    config, prepare, tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        prepare(with_data(config, examples(f"file://{path}")))
    (problem,) = caught.value.problems
    assert problem.startswith(f"spec.finetuning.data[0]: {sentence.replace('{path}', str(path))}")


def test_the_models_own_template_renders_and_names_the_end_of_a_turn(
    config, prepare, model: Path, tmp_path: Path
) -> None:
    settings = json.loads((model / "tokenizer_config.json").read_text())
    templates = [
        {"name": "default", "template": CHATML.replace("<|im_end|>", "<|end|>")},
        {"name": "rag", "template": "x"},
    ]
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": templates}))
    data = examples(write(tmp_path / "sft.jsonl", {"prompt": "a", "response": "b"}))
    prepare(with_data(config, data))
    assert lines(tmp_path / "work", data)[0]["texts"][0]["text"] == (
        "<|im_start|>user\na<|end|>\n<|im_start|>assistant\nb<|end|>"
    )
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": templates[1:]}))
    with pytest.raises(InputError) as caught:
        prepare(with_data(config, data), work=tmp_path / "other")
    assert caught.value.problems[0].endswith(
        "the model's tokenizer has the chat templates rag and none that is named default; name one of them default in tokenizer_config.json"
    )


def test_a_field_that_the_plain_template_ignores_is_refused(config, prepare, tmp_path: Path) -> None:
    path = tmp_path / "sft.jsonl"
    uri = write(path, {"messages": [turn("user", "a"), turn("assistant", "b") | {"thinking": "c"}]})
    with pytest.raises(InputError) as caught:
        prepare(with_data(config, examples(uri)))
    assert caught.value.problems == (
        f"spec.finetuning.data[0]: {path}:1: messages[1].thinking is not used by the plain chat template, which a model without one of its own gets; remove the field, or use a model whose template has a place for it",
    )


def test_the_digest_covers_the_mapping_of_fields() -> None:
    plain = InstructionSource(source="file:///a", format="messages")
    mapped = plain.model_copy(update={"fields": FieldNames(messages="dialogue")})
    digests = {
        TuningDataConfig(kind="instructions", instructions=(source,)).digest for source in (plain, mapped)
    }
    assert len(digests) == 2
