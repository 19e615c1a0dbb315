"""Says for which models the trainer computes the loss without holding all logits, and how much it holds instead.

The trainer follows it, and the memory estimate counts it.
"""

from __future__ import annotations

from typing import Final

CHUNKED_LOSS_ARCHITECTURES: Final = frozenset(
    {
        "CohereForCausalLM",
        "FalconForCausalLM",
        "GPT2LMHeadModel",
        "GPTBigCodeForCausalLM",
        "GPTNeoXForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "GemmaForCausalLM",
        "GraniteForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "OPTForCausalLM",
        "Olmo2ForCausalLM",
        "Phi3ForCausalLM",
        "PhiForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
        "SmolLM3ForCausalLM",
        "StableLmForCausalLM",
        "Starcoder2ForCausalLM",
    }
)
"""Classes of transformers whose logits are one linear layer of the last hidden state, at most scaled or capped. Others
may do more with them, so they keep their own loss, which holds all logits."""
CHUNK_BYTES: Final = 2**28
"""Largest size of one chunk's logits in fp32."""
FEWEST_CHUNK_TOKENS: Final = 128
"""Smaller chunks would leave an accelerator idle."""
BYTES_PER_LOGIT: Final = 12
"""Of a chunk: the logits in the model's precision, in fp32, and their gradient in the model's precision."""


def chunk_tokens(vocabulary_size: int) -> int:
    """Return the tokens whose logits are held at a time."""
    return max(FEWEST_CHUNK_TOKENS, CHUNK_BYTES // (4 * vocabulary_size))


def loss_bytes(
    vocabulary_size: int, hidden_size: int, tokens: int, *, is_head_trained: bool, activation_bytes: int = 2
) -> int:
    """Return what the chunked loss holds at its peak, beside the last hidden states.

    Args:
        vocabulary_size: columns of the logits.
        hidden_size: of the model.
        tokens: of one forward pass of a rank.
        is_head_trained: whether the head's gradient is summed, in fp32; an adapter's frozen head has none.
        activation_bytes: of one number of the model's precision.
    """
    chunk = min(tokens, chunk_tokens(vocabulary_size)) * vocabulary_size * BYTES_PER_LOGIT
    gradient = 4 * vocabulary_size * hidden_size if is_head_trained else 0
    return chunk + gradient + tokens * hidden_size * activation_bytes
