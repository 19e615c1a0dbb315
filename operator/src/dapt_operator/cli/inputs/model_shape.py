"""Reads the shape of a model from its files' headers, without reading weights or importing torch.

Reads a Hugging Face folder (config.json, headers of *.safetensors) or the header of one GGUF file.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dapt_contract.inputs.gguf_header import GgufError, read_gguf_header
from dapt_contract.inputs.json_files import BadJsonError, read_json_object
from dapt_contract.inputs.model_files import active_parameters, read_safetensors_header, shape_numbers
from dapt_contract.sentences import shortened
from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.cli.errors import UserError
from dapt_operator.plan.sizing.model_fit.memory import ASSUMED_ARCHITECTURE

_NO_LIMIT_TOKENS = 1_048_576
"""Positions of a model whose configuration does not give them."""


def local_model(path: Path) -> ModelFacts:
    """Return the facts of a model on this machine that its headers give; digest and revision stay empty.

    Raises:
        UserError: there is no such model, or dapt does not read its format.
    """
    if path.is_dir():
        gguf = _gguf_of_folder(path)
        return _from_folder(path) if gguf is None else _from_gguf(gguf)
    if path.is_file() and path.suffix == ".gguf":
        return _from_gguf(path)
    if path.exists():
        raise UserError(
            f"{path}: not a model; give a folder with config.json and safetensors, or one .gguf file"
        )
    raise UserError(
        f"{path}: no such model; give a folder with config.json and safetensors, or one .gguf file"
    )


def _gguf_of_folder(folder: Path) -> Path | None:
    """Return the GGUF file of a folder that is no Hugging Face model; None for any other folder.

    Raises:
        UserError: there are several.
    """
    files = [] if (folder / "config.json").exists() else sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise UserError(f"{folder}: has {len(files)} GGUF files ({names}); name one of them")
    return files[0] if files else None


def _from_folder(folder: Path) -> ModelFacts:
    config_path = folder / "config.json"
    try:
        config = read_json_object(config_path)
    except FileNotFoundError:
        raise UserError(
            f"{folder}: no config.json; give the folder of a Hugging Face model, or a .gguf file"
        ) from None
    except BadJsonError as error:
        raise UserError(f"{config_path}: {error}; download the model again") from None
    numbers = shape_numbers(config)
    if not numbers["max_positions"]:
        numbers["max_positions"] = _NO_LIMIT_TOKENS
    shapes: dict[str, tuple[int, ...]] = {}
    weights = sorted(folder.glob("*.safetensors"))
    for file in weights:
        shapes |= _stored_shapes(file)
    tied = bool(config.get("tie_word_embeddings", False))
    named = config.get("architectures")
    return _checked_facts(
        config_path,
        architecture=str(
            named[0] if isinstance(named, list) and named else config.get("model_type", "unknown")
        ),
        parameters=sum(math.prod(shape) for shape in shapes.values()) or _parameters(numbers, tied),
        active_parameters=active_parameters(config, shapes),
        tied_embeddings=tied,
        has_chat_template=(folder / "chat_template.jinja").exists() or _template_in_tokenizer(folder),
        revision="",
        digest="",
        weights_bytes=sum(file.stat().st_size for file in weights),
        **numbers,
    )


def _parameters(numbers: dict[str, int], tied: bool) -> int:
    """Return the parameters of a gated decoder such as Llama of this shape; norms are too small to count."""
    hidden, heads = numbers["hidden_size"], max(1, numbers["attention_heads"])
    attention = hidden * hidden * (2 + 2 * numbers["key_value_heads"] / heads)
    feed_forward = 3 * hidden * numbers["intermediate_size"]
    embeddings = numbers["vocabulary_size"] * hidden * (1 if tied else 2)
    return round(numbers["layers"] * (attention + feed_forward) + embeddings)


def _stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of a safetensors file by their names."""
    try:
        return read_safetensors_header(path).shapes
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a safetensors file ({error}); download the model again") from None


def _template_in_tokenizer(folder: Path) -> bool:
    try:
        return bool(read_json_object(folder / "tokenizer_config.json").get("chat_template"))
    except (OSError, BadJsonError):
        return False


def _checked_facts(path: Path, **values: Any) -> ModelFacts:
    """Return the facts of a model whose numbers can be those of one.

    Raises:
        UserError: one of them cannot.
    """
    try:
        return ModelFacts(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{path}: {first['loc'][0]} is {shortened(str(first['input']), 40)}, which no model has ({first['msg']});"
            " download the model again"
        ) from None


