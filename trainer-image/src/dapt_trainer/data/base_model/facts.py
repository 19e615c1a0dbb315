"""What the planner and the other stages must know of the base model, read from its files without loading it."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dapt_contract.stages.prepare import ModelFacts
from dapt_trainer.data.base_model.fetch import FIELD, check_no_remote_code, read_json
from dapt_trainer.digests import weights_digest
from dapt_trainer.errors import InputError

_MAX_HEADER_BYTES = 100 * 1024 * 1024
_NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "vocabulary_size": ("vocab_size",),
    "attention_heads": ("num_attention_heads", "n_head"),
    "key_value_heads": ("num_key_value_heads", "num_attention_heads", "n_head"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim"),
    "max_positions": ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length"),
}
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}


@dataclass(frozen=True)
class TokenizerDescription:
    """How documents become tokens."""

    tokenizer_json: str
    end_of_text: str
    end_of_text_id: int
    begin_of_text_id: int | None
    """Put before each document when the tokenizer does so by itself."""
    vocabulary_size: int
    """Largest token id plus one."""
    has_chat_template: bool


def read_tokenizer(folder: Path, source: str) -> TokenizerDescription:
    """The tokenizer of an imported model.

    Raises:
        InputError: it has no end-of-text token, or cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        content = (folder / "tokenizer.json").read_text(encoding="utf-8")
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError(
            f"{FIELD}: {source}: tokenizer.json cannot be read ({error}); download it again"
        ) from error
    settings = read_json(folder / "tokenizer_config.json", source)
    token = _token_text(settings.get("eos_token")) or _token_text(
        read_json(folder / "special_tokens_map.json", source).get("eos_token")
    )
    number = tokenizer.token_to_id(token) if token else None
    if token is None or number is None:
        raise InputError(
            f"{FIELD}: {source}: its tokenizer has no end-of-text token (eos_token), which must stand between "
            "documents; add eos_token to tokenizer_config.json, or use another model"
        )
    return TokenizerDescription(
        tokenizer_json=content,
        end_of_text=token,
        end_of_text_id=int(number),
        begin_of_text_id=None if settings.get("add_bos_token") is False else _begin_of_text_id(tokenizer),
        vocabulary_size=max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0) + 1,
        has_chat_template=bool(settings.get("chat_template"))
        or (folder / "chat_template.jinja").is_file()
        or (folder / "chat_template.json").is_file(),
    )


def read_model_facts(folder: Path, source: str, *, has_chat_template: bool) -> ModelFacts:
    """Facts of an imported model: configuration and headers of the weights.

    Args:
        folder: where it was imported to.
        source: with its immutable revision, where the source has such.
        has_chat_template: of the tokenizer.

    Raises:
        InputError: remote code, not a causal language model, a damaged file.
    """
    check_no_remote_code(folder, source)
    config = read_json(folder / "config.json", source)
    architecture = str((config.get("architectures") or ["unknown"])[0])
    if not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise InputError(
            f"{FIELD}: {source} is {architecture}, not a causal language model (…ForCausalLM); use one that is"
        )
    numbers = {name: _number(config, keys) for name, keys in _NAMES.items()}
    absent = [
        name for name in ("hidden_size", "layers", "vocabulary_size", "max_positions") if not numbers[name]
    ]
    if absent:
        raise InputError(f"{FIELD}: {source}: config.json says no {absent[0]}; use a complete model folder")
    shapes, size = _weights(folder, source)
    linear = _linear_layers(shapes, numbers["vocabulary_size"])
    heads = numbers["attention_heads"]
    digest = f"sha256:{weights_digest(folder)}"
    pinned = source.partition("@")[2].partition("/")[0] if source.startswith("hf://") else ""
    return ModelFacts(
        architecture=architecture,
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        tied_embeddings=bool(config.get("tie_word_embeddings", not _has_head(shapes))),
        has_chat_template=has_chat_template,
        revision=pinned or digest,
        digest=digest,
        weights_bytes=size,
        head_size=_number(config, ("head_dim",)) or (numbers["hidden_size"] // heads if heads else None),
        gated_mlp=any("gate" in name or ".w3." in name for name in linear),
        linear_dimensions=sum(sum(shape) for shape in linear.values()) or None,
        **(numbers | {"intermediate_size": numbers["intermediate_size"] or 4 * numbers["hidden_size"]}),
    )


def sequence_length(wanted: int | None, facts: ModelFacts) -> int:
    """The sequence length in tokens; absent: the model's longest, at most 4,096.

    Raises:
        InputError: it is past the model's.
    """
    if wanted is None:
        return min(4096, facts.max_positions)
    if wanted > facts.max_positions:
        raise InputError(
            f"spec.corpus.sequenceLength: {wanted} is past the model's {facts.max_positions} positions; "
            f"use at most {facts.max_positions}"
        )
    return wanted


def _has_head(shapes: dict[str, list[int]]) -> bool:
    """Whether the files hold a head of its own; a configuration may leave its class' default for tying unsaid."""
    return any(name.startswith(("lm_head.", "embed_out.")) for name in shapes)


def _linear_layers(shapes: dict[str, list[int]], vocabulary_size: int) -> dict[str, list[int]]:
    """Shapes of the matrices of linear layers: all but embeddings, the head, and tables as long as the vocabulary."""
    return {
        name: shape
        for name, shape in shapes.items()
        if name.endswith(".weight")
        and len(shape) == 2
        and vocabulary_size not in shape
        and not any(part.startswith(("embed", "wte", "wpe", "lm_head")) for part in name.split("."))
    }


def _weights(folder: Path, source: str) -> tuple[dict[str, list[int]], int]:
    """(shapes by name, bytes) by the headers of the safetensors files."""
    shapes: dict[str, list[int]] = {}
    size = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > _MAX_HEADER_BYTES:
                    raise ValueError("header too long")
                header: dict[str, Any] = json.loads(file.read(length))
            end = 8 + length
            for name, tensor in header.items():
                if name != "__metadata__":
                    shapes[name] = list(tensor["shape"])
                    size += math.prod(tensor["shape"]) * _BYTES.get(tensor["dtype"], 1)
                    end = max(end, 8 + length + tensor["data_offsets"][1])
            if path.stat().st_size != end:
                raise ValueError(f"has {path.stat().st_size} bytes, its header says {end}")
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise InputError(
                f"{FIELD}: {source}: {path.name} is truncated or damaged ({error}); download the model again"
            ) from error
    return shapes, size


def _number(config: dict[str, Any], keys: tuple[str, ...]) -> int:
    return next((int(config[key]) for key in keys if isinstance(config.get(key), int)), 0)


def _token_text(token: Any) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _begin_of_text_id(tokenizer: Any) -> int | None:
    """The one token that the tokenizer puts before any text, if it does."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    head = whole[: len(whole) - len(plain)] if plain and whole[-len(plain) :] == plain else whole[:1]
    return int(head[0]) if len(head) == 1 and head[0] not in plain else None
