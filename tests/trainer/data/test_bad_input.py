"""Each fault of the input gets its sentence, and all of them come at once."""

# ruff: noqa: E501 (a sentence stands in one piece)

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from dapt_contract.stages.common import ProbeConfig, TaskConfig
from dapt_contract.stages.prepare import ModelFacts, PrepareConfig, TextSource
from dapt_trainer.data import disk_space
from dapt_trainer.errors import InfrastructureError, InputError
from support.toy_corpus import documents, train_tokenizer, write_jsonl, write_model

Prepare = Callable[..., object]


@pytest.fixture
def problems_of(prepare: Prepare) -> Callable[[PrepareConfig], list[str]]:
    """The sentences that a configuration ends with."""

    def problems(config: PrepareConfig) -> list[str]:
        with pytest.raises(InputError) as caught:
            prepare(config)
        return list(caught.value.problems)

    return problems


def changed(config: PrepareConfig, **fields: object) -> PrepareConfig:
    return config.model_copy(update=fields)


def source(path: Path, **fields: object) -> TextSource:
    return TextSource(source=f"file://{path}", **fields)


def test_all_problems_are_reported_at_once(config, problems_of, tmp_path: Path, tokenizer) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\nnot json\n')
    other = write_jsonl(tmp_path / "body.jsonl", documents(5), field_name="body")
    model = write_model(tmp_path / "no-end", tokenizer, end_of_text=None)
    task = tmp_path / "task.jsonl"
    task.write_text('{"question": "a?", "choices": ["x"], "answer": 0}\n')
    config = changed(
        config,
        model_source=f"file://{model}",
        domain=(source(bad), source(tmp_path / "none.jsonl"), source(other)),
        tasks=(TaskConfig(name="t", side="domain", source=f"file://{task}"),),
    )
    assert problems_of(config) == [
        f"spec.model.source: file://{model}: its tokenizer has no end-of-text token (eos_token), which must stand "
        "between documents; add eos_token to tokenizer_config.json, or use another model",
        f"spec.corpus.domain[1].source: no file matches file://{tmp_path}/none.jsonl; check the path and its wildcards",
        f"spec.evaluation.domain.tasks[t]: {task}:1: field 'choices' is not a list of at least two texts; "
        'a task item is {"question": text, "choices": [texts], "answer": index, letter or text}',
        f"spec.corpus.domain[0]: {bad}:2: not JSON (Expecting value: line 1 column 1 (char 0)); correct the line, or "
        "allow a share of bad records with spec.corpus.badRecords.maxFraction (it is 0; 1 of 2 records read are bad)",
        f"spec.corpus.domain[2].textField: {other}:1 has no field 'text'; its fields are body: name the one that "
        "holds the text",
    ]


