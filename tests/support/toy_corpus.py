"""Tiny corpora and base models for tests of prepare: no torch, no network."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dapt_trainer.data.packing.data_manifest import read_manifest
from dapt_trainer.data.packing.shards import open_shards

WORDS = tuple(
    word
    for line in (
        "water stone river light forest cloud table paper engine window music garden winter summer market bridge",
        "doctor nurse fever throat heart liver kidney dose tablet ward blood pulse scan wound bandage needle",
    )
    for word in line.split()
)


@dataclass
class Board:
    """Notes what a stage says of itself."""

    activities: list[str] = field(default_factory=list)
    fractions: list[float] = field(default_factory=list)
    stop: bool = False

    def update(self, **fields: Any) -> None:
        """Note activity and fraction."""
        self.activities.append(str(fields.get("activity")))
        self.fractions.append(float(fields.get("fraction") or 0.0))

    def heartbeat(self) -> None:
        """Nothing to note."""

    def stop_requested(self) -> bool:
        """As the test says."""
        return self.stop


def sentences(seed: int, words: int) -> str:
    """Text that no other seed makes."""
    chooser = random.Random(seed)
    return " ".join(
        chooser.choice(WORDS) + (str(seed) if i % 9 == 4 else "") for i in range(words)
    ).capitalize()


def documents(count: int, *, first: int = 0, words: int = 60) -> list[str]:
    """Different documents of about so many words."""
    return [sentences(first + number, words + number % 17) for number in range(count)]


def write_jsonl(path: Path, texts: list[str], field_name: str = "text") -> Path:
    """One record a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({field_name: text}) + "\n" for text in texts), encoding="utf-8")
    return path


def training_texts(work: Path, tokenizer: Tokenizer, side: str) -> list[str]:
    """The documents of one side's shards, put together again from their pieces; repeated beginnings left out."""
    manifest = read_manifest(work)
    texts = []
    for shard in open_shards(work):
        if shard.side != side:
            continue
        for row in range(len(shard)):
            packed = shard.sequence(row)
            edges = [*packed.starts.tolist(), packed.used]
            for first, last in itertools.pairwise(edges):
                ids = packed.input_ids[first:last].tolist()
                if ids[-1] == manifest.end_of_text_id:
                    texts.append(tokenizer.decode(ids[:-1]))
    return texts


def train_tokenizer(texts: list[str], vocabulary: int = 400) -> Tokenizer:
    """A byte-level BPE with an end-of-text token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_model(
    folder: Path, tokenizer: Tokenizer, *, end_of_text: str | None = "<|end|>", **config: Any
) -> Path:
    """A llama of two layers without torch: configuration, weights, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    size = tokenizer.get_vocab_size()
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": size,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(settings | config))
    save_file(llama_weights(size), folder / "model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": end_of_text} if end_of_text else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def llama_weights(vocabulary: int, *, hidden: int = 32, inner: int = 64, layers: int = 2) -> dict[str, Any]:
    """Random tensors of a llama with tied embeddings, four heads and two heads of keys and values."""
    random_numbers = np.random.default_rng(1)
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")
        }
        shapes |= {f"{prefix}.self_attn.{name}_proj.weight": (hidden, hidden) for name in ("q", "o")}
        shapes |= {f"{prefix}.self_attn.{name}_proj.weight": (hidden // 2, hidden) for name in ("k", "v")}
        shapes |= {f"{prefix}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, inner)
    return {
        name: np.ones(shape, np.float32)
        if len(shape) == 1
        else (0.02 * random_numbers.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def killed(*_: Any) -> None:
    """What a process of a pool runs that the kernel kills."""
    os.kill(os.getpid(), signal.SIGKILL)
