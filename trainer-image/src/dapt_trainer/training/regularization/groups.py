"""Named groups of weights, found by the names that transformers gives a decoder's blocks.

`self_attn` and `mlp` in Llama, Qwen, Mistral, Gemma and SmolLM; `attention` and `mlp` in GPT-NeoX. A whole component of
the dotted name counts, so a norm called `post_attention_layernorm` is in neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from dapt_trainer.errors import InputError

Group = Literal["all", "attention", "mlp"]
_COMPONENTS = {
    "attention": frozenset({"self_attn", "attention", "attn", "self_attention"}),
    "mlp": frozenset({"mlp", "feed_forward", "ffn", "block_sparse_moe"}),
}


def held_back(names: Iterable[str], group: Group, *, model_type: str = "") -> list[str]:
    """Those of the weights' names that belong to the group, in their order.

    Raises:
        InputError: none does.
    """
    names = list(names)
    wanted = _COMPONENTS.get(group)
    chosen = [name for name in names if wanted is None or wanted.intersection(name.split("."))]
    if not chosen:
        raise InputError(
            f"pretraining.regularization.ewc.parameters: {group} names no trained weight of a model of type "
            f"{model_type or 'unknown'}; write all"
        )
    return chosen