def test_too_many_bad_records_name_the_first(config, problems_of, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    lines = [json.dumps({"text": text}) for text in documents(50)]
    path.write_text("\n".join([*lines[:10], "{", *lines[10:20], '{"text": null}', "[]", "3", *lines[20:]]))
    assert problems_of(changed(config, domain=(source(path),), bad_records_max_fraction=0.05)) == [
        f"spec.corpus.domain[0]: {path}:{line}: {reason}; correct the line, or allow a share of bad records with "
        "spec.corpus.badRecords.maxFraction (it is 0.05; 4 of 54 records read are bad)"
        for line, reason in [
            (11, "not JSON (Expecting property name enclosed in double quotes: line 2 column 1 (char 2))"),
            (22, "field 'text' is not a string but null"),
            (23, "not a JSON object but a list"),
        ]
    ]


def test_a_text_file_that_is_too_long_is_to_be_split(config, problems_of, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_bytes(b"a word " * (2**24 // 7 + 1))
    assert problems_of(changed(config, domain=(source(path),))) == [
        f"spec.corpus.domain[0]: {path}:1: longer than 16 MiB; split the document, or allow a share of bad records with "
        "spec.corpus.badRecords.maxFraction (it is 0; 1 of 1 records read are bad)"
    ]


def test_bad_records_past_max_tokens_do_not_count(config, prepare, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", documents(200))
    path.write_text(path.read_text() + "broken\n")
    with pytest.raises(InputError):
        prepare(changed(config, domain=(source(path),)))


def test_a_corpus_smaller_than_one_batch_is_refused_with_its_size(
    config, problems_of, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", documents(8))
    (sentence,) = problems_of(changed(config, domain=(source(path),), global_batch_size=64))
    assert sentence == (
        "spec.corpus.domain: 441 training tokens make 4 sequence(s) of 128 tokens, less than one batch of 64; add "
        "text, or lower spec.pretraining.globalBatchSize or spec.corpus.sequenceLength"
    )


def test_a_side_of_two_documents_cannot_be_split(config, problems_of, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "g.jsonl", [*documents(1), " ", "", *documents(1)])
    assert problems_of(changed(config, general=(source(path),))) == [
        "spec.corpus.general: 1 different document(s) are too few: one is held out for each of two halves and at "
        "least one is trained on; add documents (a text file is one document, a JSON line is one)"
    ]


def test_a_sequence_past_the_models_positions_is_refused(config, problems_of) -> None:
    assert problems_of(changed(config, sequence_length_tokens=512)) == [
        "spec.corpus.sequenceLength: 512 is past the model's 256 positions; use at most 256"
    ]


def test_without_a_sequence_length_it_is_the_models(config, prepare) -> None:
    assert prepare(changed(config, sequence_length_tokens=None)).facts.sequence_length_tokens == 256


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_that_brings_code_is_refused(config, problems_of, model: Path, name: str) -> None:
    settings = json.loads((model / name).read_text()) | {
        "auto_map": {"AutoModelForCausalLM": "modeling.Mine"}
    }
    (model / name).write_text(json.dumps(settings))
    assert problems_of(config) == [
        f"spec.model.source: file://{model}: {name} asks for code from the model's repository (auto_map), which dapt "
        "never runs; use a model of an architecture that transformers knows"
    ]


def test_pickled_weights_are_refused(config, problems_of, model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert problems_of(config) == [
        f"spec.model.source: file://{model} has pickled weights only (.bin, .pt), which can run code when they are "
        "read; use a revision with safetensors, or convert the model"
    ]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda m: (m / "config.json").unlink(), "no config.json there; {accepted}"),
        (lambda m: (m / "model.safetensors").unlink(), "no *.safetensors file there; {accepted}"),
        (
            lambda m: (m / "config.json").write_text("{"),
            "config.json is not readable JSON (Expecting property name enclosed in double quotes: line 1 column 2 "
            "(char 1)); download the model again",
        ),
        (
            lambda m: (m / "model.safetensors").write_bytes((m / "model.safetensors").read_bytes()[:-8]),
            "model.safetensors is truncated or damaged (has {short} bytes, its header says {size}); download the "
            "model again",
        ),
    ],
)
def test_an_incomplete_model_is_refused_with_the_missing_part(
    config, problems_of, model: Path, spoil, sentence: str
) -> None:
    size = (model / "model.safetensors").stat().st_size
    spoil(model)
    accepted = "accepted are a folder with config.json and *.safetensors, and one .gguf file"
    message = sentence.format(accepted=accepted, short=size - 8, size=size)
    assert problems_of(config) == [f"spec.model.source: file://{model}: {message}"]


def test_a_missing_model_is_refused_in_one_sentence(config, problems_of, tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/none"
    assert problems_of(changed(config, model_source=uri)) == [
        f"spec.model.source: {uri}: no such file or folder; accepted are a folder with config.json and "
        "*.safetensors, and one .gguf file"
    ]


def test_an_encoder_is_refused(config, problems_of, tmp_path: Path, tokenizer) -> None:
    model = write_model(tmp_path / "bert", tokenizer, architectures=["BertForMaskedLM"])
    assert problems_of(changed(config, model_source=f"file://{model}")) == [
        f"spec.model.source: file://{model} is BertForMaskedLM, not a causal language model (…ForCausalLM); use one "
        "that is"
    ]


def a_model(parameters: int) -> ModelFacts:
    return ModelFacts(
        architecture="LlamaForCausalLM",
        parameters=parameters,
        hidden_size=2048,
        layers=16,
        vocabulary_size=32000,
        attention_heads=32,
        key_value_heads=8,
        intermediate_size=8192,
        max_positions=4096,
        tied_embeddings=True,
        has_chat_template=False,
        revision="r",
        digest="d",
        weights_bytes=2 * parameters,
    )


def full_training(**fields: int) -> PrepareConfig:
    return PrepareConfig(model_source="file:///m", domain=(), general=(), trains_all_weights=True, **fields)


@pytest.mark.parametrize(
    ("fields", "free_gib", "sentence"),
    [
        (
            {"checkpoints_kept": 2},
            1.0,
            "not enough disk for two checkpoints: 26.1 GiB are needed, 1.0 GiB are free; use a larger volume, or "
            "train LoRA instead of all weights",
        ),
        (
            {"checkpoints_kept": 10},
            30.0,
            "not enough disk for the 10 checkpoints to keep: 41.0 GiB are needed, 30.0 GiB are free; use a larger "
            "volume, or lower spec.pretraining.checkpoints.count",
        ),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(tmp_path, monkeypatch, fields, free_gib, sentence) -> None:
    facts = a_model(parameters=1_000_000_000)
    monkeypatch.setattr(
        disk_space.shutil, "disk_usage", lambda _: SimpleNamespace(free=int(free_gib * 1024**3))
    )
    with pytest.raises(InputError) as caught:
        disk_space.check_space(tmp_path, facts, full_training(**fields))
    assert str(caught.value) == f"{tmp_path}: {sentence}"


def test_a_volume_too_small_for_further_attempts_gets_a_warning(tmp_path, monkeypatch) -> None:
    facts = a_model(parameters=1_000_000_000)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: SimpleNamespace(free=50 * 1024**3))
    assert disk_space.check_space(tmp_path, facts, full_training(checkpoints_kept=10)) is None
    assert disk_space.check_space(tmp_path, facts, full_training(checkpoints_kept=10, attempts=3)) == (
        f"{tmp_path} has 50.0 GiB free; the checkpoints of 3 attempts, should the run be rolled back, take up to 78.2 "
        "GiB: use a larger volume, or lower spec.gates.rollback.maxRollbacks or spec.pretraining.checkpoints.count."
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "not JSON (Expecting property name enclosed in double quotes: line 2 column 1 (char 2)); correct the line"),
        ('{"prompt": "a", "choices": ["x", "y"], "answer": 0}', "no field 'question' (its fields are prompt, choices, answer); {item}"),
        ('{"question": " ", "choices": ["x", "y"], "answer": 0}', "field 'question' is empty or of the wrong type; {item}"),
        ('{"question": "a", "choices": ["x", 3], "answer": 0}', "field 'choices' is not a list of at least two texts; {item}"),
        ('{"question": "a", "choices": ["x", "x"], "answer": 0}', "two of the choices are equal; every choice must differ"),
        ('{"question": "a", "choices": ["x", "y"], "answer": 2}', "answer 2 is not an index from 0 to 1, nor one of the choices, nor one of A to B; correct it"),
    ],
)  # fmt: skip
def test_a_bad_task_item_is_reported_with_its_line(
    config, problems_of, tmp_path: Path, line: str, sentence: str
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"question": "q?", "choices": ["x", "y"], "answer": 1}\n' + line + "\n")
    config = changed(config, tasks=(TaskConfig(name="t", side="general", source=f"file://{path}"),))
    item = 'a task item is {"question": text, "choices": [texts], "answer": index, letter or text}'
    assert problems_of(config) == [
        f"spec.evaluation.general.tasks[t]: {path}:2: {sentence.replace('{item}', item)}"
    ]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"prompt": "a", "order": ["x"]}', "field 'order' is not a list of at least two texts; {order}"),
        ('{"prompt": "a", "order": ["x", " "]}', "field 'order' is not a list of at least two texts; {order}"),
        ('{"prompt": "a", "order": ["x", "y", "x"]}', "two entries of 'order' are equal; every entry must differ"),
        ('{"prompt": "", "order": ["x", "y"]}', "field 'prompt' is empty or of the wrong type; {order}"),
        ('{"prompt": "a", "order": ["x", "y"], "answer": 0}', "it has 'order' and also 'choices' or 'answer', but a probe chooses or orders; {order}"),
        ('{"question": "a", "answer": 0}', "no field 'prompt' (its fields are question, answer); {choice}"),
    ],
)  # fmt: skip
def test_a_bad_probe_is_reported_with_its_line(
    config, problems_of, tmp_path: Path, line: str, sentence: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "a", "order": ["x", "y"]}\n{"prompt": "a", "choices": ["x", "y"], "answer": 1}\n'
        + line
        + "\n"
    )
    config = changed(config, probes=(ProbeConfig(name="p", side="domain", source=f"file://{path}"),))
    order = 'a probe that orders is {"prompt": text, "order": [texts]}, the likeliest first'
    choice = 'a probe item is {"prompt": text, "choices": [texts], "answer": index, letter or text}, or {"prompt": text, "order": [texts]}'
    message = sentence.replace("{order}", order).replace("{choice}", choice)
    assert problems_of(config) == [f"spec.evaluation.probes.domain[p]: {path}:3: {message}"]


