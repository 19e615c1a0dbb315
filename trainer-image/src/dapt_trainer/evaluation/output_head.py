"""Computes logits from hidden states by the output head of a causal language model, apart from its forward pass.

Shape suffixes: B rows, L padded length, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import PretrainedConfig

ModelInputs = dict[str, torch.Tensor | bool]
"""Arguments of a model's forward pass."""
Change = Callable[[torch.Tensor], torch.Tensor]
"""What a model does with its logits after the head."""


def changes_of_logits(config: PretrainedConfig) -> list[Change]:
    """Return what a model may do with the head's output, by its configuration, the likeliest first.

    A comparison with the model's own logits has to show which it is: the names mean the same in most architectures.
    """
    text_config = config.get_text_config(decoder=True)
    changes: list[Change] = []
    cap = getattr(text_config, "final_logit_softcapping", None)
    if cap:  # Gemma 2 and 3: in this order of operations, so that the bits are the same
        changes.append(lambda logits: torch.tanh(logits / cap) * cap)
    divisor = getattr(text_config, "logits_scaling", None)
    if divisor:  # Granite
        changes.append(lambda logits: logits / divisor)
    factor = getattr(text_config, "logit_scale", None)
    if factor:  # Cohere
        changes.append(lambda logits: logits * factor)
    changes.append(lambda logits: logits)
    return changes


def hidden_before(
    head: torch.nn.Linear, model: torch.nn.Module, inputs: ModelInputs
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the input of the output head in a forward pass [B, L, H], and the logits of the first row's last position
    [1, 1, V]: no others are computed."""
    captured: list[torch.Tensor] = []

    def take(_module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        captured.append(arguments[0])
        # One position is enough for the comparison, and the logits of all would not fit into the bound.
        return (arguments[0][:1, -1:],)

    hook = head.register_forward_pre_hook(take)
    try:
        probe_11v = model(**inputs).logits
    finally:
        hook.remove()
    return captured[0], probe_11v


@contextmanager
def callable_head(
    head: torch.nn.Linear, *, is_sharded: bool
) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Yield what makes logits of hidden states; of a sharded model it is the head's weights, gathered meanwhile."""
    if not is_sharded:
        yield head
        return
    # Imported here: only where ZeRO spreads the weights.
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(head.parameters())):
        # Not the module: each of its calls would gather the weights on all ranks, which have different numbers of
        # positions.
        yield lambda hidden: torch.nn.functional.linear(hidden, head.weight, head.bias)


def is_same(probe_11v: torch.Tensor, plain_11v: torch.Tensor, head: torch.nn.Linear) -> bool:
    """Return whether the head's output is the model's logits."""
    # Logits that are all zero prove nothing: scaling and soft-capping do not change them.
    return torch.equal(probe_11v, plain_11v) and bool(plain_11v.any() or not head.weight.any())
