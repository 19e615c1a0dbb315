"""Weights that are none are refused by name: quantized, empty, doubled, not finite, zero, and tokens without a row."""

# ruff: noqa: E501 (a sentence stands in one piece)

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dapt_contract.stages.prepare import PrepareConfig
from dapt_trainer.data.base_model.weights import weights_problems
from dapt_trainer.errors import InputError
from support.toy_corpus import llama_weights

UP = "model.layers.{}.mlp.up_proj.weight"


def changed(model: Path, name: str, tensor: np.ndarray) -> None:
    """Replace or add one tensor of the model."""
    file = model / "model.safetensors"
    save_file(load_file(file) | {name: tensor}, file)


def write_bf16(file: Path, tensors: dict[str, list[int]]) -> None:
    """Write vectors of bfloat16, which numpy has not, by their bits."""
    header: dict[str, object] = {}
    content = b""
    for name, bits in tensors.items():
        values = np.array(bits, np.uint16).tobytes()
        offsets = [len(content), len(content) + len(values)]
        header[name] = {"dtype": "BF16", "shape": [1, len(bits)], "data_offsets": offsets}
        content += values
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content)


def refused(model: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        weights_problems(model, "toy")
    return list(caught.value.problems)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_named(model: Path, dtype: type, value: float) -> None:
    tensor: np.ndarray = np.ones((64, 32), dtype)
    tensor[63, 31] = value
    changed(model, UP.format(1), tensor)
    assert weights_problems(model, "toy") == [
        "spec.model.source: toy: 1 tensor (model.layers.1.mlp.up_proj.weight) has values that are infinite or no number; "
        "use another checkpoint of the model"
    ]


def test_bfloat16_is_judged_by_its_bits(tmp_path: Path) -> None:
    largest, infinite, negative_nan = 0x7F7F, 0x7F80, 0xFFC0
    file = tmp_path / "model.safetensors"
    write_bf16(
        file, {"fine": [largest, 0x8000], "a": [0, infinite], "b": [negative_nan, 1], "zero": [0, 0x8000]}
    )
    assert weights_problems(tmp_path, "toy") == [
        "spec.model.source: toy: 2 tensors (a, b) have values that are infinite or no number; use another checkpoint of "
        "the model",
        "spec.model.source: toy: 1 matrix (zero) has only zeros; use a complete checkpoint of the model",
    ]


def test_many_tensors_are_counted_and_zero_vectors_are_fine(model: Path) -> None:
    weights = llama_weights(400, layers=5)
    for name, tensor in weights.items():
        if "proj" in name or "layernorm" in name:
            tensor[:] = 0
    save_file(weights, model / "model.safetensors")
    (sentence,) = weights_problems(model, "toy")
    assert sentence == (
        "spec.model.source: toy: 35 matrices (model.layers.0.mlp.down_proj.weight, model.layers.0.mlp.gate_proj.weight, "
        "model.layers.0.mlp.up_proj.weight and 32 more) have only zeros; use a complete checkpoint of the model"
    )


def test_placeholders_of_zero_stage_3_are_named(model: Path) -> None:
    changed(model, UP.format(0), np.ones(0, np.float32))
    changed(model, UP.format(1), np.ones((0, 32), np.float32))
    assert refused(model) == [
        "spec.model.source: toy: 2 tensors (model.layers.0.mlp.up_proj.weight, model.layers.1.mlp.up_proj.weight) are "
        "empty, as ZeRO stage 3 leaves them when weights are saved without being gathered; convert the checkpoint with "
        "zero_to_fp32.py, use the result"
    ]


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        (UP.format(0), np.ones((64, 32), np.int8)),
        (UP.format(0), np.ones((64, 32), np.uint8)),
        ("model.layers.0.mlp.up_proj.qweight", np.ones((4, 32), np.int32)),
        ("model.layers.0.mlp.up_proj.weight_scale", np.ones((64, 1), np.float32)),
    ],
)
def test_quantized_weights_are_named(model: Path, name: str, tensor: np.ndarray) -> None:
    changed(model, name, tensor)
    (sentence,) = refused(model)
    assert sentence.startswith(f"spec.model.source: toy is quantized: 1 tensor ({name} (")
    assert sentence.endswith(")) is no bf16, fp16 or fp32; use the model before it was quantized")


def test_a_quantized_configuration_is_named(model: Path) -> None:
    config = json.loads((model / "config.json").read_text()) | {
        "quantization_config": {"quant_method": "fp8"}
    }
    (model / "config.json").write_text(json.dumps(config))
    assert refused(model) == [
        "spec.model.source: toy is quantized: config.json has a quantization_config (fp8); use the model before it was "
        "quantized"
    ]


def test_masks_and_positions_that_old_models_store_are_fine(model: Path) -> None:
    changed(model, "model.layers.0.self_attn.bias", np.ones((1, 1, 4, 4), np.bool_))
    changed(model, "model.embeddings.position_ids", np.zeros((1, 4), np.int64))
    assert weights_problems(model, "toy") == []


def test_a_tensor_in_two_files_is_named(model: Path) -> None:
    save_file({"model.norm.weight": np.ones(32, np.float32)}, model / "other.safetensors")
    assert refused(model) == [
        "spec.model.source: toy: model.safetensors and other.safetensors both hold model.norm.weight; remove the files of "
        "an earlier version, or download the model again"
    ]


def problems_of(prepare: Callable[..., object], config: PrepareConfig) -> list[str]:
    with pytest.raises(InputError) as caught:
        prepare(config)
    return list(caught.value.problems)


@pytest.mark.parametrize("place", ["tokenizer.json", "added_tokens.json", "tokenizer_config.json"])
def test_tokens_without_a_row_are_named(
    config: PrepareConfig, prepare: Callable[..., object], model: Path, place: str
) -> None:
    from tokenizers import Tokenizer

    rows = json.loads((model / "config.json").read_text())["vocab_size"]
    if place == "tokenizer.json":
        tokenizer = Tokenizer.from_file(str(model / place))
        tokenizer.add_special_tokens(["<pad>"])
        tokenizer.save(str(model / place))
    elif place == "added_tokens.json":
        (model / place).write_text(json.dumps({"<pad>": rows}))
    else:
        settings = json.loads((model / place).read_text())
        decoder = {str(rows): {"content": "<pad>", "special": True}}
        (model / place).write_text(json.dumps(settings | {"added_tokens_decoder": decoder}))
    assert problems_of(prepare, config) == [
        f"spec.model.source: {config.model_source}: 1 token ('<pad>' ({rows})) of its tokenizer is beyond the {rows} rows "
        "of its embedding; resize the model (resize_token_embeddings), or remove what was added to the tokenizer"
    ]


def test_an_index_that_names_missing_files_is_refused(
    config: PrepareConfig, prepare: Callable[..., object], model: Path
) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00003.safetensors")
    files = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    index = {"weight_map": {f"tensor-{file}": file for file in files}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert problems_of(prepare, config) == [
        f"spec.model.source: {config.model_source}: {files[1]} and 1 more is missing, which model.safetensors.index.json "
        "names; download the model again"
    ]
    (model / "model.safetensors.index.json").unlink()
    assert problems_of(prepare, config) == [
        f"spec.model.source: {config.model_source}: neither model.safetensors nor model.safetensors.index.json is there, "
        f"only {files[0]}; transformers finds weights by these names: download the complete model, or rename the file"
    ]