def test_an_empty_task_file_is_reported(config, problems_of, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n")
    config = changed(config, tasks=(TaskConfig(name="t", side="general", source=f"file://{path}"),))
    assert problems_of(config) == [
        f"spec.evaluation.general.tasks[t]: file://{path} has no line; fill it or remove it"
    ]


@pytest.mark.torch
def test_an_unknown_harness_task_is_refused_before_model_and_corpus_are_read(
    config, problems_of, tmp_path: Path, board
) -> None:
    bad = tmp_path / "t.jsonl"
    bad.write_text("{}\n")
    corpus = tmp_path / "broken.jsonl"
    corpus.write_text("broken\n")
    tasks = (
        TaskConfig(name="bioasq", side="domain"),
        TaskConfig(name="arc_easy", side="general"),
        TaskConfig(name="t", side="general", source=f"file://{bad}"),
    )
    changes = {"tasks": tasks, "model_source": "file:///nowhere", "domain": (source(corpus),)}
    unknown, line = problems_of(changed(config, **changes))
    assert unknown.startswith("spec.evaluation.domain.tasks[bioasq]: lm-evaluation-harness ")
    assert " has no task 'bioasq'; near: medqa_4options, medmcqa, pubmedqa, multimedqa; write one " in unknown
    assert line.startswith(f"spec.evaluation.general.tasks[t]: {bad}:1: no field 'question'")
    assert "checking the corpus" not in board.activities


@pytest.mark.torch
def test_a_task_whose_data_cannot_be_reached_is_named(config, problems_of) -> None:
    config = changed(config, tasks=(TaskConfig(name="arc_easy", side="general"),))
    (sentence,) = problems_of(config)
    assert sentence.startswith("spec.evaluation.general.tasks[arc_easy]: its data cannot be read (")
    assert sentence.endswith(
        "); check the network and the credentials, or give the task a source of your own"
    )


def test_a_full_volume_is_the_volumes_fault(config, prepare, monkeypatch) -> None:
    import errno

    from dapt_trainer.data.packing import shards

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards.ShardWriter, "write_row", full)
    with pytest.raises(
        InfrastructureError, match=r"/work: the work volume is full \(No space left on device\); enlarge"
    ):
        prepare(config)


