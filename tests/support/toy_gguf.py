"""Writes a toy Llama as a GGUF file, as llama.cpp's own converter lays one out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LAYER_TENSORS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
"""Name in GGUF -> name in transformers, of each layer's tensors."""


@dataclass(frozen=True)
class GgufSizes:
    """What the header says of the model."""

    layers: int
    heads: int
    key_value_heads: int
    context_tokens: int


def write_gguf(
    path: Path, tokenizer: Any, tensors: Mapping[str, np.ndarray], sizes: GgufSizes, *, end: str
) -> Path:
    """Write the file; its path.

    Args:
        path: the new file.
        tokenizer: a byte-level BPE of the package `tokenizers`.
        tensors: fp32 weights by their names in transformers; embeddings and head are tied.
        sizes: of the model.
        end: the token that ends texts.
    """
    import gguf

    written = json.loads(tokenizer.to_str())["model"]
    pieces = [piece for piece, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    writer = gguf.GGUFWriter(str(path), "llama")
    embedding = tensors["model.embed_tokens.weight"]
    writer.add_context_length(sizes.context_tokens)
    writer.add_embedding_length(embedding.shape[1])
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(tensors["model.layers.0.mlp.up_proj.weight"].shape[0])
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.key_value_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(pieces))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(pieces)
    writer.add_token_types([3 if piece == end else 1 for piece in pieces])
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in written["merges"]]
    )
    writer.add_bos_token_id(tokenizer.token_to_id(end))
    writer.add_eos_token_id(tokenizer.token_to_id(end))
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}" + end + "{% endfor %}")
    writer.add_tensor("token_embd.weight", embedding)
    for layer in range(sizes.layers):
        for name, original in LAYER_TENSORS.items():
            weights = tensors[f"model.layers.{layer}.{original}.weight"]
            if name in ("attn_q", "attn_k"):
                weights = _interleaved(weights, sizes.heads if name == "attn_q" else sizes.key_value_heads)
            writer.add_tensor(f"blk.{layer}.{name}.weight", weights)
    writer.add_tensor("output_norm.weight", tensors["model.norm.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _interleaved(weights: np.ndarray, heads: int) -> np.ndarray:
    """The rows of each head in pairs of one rotation, (heads * size, hidden), as GGUF has them."""
    rows, columns = weights.shape
    halves = weights.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))
