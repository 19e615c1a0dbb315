"""Describes the base model for the planner and the other stages, from its files alone: nothing is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dapt_contract.base import JsonObject
from dapt_contract.inputs.model_files import active_parameters, config_number, shape_numbers
from dapt_contract.stages.prepare import ModelFacts
from dapt_trainer.data.base_model.fetch import check_no_remote_code
from dapt_trainer.data.base_model.files import FIELD, read_json
from dapt_trainer.data.base_model.weights import weights_headers
from dapt_trainer.digests import weights_digest
from dapt_trainer.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MAX_NAME_CHARACTERS, _MAX_SHOWN_CHARACTERS = 120, 40
_MAX_ARCHITECTURES = 100
_MAX_DEFAULT_SEQUENCE_TOKENS = 4096
"""Longest sequence where the manifest does not give a length."""
Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by their names."""


@dataclass(frozen=True)
class TokenizerDescription:
    """Describes how documents become tokens."""

    tokenizer_json: str
    end_of_text: str
    end_of_text_id: int
    begin_of_text_id: int | None
    """Token before each document, where the tokenizer puts one there by itself."""
    vocabulary_size: int
    """Largest token id plus one."""
    has_chat_template: bool


def read_tokenizer(folder: Path, source: str) -> TokenizerDescription:
    """Read the tokenizer of an imported model.

    Raises:
        InputError: it has no end-of-text token, or cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        content = (folder / "tokenizer.json").read_text(encoding="utf-8")
        tokenizer = Tokenizer.from_str(content)
        tokenizer.no_padding()
        tokenizer.no_truncation()
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError(
            f"{FIELD}: {source}: tokenizer.json cannot be read ({error}); download it again"
        ) from error
    settings = read_json(folder / "tokenizer_config.json", source)
    token = _token_text(settings.get("eos_token")) or _token_text(
        read_json(folder / "special_tokens_map.json", source).get("eos_token")
    )
    number = tokenizer.token_to_id(token) if token else None
    if token is not None and number is None:
        raise InputError(
            f"{FIELD}: {source}: its end-of-text token {token!r} (eos_token) is not in tokenizer.json; correct "
            "eos_token in tokenizer_config.json"
        )
    if token is None or number is None:
        raise InputError(
            f"{FIELD}: {source}: its tokenizer has no end-of-text token (eos_token), which must stand between "
            "documents; add eos_token to tokenizer_config.json, or use another model"
        )
    return TokenizerDescription(
        tokenizer_json=content,
        end_of_text=token,
        end_of_text_id=int(number),
        begin_of_text_id=None if settings.get("add_bos_token") is False else begin_of_text_id(tokenizer),
        vocabulary_size=max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0) + 1,
        # chat_template.json belongs to processors of pictures and sound, which tokenizers do not read.
        has_chat_template=bool(settings.get("chat_template")) or (folder / "chat_template.jinja").is_file(),
    )


def read_model_facts(
    folder: Path, source: str, *, has_chat_template: bool, beat: Callable[[], None] = lambda: None
) -> ModelFacts:
    """Read the facts of an imported model from its configuration and the headers of its weights.

    Args:
        folder: that the model was imported to.
        source: URI with its immutable revision, where the source has revisions.
        has_chat_template: whether the tokenizer has one.
        beat: called while the weights are hashed.

    Raises:
        InputError: remote code, not a causal language model, a damaged file.
    """
    check_no_remote_code(folder, source)
    config = read_json(folder / "config.json", source)
    architecture = named_architecture(config, source)
    if not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise InputError(
            f"{FIELD}: {source} is {architecture}, not a causal language model (…ForCausalLM); use one that is"
        )
    numbers = shape_numbers(config)
    missing = [
        name for name in ("hidden_size", "layers", "vocabulary_size", "max_positions") if not numbers[name]
    ]
    if missing:
        raise InputError(f"{FIELD}: {source}: config.json has no {missing[0]}; use a complete model folder")
    shapes, size = _read_weights_headers(folder, source)
    linear = _linear_layers(shapes, numbers["vocabulary_size"])
    heads = numbers["attention_heads"]
    digest = f"sha256:{weights_digest(folder, beat)}"
    pinned = source.partition("@")[2].partition("/")[0] if source.startswith("hf://") else ""
    return ModelFacts(
        architecture=architecture,
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        tied_embeddings=bool(config.get("tie_word_embeddings", not _has_head(shapes))),
        has_chat_template=has_chat_template,
        revision=pinned or digest,
        digest=digest,
        weights_bytes=size,
        head_size=config_number(config, "head_dim") or (numbers["hidden_size"] // heads if heads else None),
        gated_mlp=any("gate" in name or ".w3." in name for name in linear),
        linear_dimensions=sum(sum(shape) for shape in linear.values()) or None,
        active_parameters=active_parameters(config, shapes),
        **numbers,
    )


def named_architecture(config: JsonObject, source: str) -> str:
    """Return the first of the architectures that config.json names.

    Raises:
        InputError: it names none, or what cannot be the name of a class.
    """
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise InputError(
            f"{FIELD}: {source}: config.json names no architectures; use a complete model folder, or add them "
            '(["LlamaForCausalLM"])'
        )
    names = [name if isinstance(name, str) else json.dumps(name) for name in architectures]
    for name in names:
        if not name.isidentifier() or len(name) > _MAX_NAME_CHARACTERS:
            raise InputError(
                f"{FIELD}: {source}: config.json names the architecture {name[:_MAX_SHOWN_CHARACTERS]!a}, which "
                f"is no name of a class with at most {_MAX_NAME_CHARACTERS} characters; correct architectures"
            )
    if len(names) > _MAX_ARCHITECTURES:
        raise InputError(
            f"{FIELD}: {source}: config.json names {len(names):,} architectures, and at most {_MAX_ARCHITECTURES} are "
            "read; correct architectures"
        )
    return names[0]


def sequence_length(length: int | None, facts: ModelFacts) -> int:
    """Return the sequence length in tokens.

    Args:
        length: as the manifest has it; None: the model's longest, at most 4,096.
        facts: of the base model.

    Raises:
        InputError: the length is past the model's positions.
    """
    if length is None:
        return min(_MAX_DEFAULT_SEQUENCE_TOKENS, facts.max_positions)
    if length > facts.max_positions:
        raise InputError(
            f"spec.corpus.sequenceLength: {length} is past the model's {facts.max_positions} positions; "
            f"use at most {facts.max_positions}"
        )
    return length


def _has_head(shapes: Shapes) -> bool:
    """Return whether the files hold a head of its own.

    A configuration that keeps its class' default for tied embeddings does not mention it.
    """
    return any(name.startswith(("lm_head.", "embed_out.")) for name in shapes)


def _linear_layers(shapes: Shapes, vocabulary_size: int) -> Shapes:
    """Return the matrices of linear layers: all but embeddings, the head, and tables as long as the vocabulary."""
    return {
        name: shape
        for name, shape in shapes.items()
        if name.endswith(".weight")
        and len(shape) == 2
        and vocabulary_size not in shape
        and not any(part.startswith(("embed", "wte", "wpe", "lm_head")) for part in name.split("."))
    }


def _read_weights_headers(folder: Path, source: str) -> tuple[Shapes, int]:
    """Return the shapes of all tensors and their bytes; check that no file of weights is cut off."""
    shapes: dict[str, tuple[int, ...]] = {}
    weights_bytes = 0
    for header in weights_headers(folder, source).values():
        shapes |= header.shapes
        weights_bytes += header.weights_bytes
    return shapes, weights_bytes


def _token_text(token: object) -> str | None:
    """Return the text of a token, which tokenizer files write as a string or as an object."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def begin_of_text_id(tokenizer: Tokenizer) -> int | None:
    """Return the one token that the tokenizer puts before every text; None when it puts none there."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    with_special = tokenizer.encode("a", add_special_tokens=True).ids
    ends_alike = plain and with_special[-len(plain) :] == plain
    head = with_special[: len(with_special) - len(plain)] if ends_alike else with_special[:1]
    return int(head[0]) if len(head) == 1 and head[0] not in plain else None