def test_sharded_weights_are_counted_and_only_one_set_is_taken(
    config, prepare, tmp_path, model: Path
) -> None:
    size = json.loads((model / "config.json").read_text())["vocab_size"]
    (model / "model.safetensors").unlink()
    save_file({"a": np.ones((size, 32), np.float16)}, model / "model-00001-of-00002.safetensors")
    save_file({"b": np.ones(7, np.float32)}, model / "model-00002-of-00002.safetensors")
    save_file({"c": np.ones(99, np.float32)}, model / "consolidated.safetensors")
    index = {"weight_map": {f"{n}": f"model-0000{i}-of-00002.safetensors" for i, n in ((1, "a"), (2, "b"))}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "modeling_mine.py").write_text("raise SystemExit")
    facts = prepare(config).facts.model
    assert facts.parameters == size * 32 + 7
    assert facts.weights_bytes == size * 64 + 28
    made = {path.name for path in (tmp_path / "work/model").iterdir()}
    assert made.isdisjoint({"consolidated.safetensors", "modeling_mine.py"})
    assert "facts.json" in made


def test_a_large_vocabulary_takes_four_bytes_a_token(config, prepare, tmp_path: Path, model: Path) -> None:
    from tokenizers import Tokenizer

    from dapt_trainer.data.packing.data_manifest import read_manifest
    from dapt_trainer.data.packing.shards import open_shards

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.add_tokens([f"<{number}>" for number in range(70_000)])
    write_model(model, tokenizer)
    texts = [f"{text} <{60_000 + number}>" for number, text in enumerate(documents(100))]
    path = write_jsonl(tmp_path / "d.jsonl", texts)
    prepare(changed(config, domain=(source(path),)))
    assert read_manifest(tmp_path / "work").token_type == "uint32"
    assert max(int(shard.tokens.max()) for shard in open_shards(tmp_path / "work")) > 60_000


