"""Tests how a sequence is divided over ranks; that the training is equal, two ranks test in tests/distributed."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.attention import Attention, stack_rows
from dapt_trainer.modeling.sequence_parallel import share_of_rank, share_sequences

pytestmark = pytest.mark.torch
PLAIN = Attention("sdpa", "on the CPU", stack_rows)


def row() -> dict[str, torch.Tensor]:
    """Two documents, of five tokens and of three."""
    ids = torch.arange(10, 18)
    labels = ids.clone()
    labels[[0, 5]] = -100
    return {"input_ids": ids, "labels": labels, "position_ids": torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])}


def model(*, heads: int = 4, key_heads: int = 2) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=heads, num_key_value_heads=key_heads,
        )
    )  # fmt: skip


def refusal(size: int, world_size: int, attention: Attention = PLAIN) -> str:
    with pytest.raises(InputError) as caught:
        share_sequences(attention, model(), Ranks(0, 0, world_size, torch.device("cpu")), size)
    return str(caught.value)


def test_the_parts_of_a_sequence_predict_each_token_once() -> None:
    parts = [share_of_rank(stack_rows, rank, 2)([row()]) for rank in (0, 1)]
    assert torch.cat([part["input_ids"] for part in parts], dim=1).tolist() == [row()["input_ids"].tolist()]
    # The last token of the first part predicts the first of the second; a document predicts none of the next.
    assert parts[0]["shift_labels"].tolist() == [[11, 12, 13, 14]]
    assert parts[1]["shift_labels"].tolist() == [[-100, 16, 17, -100]]
    for part in parts:
        assert part["row_position_ids"].tolist() == [row()["position_ids"].tolist()]


def test_a_sequence_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        share_of_rank(stack_rows, 0, 3)([row()])
    assert str(caught.value) == (
        "pretraining.distribution.sequenceParallel is 3; it must divide the 8 tokens of a sequence"
    )


@pytest.mark.parametrize(("size", "world_size"), [(2, 3), (4, 4)])
def test_ranks_and_heads_that_cannot_be_divided_are_refused(size: int, world_size: int) -> None:
    assert refusal(size, world_size) == (
        f"pretraining.distribution.sequenceParallel is {size}; it must divide the {world_size} ranks and the model's 2 "
        "key-value heads"
    )


def test_attention_of_a_model_itself_is_refused() -> None:
    assert refusal(2, 2, Attention("eager", "it caps logits", stack_rows)) == (
        "pretraining.distribution.sequenceParallel is 2, and LlamaForCausalLM has attention of its own here, whose "
        "heads cannot be divided over ranks; set it to 1"
    )


def test_one_rank_a_sequence_changes_nothing() -> None:
    assert share_sequences(PLAIN, model(), Ranks(0, 0, 1, torch.device("cpu")), 1) is PLAIN