def _from_gguf(path: Path) -> ModelFacts:
    try:
        header = read_gguf_header(path)
    except (OSError, GgufError) as error:
        raise UserError(f"{path}: not a GGUF file ({error}); download the model again") from None
    values = header.values
    family = str(values.get("general.architecture", "unknown"))

    def number(key: str, fallback: int = 0) -> int:
        value = values.get(key, header.list_lengths.get(key, fallback))
        return int(value) if isinstance(value, int | float) and math.isfinite(value) else fallback

    def setting(key: str, fallback: int = 0) -> int:
        return number(f"{family}.{key}", fallback)

    heads = setting("attention.head_count")
    return _checked_facts(
        path,
        architecture=family,
        parameters=sum(math.prod(tensor.shape) for tensor in header.tensors),
        hidden_size=setting("embedding_length"),
        layers=setting("block_count"),
        vocabulary_size=setting("vocab_size", number("tokenizer.ggml.tokens")),
        attention_heads=heads,
        key_value_heads=setting("attention.head_count_kv", heads),
        intermediate_size=setting("feed_forward_length"),
        max_positions=setting("context_length", _NO_LIMIT_TOKENS),
        tied_embeddings=all(tensor.name != "output.weight" for tensor in header.tensors),
        has_chat_template="tokenizer.chat_template" in values,
        revision="",
        digest="",
        weights_bytes=path.stat().st_size,
    )


_SHAPES = (
    # parameters, hidden, layers, heads, key-value heads, feed-forward, vocabulary, tied: of published open models
    (0.135e9, 576, 30, 9, 3, 1536, 49_152, True),
    (0.5e9, 896, 24, 14, 2, 4864, 151_936, True),
    (1.24e9, 2048, 16, 32, 8, 8192, 128_256, True),
    (3.2e9, 3072, 28, 24, 8, 8192, 128_256, True),
    (8.0e9, 4096, 32, 32, 8, 14_336, 128_256, False),
    (14.8e9, 5120, 48, 40, 8, 13_824, 152_064, False),
    (32.8e9, 5120, 64, 40, 8, 27_648, 152_064, False),
    (70.6e9, 8192, 80, 64, 8, 28_672, 128_256, False),
)
_POSITIONS = 131_072
_ACTIVE_IN_NAME = re.compile(r"(?<![A-Za-z0-9])[Aa](\d+(?:\.\d+)?)[Bb](?![A-Za-z0-9])")
_IN_NAME = re.compile(r"(?<![\dA-Za-z.])(\d+(?:\.\d+)?)([BbMm])(?![A-Za-z0-9])")


def typical_model(parameters: float, active: float | None = None) -> ModelFacts:
    """Return the facts of a decoder with this many parameters, in the shape of the nearest published one.

    active: parameters that one token passes, of a mixture of experts.
    """
    shape = min(_SHAPES, key=lambda published: abs(math.log(published[0] / parameters)))
    _, hidden, layers, heads, key_value_heads, intermediate, vocabulary, tied = shape
    return ModelFacts(
        architecture=ASSUMED_ARCHITECTURE,
        parameters=round(parameters),
        active_parameters=round(active) if active is not None and active < parameters else None,
        hidden_size=hidden,
        layers=layers,
        vocabulary_size=vocabulary,
        attention_heads=heads,
        key_value_heads=key_value_heads,
        intermediate_size=intermediate,
        max_positions=_POSITIONS,
        tied_embeddings=tied,
        has_chat_template=False,
        revision="",
        digest="",
        weights_bytes=round(2 * parameters),
    )


def parameters_in_name(address: str) -> float | None:
    """Return 8e9 for `hf://meta-llama/Llama-3.1-8B@0e9e39f`, 135e6 for `SmolLM2-135M`; None without a size."""
    path = re.sub(r"^[a-z]+://", "", address).split("@")[0]
    sizes = _IN_NAME.findall(path.replace("_", "-"))
    if not sizes:
        return None
    number, unit = sizes[-1]
    return float(number) * (1e9 if unit in "Bb" else 1e6)


def active_in_name(address: str) -> float | None:
    """Return 3e9 for `hf://Qwen/Qwen3-30B-A3B-Base`: what one token passes of a mixture of experts; None without it."""
    path = re.sub(r"^[a-z]+://", "", address).split("@")[0]
    found = _ACTIVE_IN_NAME.findall(path.replace("_", "-"))
    return float(found[-1]) * 1e9 if found else None
