"""Small random models of the families that people adapt, with settings that no reader may take from its defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.toy_training import END_OF_TEXT, VOCABULARY, make_tokenizer

_IDS = {"bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TEXT, "pad_token_id": END_OF_TEXT}
_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY + 4, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 300.0, "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
_WINDOW = 6
_GPT2 = {
    "vocab_size": VOCABULARY + 4, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 64
}  # fmt: skip
_EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": _SMALL | {"tie_word_embeddings": False, "rope_parameters": _LLAMA3},
    "Qwen2": _SMALL | {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    "Qwen3": _SMALL
    | {"tie_word_embeddings": True, "head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 70.0}},
    "Qwen3Moe": _SMALL | _EXPERTS | {"head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 90.0}},
    "Mistral": _SMALL | {"sliding_window": _WINDOW, "head_dim": 8},
    "Mixtral": _SMALL | {"num_local_experts": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 40.0}},
    "Gemma": _SMALL | {"head_dim": 16, "num_key_value_heads": 1},
    "Gemma2": _SMALL
    | {"head_dim": 16, "sliding_window": _WINDOW, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 50.0},
    "Gemma3Text": _SMALL
    | {
        "head_dim": 16, "sliding_window": _WINDOW, "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 600.0},
        },
    },
    "GPTNeoX": _SMALL
    | {
        "num_key_value_heads": None, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 60.0, "partial_rotary_factor": 0.5},
    },
    "Phi": _SMALL
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 80.0, "partial_rotary_factor": 0.25}},
    "Phi3": _SMALL | {"sliding_window": _WINDOW, "rope_parameters": {"rope_type": "default", "rope_theta": 20.0}},
    "StableLm": _SMALL
    | {
        "use_qkv_bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 45.0, "partial_rotary_factor": 0.5},
    },
    "SmolLM3": _SMALL
    | {
        "no_rope_layers": [1, 0], "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 55.0},
    },
    "Olmo2": _SMALL | {"rope_parameters": {"rope_type": "default", "rope_theta": 65.0}},
    "Granite": _SMALL | {"rope_parameters": {"rope_type": "default", "rope_theta": 75.0}, "logits_scaling": 2.0},
    "Cohere": _SMALL | {"rope_parameters": {"rope_type": "default", "rope_theta": 85.0}, "use_qk_norm": True},
    "Starcoder2": _SMALL
    | {"sliding_window": _WINDOW, "rope_parameters": {"rope_type": "default", "rope_theta": 95.0}},
    "Falcon": _SMALL
    | {"multi_query": True, "parallel_attn": True, "rope_parameters": {"rope_type": "default", "rope_theta": 35.0}},
    "OPT": {"vocab_size": VOCABULARY + 4, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 128, "word_embed_proj_dim": 32},
    "GPT2": _GPT2,
    "GPTBigCode": _GPT2 | {"multi_query": True},
}  # fmt: skip
"""Settings by the name of the family's classes in transformers."""


def make_family_model(folder: Path, family: str, *, dtype: Any = None, seed: int = 5) -> None:
    """Write a model of two layers with its tokenizer as transformers 5 saves them."""
    import torch
    import transformers

    settings = {name: value for name, value in (FAMILIES[family] | _IDS).items() if value is not None}
    config = getattr(transformers, f"{family}Config")(**settings)
    name = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}.get(family, f"{family}ForCausalLM")
    torch.manual_seed(seed)
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # No norm is one and no bias zero, and the choices of different ropes differ.
            parameter.add_(0.15 * torch.randn_like(parameter))
    model.to(dtype or torch.float32).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