def test_a_chat_template_gets_a_warning(config, prepare, model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ messages }}")
    facts = prepare(config).facts
    assert facts.model.has_chat_template
    assert facts.warnings[0].startswith("The base model has a chat template: continued pre-training costs")


def test_warnings_count_duplicate_empty_and_tiny_documents(config, prepare, tmp_path: Path) -> None:
    texts = documents(60)
    path = write_jsonl(
        tmp_path / "d.jsonl", texts + texts[:30] + ["tiny one " + str(n) for n in range(30)] + [""] * 20
    )
    warnings = prepare(changed(config, domain=(source(path),))).facts.warnings
    assert "domain[0]: 30 of 140 documents (21%) are duplicates and are read once." in warnings
    assert "domain[0]: 20 of 140 documents (14%) are empty." in warnings
    assert any(
        warning.startswith("domain[0]: 30 of 90 documents (33%) have fewer than 16 tokens; ")
        for warning in warnings
    )


def test_a_tokenizer_names_its_end_of_text_in_any_of_the_usual_ways(tmp_path: Path, tokenizer) -> None:
    from dapt_trainer.data.base_model.facts import read_tokenizer

    model = write_model(tmp_path / "m", tokenizer, end_of_text=None)
    (model / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|end|>"}}')
    assert read_tokenizer(model, "s").end_of_text_id == tokenizer.token_to_id("<|end|>")
    (model / "special_tokens_map.json").write_text('{"eos_token": "<|absent|>"}')
    with pytest.raises(
        InputError, match=r"end-of-text token '<\|absent\|>' \(eos_token\) is not in tokenizer.json"
    ):
        read_tokenizer(model, "s")
    assert train_tokenizer(documents(3)).get_vocab_size() > 256
