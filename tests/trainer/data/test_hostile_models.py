"""Base models that mean harm are refused in one sentence: nothing of them runs, and nothing is tried again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from dapt_contract.inputs.model_files import read_complete_header
from dapt_trainer.data.base_model.check import check_base_model
from dapt_trainer.data.base_model.facts import read_model_facts, read_tokenizer
from dapt_trainer.data.base_model.fetch import import_model
from dapt_trainer.data.base_model.tokenizer_trial import problem_of, try_tokenizer
from dapt_trainer.digests import weights_digest
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.stored_models.code_settings import code_problems
from dapt_trainer.modeling.stored_models.weight_files import BadWeightsError, leading_out, weight_files
from support.hostile_files import Canary
from support.hostile_models import ACCEPTED, INDEX, MODELS, index, linked, pickled
from support.toy_corpus import write_model

LEAST_CASES = 80


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A good model, of which each case gets a copy."""
    return write_model(tmp_path_factory.mktemp("hostile") / "model", tokenizer)


@pytest.fixture
def hostile(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy with modules that write the canary, which Python would find."""
    monkeypatch.setattr(Canary, "path", tmp_path / "canary")
    model = tmp_path / "model"
    shutil.copytree(template, model)
    for name in ("evil.py", "modeling.py"):
        (model / name).write_text(f"open({str(Canary.path)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(model))
    yield model
    assert not Canary.path.exists()


def said_of(model: Path) -> str:
    """What prepare says of a model, without what it says before each sentence; anything but bad input is raised."""
    source = f"file://{model}"
    folder = model.parent / "imported"
    try:
        import_model(source, folder, model.parent / "scratch")
        if problem := problem_of(folder / "tokenizer.json"):
            return f"tokenizer.json {problem}"
        tokenizer = read_tokenizer(folder, source)
        check_base_model(folder, tokenizer, source, lambda: None)
        read_model_facts(folder, source, has_chat_template=tokenizer.has_chat_template)
    except InputError as error:
        (sentence,) = error.problems
        return sentence.removeprefix("spec.model.source: ").removeprefix(f"{source}: ")
    return ""


def test_the_cases_are_many() -> None:
    assert len(MODELS) >= LEAST_CASES


@pytest.mark.parametrize("case", MODELS)
def test_a_hostile_model_is_refused_in_one_sentence_and_runs_nothing(hostile: Path, case: str) -> None:
    rows = json.loads((hostile / "config.json").read_text())["vocab_size"]
    spoil, sentence = MODELS[case]
    spoil(hostile)
    places = {"source": f"file://{hostile}", "model": hostile, "outside": hostile.parent / "secret"}
    numbers = {"rows": f"{rows:,}", "beyond": rows}
    for name, value in (places | numbers).items():
        sentence = sentence.replace(f"{{{name}}}", str(value))
    assert said_of(hostile) == sentence


def test_a_link_into_a_hub_cache_is_taken_and_one_out_of_it_is_not(hostile: Path) -> None:
    repository = hostile.parent / "hub" / "models--org--base"
    snapshot = repository / "snapshots" / "c0ffee"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(hostile.iterdir()):
        path.rename(repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert said_of_copy(snapshot, hostile.parent / "first") == ACCEPTED
    linked("LICENSE", "{outside}")(snapshot)
    (repository / "blobs" / "secret").symlink_to(snapshot.parent / "secret")
    (snapshot / "LICENSE").unlink()
    (snapshot / "LICENSE").symlink_to("../../blobs/secret")
    assert "LICENSE leads to" in said_of_copy(snapshot, hostile.parent / "second")


def said_of_copy(model: Path, scratch: Path) -> str:
    try:
        import_model(f"file://{model}", scratch / "imported", scratch)
    except InputError as error:
        return str(error)
    return ""


def test_a_folder_is_checked_again_at_each_load(hostile: Path) -> None:
    index()(hostile)
    (hostile / "LICENSE").write_text("terms")
    assert weight_files(hostile) == ("a.safetensors",)
    digest = weights_digest(hostile)
    pickled(hostile)
    # What a digest does not cover is never opened.
    assert weights_digest(hostile) == digest
    (hostile / INDEX).write_text(json.dumps({"weight_map": {"a": "evil.bin"}}))
    with pytest.raises(BadWeightsError, match=r"not the plain name of a \.safetensors file"):
        weight_files(hostile)
    linked("vocab.txt", "{outside}")(hostile)
    assert leading_out(hostile, ["config.json", "vocab.txt"]) == ("vocab.txt", str(hostile.parent / "secret"))


def test_a_pipe_on_the_work_volume_is_not_waited_for(hostile: Path) -> None:
    (hostile / "config.json").unlink()
    os.mkfifo(hostile / "config.json")
    (problem,) = code_problems(hostile)
    assert problem == "config.json is not readable JSON (not a regular file); download the model again"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"megatron_core": "megatron.core", "megatron_config": None, "auto_mapping": None}, ""),
        ({"megatron_core": "evil"}, "asks for a module of Python (megatron_core: 'evil')"),
        ({"megatron_config": {"a": 1}}, "asks for a module of Python (megatron_config: {'a': 1})"),
        ({"auto_mapping": {"parent_library": "evil"}}, "asks for code from the model's repository (auto_mapping)"),
    ],
)  # fmt: skip
def test_an_adapter_that_names_a_module_is_refused(
    hostile: Path, settings: dict[str, object], problem: str
) -> None:
    (hostile / "adapter_config.json").write_text(json.dumps(settings))
    problems = code_problems(hostile)
    assert len(problems) == bool(problem)
    assert all(sentence.startswith(f"adapter_config.json {problem}") for sentence in problems)


def test_a_quantized_folder_is_refused_where_it_is_loaded(hostile: Path) -> None:
    (hostile / "config.json").write_text('{"quantization_config": {"quant_method": "awq"}}')
    assert code_problems(hostile) == [
        "config.json describes a quantized model (quantization_config); use the model before it was quantized"
    ]
    assert code_problems(hostile, allows_quantization=True) == []


def test_an_empty_tensor_shares_its_place_with_the_next(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    body = json.dumps({"a": entry, "b": entry | {"shape": [2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "a").write_bytes(len(body).to_bytes(8, "little") + body + bytes(8))
    assert read_complete_header(tmp_path / "a").shapes == {"a": (0,), "b": (2,)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "seconds of processor"),
        ("{{ 'a' * 10**10 }}", "GiB of memory"),
        ("{{ raise_exception('no system message') }}", ""),
    ],
)  # fmt: skip
def test_a_template_without_end_is_refused_by_its_trial(
    hostile: Path, monkeypatch: pytest.MonkeyPatch, content: str, reason: str
) -> None:
    monkeypatch.setattr("dapt_trainer.data.base_model.tokenizer_trial.TEMPLATE_CPU_SECONDS", 1)
    (hostile / "chat_template.jinja").write_text(content)
    try:
        try_tokenizer(hostile, "s", lambda: None)
        said = ""
    except InputError as error:
        said = str(error)
    assert said.startswith("spec.model.source: s: its chat template cannot be used: ") == bool(reason)
    assert reason in said
