"""Counts the arithmetic of training, for the share of the accelerators' peak that is used (model FLOPs utilization)."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig, PreTrainedModel

from dapt_contract.inputs.model_files import EXPERTS, chosen_share


def flops_per_token(model: torch.nn.Module) -> float:
    """Return the FLOPs of one training token: 2 N forward, 2 N back through the activations, 2 for each trained weight.

    So 6 N when all are trained (Kaplan et al. 2020, section 2.1), and about 4 N for LoRA; of experts those that a token
    passes. Attention over long sequences and activations that are computed twice are left out, as in the published
    figures of model FLOPs utilization.
    """
    config = getattr(model, "config", None)
    share = float(chosen_share(config.to_dict())) if isinstance(config, PretrainedConfig) else 1.0
    counts = [
        (num_weights(weight) * (share if EXPERTS in name else 1.0), weight.requires_grad)
        for name, weight in model.named_parameters()
    ]
    return 4.0 * sum(count for count, _ in counts) + 2.0 * sum(
        count for count, is_trained in counts if is_trained
    )


def exact_flops_per_token(
    model: PreTrainedModel, *, layers: int, attention_width: int, mean_document_tokens: float
) -> float:
    """Return `flops_per_token` with attention, and without the input embedding, which is a look-up.

    A weight that is a tied head counts once, as the head's product. A token at place t of its document attends to t
    others: queries by keys and weights by values take 2 x 2 x t x width FLOPs forward, twice that backward, and t is
    half the document in the mean (Chowdhery et al. 2022, appendix B, with the causal half that flash kernels skip):
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
    is_tied = head is not None and head.weight is embedding
    table = 0 if is_tied else num_weights(embedding)
    looked_up = (6.0 if embedding.requires_grad else 4.0) * table
    return flops_per_token(model) - looked_up + 6.0 * layers * attention_width * mean_document_tokens


def num_weights(weight: torch.Tensor) -> int:
    """Return the number of weights over all ranks; under ZeRO stage 3 each rank holds an empty tensor."""
    return int(getattr(weight, "ds_numel", weight.numel()))
