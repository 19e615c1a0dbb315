"""Writes models that have headers alone: enough for the command line, which reads no weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 128,
    "vocab_size": 100,
    "tie_word_embeddings": True,
}


def write_safetensors(path: Path, **shapes: list[int]) -> None:
    """Write the header of a safetensors file with tensors of these shapes, in fp32, without their values."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, shape in shapes.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    body = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(body)) + body)


def write_model(folder: Path, config: dict[str, object] = CONFIG) -> Path:
    """Write a folder with a configuration and the header of one file of weights, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", a=[100, 8])
    return folder
