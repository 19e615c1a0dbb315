"""The arithmetic of training, for the share of the accelerators' peak that is used (model FLOPs utilization)."""

from __future__ import annotations

from typing import Any


def flops_per_token(model: Any) -> float:
    """2 N forward, 2 N back through the activations, and 2 for each weight that is trained.

    So 6 N when all are (Kaplan et al. 2020, section 2.1), and about 4 N for LoRA. Attention over long sequences and
    activations that are computed twice are left out, as in the published figures of model FLOPs utilization.
    """
    weights = [(_numbers(weight), weight.requires_grad) for weight in model.parameters()]
    return 4.0 * sum(count for count, _ in weights) + 2.0 * sum(
        count for count, trained in weights if trained
    )


def exact_flops_per_token(
    model: Any, *, layers: int, attention_width: int, mean_document_tokens: float
) -> float:
    """As `flops_per_token`, with attention and without the input embedding, which is a look-up.

    A weight that is a tied head counts once, as the head's product. A token at place t of its document sees t others:
    queries by keys and weights by values take 2 x 2 x t x width FLOPs forward, twice that backward, and t is half the
    document in the mean (Chowdhery et al. 2022, appendix B, with the causal half that flash kernels skip):
    6 x layers x width x mean_document_tokens.

    Args:
        model: with `get_input_embeddings`.
        layers: of the decoder.
        attention_width: heads x head size.
        mean_document_tokens: sum of squared document lengths over their sum, as far as attention goes; the sequence
            length where a row is one document.
    """
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is embedding
    table = 0 if tied else _numbers(embedding)
    looked_up = (6.0 if embedding.requires_grad else 4.0) * table
    return flops_per_token(model) - looked_up + 6.0 * layers * attention_width * mean_document_tokens


def _numbers(weight: Any) -> int:
    """How many there are over all ranks: ZeRO's stage 3 leaves an empty tensor on each."""
    return int(getattr(weight, "ds_numel", weight.numel()))
