"""Tests that a published model is what its base is for every reader: today's transformers, and the oldest supported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dapt_contract.inputs.model_files import read_safetensors_header
from dapt_contract.stages.common import ModelReference
from dapt_trainer.publishing.older_transformers import OLDEST_TRANSFORMERS, needed_version
from dapt_trainer.stages.publish import assemble
from support.card_builders import publish_config
from support.older_transformers import FOLDER as OLDEST_FOLDER
from support.older_transformers import ReadModel, read_models
from support.toy_families import FAMILIES, make_family_model
from support.toy_training import CHAT_TEMPLATE, FILTERS, make_model, make_tokenizer

pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]

EXTENDED, TEMPLATE, HALF = "extended tokenizer", "new template", "float16"
VARIANTS = (*FAMILIES, EXTENDED, TEMPLATE, HALF)


def publish(work: Path, reference: ModelReference | None = None) -> Path:
    """Return the folder that is published of a work volume."""
    folder = work / "out"
    settings = publish_config("file:///out", model=reference or ModelReference(weights="model"))
    assemble(settings, work, folder, lambda: None)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def extend_tokenizer(work: Path) -> ModelReference:
    """Write `model-extended` with one more token, and return the model that starts from it."""
    from tokenizers import Tokenizer

    from dapt_trainer.tokenization.grow_model import Extension, grow_model, write_extension

    old, new = work / "model", work / "model-extended"
    new.mkdir()
    tokenizer = Tokenizer.from_file(str(old / "tokenizer.json"))
    tokenizer.add_tokens(["ab"])
    tokenizer.save(str(new / "tokenizer.json"))
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        (new / name).write_bytes((old / name).read_bytes())
    number = tokenizer.get_vocab(with_added_tokens=True)["ab"]
    write_extension(new, Extension(number, ((66, 67),)))
    grow_model(old, new)
    return ModelReference(weights="model-extended", origin="model-extended")


def add_template(work: Path) -> ModelReference:
    """Write what full fine-tuning leaves: all weights, and a tokenizer with a chat template."""
    name = "stages/finetune-a1/try-1/model"
    make_model(work / name, chat_template=True, seed=4)
    return ModelReference(weights=name)


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ReadModel, ReadModel]]:
    """What each version of transformers makes of each published model: the newest, then the oldest."""
    root = tmp_path_factory.mktemp("published")
    folders: dict[str, Path] = {}
    for variant in VARIANTS:
        work = root / variant.replace(" ", "-")
        family = variant if variant in FAMILIES else "Qwen3"
        make_family_model(work / "model", family, dtype=torch.float16 if variant == HALF else None)
        reference = None
        if variant == EXTENDED:
            reference = extend_tokenizer(work)
        if variant == TEMPLATE:
            make_model(work / "model")
            reference = add_template(work)
        folders[variant] = publish(work, reference)
    _, newest = read_models(list(folders.values()), older=False)
    version, oldest = read_models(list(folders.values()), older=True)
    assert version.startswith(f"{OLDEST_TRANSFORMERS}.")
    return {variant: (newest[folder], oldest[folder]) for variant, folder in folders.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_oldest_transformers_reads_the_same_model(
    readings: dict[str, tuple[ReadModel, ReadModel]], variant: str
) -> None:
    newest, oldest = readings[variant]
    assert oldest.first_choices == newest.first_choices
    assert oldest.largest_logit == pytest.approx(newest.largest_logit, abs=1e-2)
    assert (oldest.tokens, oldest.eos_token) == (newest.tokens, newest.eos_token)
    assert oldest.special_tokens == ["<|end|>"]
    assert (oldest.end_token_ids, oldest.chat) == (newest.end_token_ids, newest.chat)
    assert oldest.use_cache
    assert oldest.dtype == newest.dtype == ("float16" if variant == HALF else "float32")


def test_a_new_template_and_a_new_token_reach_both(readings: dict[str, tuple[ReadModel, ReadModel]]) -> None:
    assert readings[TEMPLATE][1].chat == "<user>a b<|end|><assistant>"
    assert readings["Llama"][1].chat is None
    assert len(readings[EXTENDED][1].tokens) == len(readings["Llama"][1].tokens) - 1


def test_the_card_knows_the_architectures_of_the_oldest_transformers(
    readings: dict[str, tuple[ReadModel, ReadModel]],
) -> None:
    assert readings  # the oldest version is installed
    source = (OLDEST_FOLDER / "transformers/models/auto/modeling_auto.py").read_text()
    mapping = source.partition("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict(")[2].partition("\n)\n")[0]
    known = set(re.findall(r'^ +\(\s*"([^"]+)"', mapping, re.MULTILINE))
    newer = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - known
    assert known
    assert newer
    assert all("that version knows" in needed_version(name) for name in known)
    assert not any("that version knows" in needed_version(name) for name in newer)


def earlier_base(folder: Path) -> dict[str, bytes]:
    """Write a base model with the files of an earlier version, and return them."""
    make_model(folder)
    config = json.loads((folder / "config.json").read_text())
    for name in ("rope_parameters", "dtype"):
        config.pop(name)
    config |= {"rope_theta": 500000.0, "rope_scaling": None, "torch_dtype": "float32", "custom_note": "ours"}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "model_max_length": 128}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(
        '{"temperature": 0.6,\n "do_sample": true, "eos_token_id": 0}'
    )
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|end|>"}')
    (folder / "tokenizer.model").write_bytes(b"pieces")
    (folder / "LICENSE.txt").write_text("terms")
    (folder / "NOTICE").write_text("built with")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/rag.jinja").write_text("{{ messages }}")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "facts.json").write_text("{}")
    return files_of(folder)


def test_files_in_which_nothing_changed_are_the_base_models_own(tmp_path: Path) -> None:
    base = earlier_base(tmp_path / "model")
    published = files_of(publish(tmp_path))
    assert published.keys() == base.keys() - {"facts.json"}
    changed = {name for name in published if published[name] != base[name]}
    assert changed <= {"README.md", "model.safetensors"}  # our card; the weights are compared below
    written, own = (
        load_file(tmp_path / "out/model.safetensors"),
        load_file(tmp_path / "model/model.safetensors"),
    )
    assert written.keys() == own.keys()
    assert all(torch.equal(written[name], own[name]) for name in own)


def test_fine_tuning_changes_the_template_and_where_generation_stops_and_nothing_else(tmp_path: Path) -> None:
    base = earlier_base(tmp_path / "model")
    tuned = tmp_path / "stages/finetune-a1/try-1/model"
    make_model(tuned, chat_template=False, seed=4)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ eos_token }}", "<|im_end|>")
    tokenizer.save_pretrained(tuned)
    published = files_of(publish(tmp_path, ModelReference(weights="stages/finetune-a1/try-1/model")))
    new = {"chat_template.jinja"}
    assert published.keys() == (base.keys() | new) - {"facts.json"}
    changed = {name for name in base.keys() & published.keys() if published[name] != base[name]}
    assert changed == {"README.md", "model.safetensors", "generation_config.json"}
    assert published["chat_template.jinja"].decode() == tokenizer.chat_template
    assert json.loads(published["generation_config.json"]) == {
        "temperature": 0.6,
        "do_sample": True,
        "eos_token_id": [0, tokenizer.convert_tokens_to_ids("<|im_end|>")],
    }


def test_a_base_without_generation_settings_gets_none(tmp_path: Path) -> None:
    earlier_base(tmp_path / "model")
    (tmp_path / "model/generation_config.json").unlink()
    assert "generation_config.json" not in files_of(publish(tmp_path))


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (("float16", "float16"), ("F16", "F16")),
        (("bfloat16", "float32"), ("BF16", "F32")),
        (("float32", "float32"), ("F32", "F32")),
    ],
)
def test_tensors_have_the_types_of_the_base_models(
    tmp_path: Path, types: tuple[str, str], expected: tuple[str, str]
) -> None:
    make_model(tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    tensors = {
        name: tensor.to(getattr(torch, types["norm" in name])) for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})
    written = read_safetensors_header(publish(tmp_path) / "model.safetensors").dtypes
    assert {name: written[name] for name in tensors} == {name: expected["norm" in name] for name in tensors}


def test_weights_past_the_range_of_fp16_are_published_in_bf16(tmp_path: Path) -> None:
    make_family_model(tmp_path / "model", "Llama", dtype=torch.float16)
    name = "stages/pretrain-a1/try-1/checkpoint-2"
    make_family_model(tmp_path / name, "Llama")
    file = tmp_path / name / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][0] = 70_000.0
    save_file(tensors, file, metadata={"format": "pt"})
    out = publish(tmp_path, ModelReference(weights=name))
    assert set(read_safetensors_header(out / "model.safetensors").dtypes.values()) == {"BF16"}
    config: dict[str, Any] = json.loads((out / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert torch.isfinite(load_file(out / "model.safetensors")["model.norm.weight"]).all()
