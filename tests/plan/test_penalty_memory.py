"""What a penalty against forgetting takes of a rank's accelerator, and that the estimate counts it."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_contract.stages.common import LoraConfig, Precision, ZeroStage
from dapt_operator.api.v1alpha1.spec_training import Ewc, KlToBase, L2sp, Regularization
from dapt_operator.plan.sizing.model_fit.memory import GIB, TrainingShape, penalty_bytes
from dapt_operator.plan.sizing.model_fit.parallelism import SharingRequest, choose_sharing
from support.builders import model_facts

LLAMA_8B = model_facts(
    parameters=8_030_261_248, hidden_size=4096, layers=32, vocabulary_size=128_256, attention_heads=32,
    key_value_heads=8, intermediate_size=14_336, tied_embeddings=False,
)  # fmt: skip
ATTENTION = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024)
MLP = 32 * 3 * 4096 * 14_336
LORA = LoraConfig(rank=64)
ALL, OF_ATTENTION, OF_MLP = (
    Regularization(ewc=Ewc(parameters=group)) for group in ("all", "attention", "mlp")
)
L2SP, KL = Regularization(l2sp=L2sp()), Regularization(kl_to_base=KlToBase())


@pytest.mark.parametrize(
    ("asked", "lora", "zero_stage", "precision", "expected"),
    [
        (None, None, 2, "bf16", 0),
        (ALL, None, 2, "bf16", 4 * 8_030_261_248 / 8),
        (ALL, None, 1, "fp32", 8 * 8_030_261_248 / 8),
        (ALL, None, 0, "bf16", 4 * 8_030_261_248),
        (OF_ATTENTION, None, 2, "bf16", 4 * ATTENTION / 8),
        (OF_MLP, None, 2, "bf16", 4 * MLP / 8),
        (ALL, LORA, 0, "bf16", 4 * (ATTENTION + MLP) / 8),
        (OF_ATTENTION, LORA, 2, "bf16", 4 * ATTENTION / 8),
        (L2SP, None, 2, "bf16", 2 * 8_030_261_248 / 8),
        (L2SP, LORA, 2, "bf16", 0),
        (KL, None, 2, "bf16", 2 * 8_030_261_248),
        (KL, LORA, 2, "bf16", 0),
    ],
)
def test_bytes_of_a_rank_among_eight(
    asked: Any, lora: Any, zero_stage: ZeroStage, precision: Precision, expected: float
) -> None:
    shape = TrainingShape(
        model=LLAMA_8B,
        lora=lora,
        kind="gpu",
        world_size=8,
        zero_stage=zero_stage,
        precision=precision,
        micro_batch_size=1,
        sequence_length_tokens=4096,
        gradient_checkpointing=False,
        regularization=asked,
    )
    assert penalty_bytes(shape) == expected


def test_penalty_that_exceeds_the_memory_turns_on_gradient_checkpointing() -> None:
    def checkpointing(asked: Regularization | None) -> bool | None:
        way = choose_sharing(
            SharingRequest(
                model=LLAMA_8B,
                lora=None,
                kind="gpu",
                world_size=8,
                ranks_per_node=8,
                memory_limit_bytes=70 * GIB,
                host_memory_limit_bytes=None,
                precision="bf16",
                sequence_length_tokens=4096,
                micro_batch_sizes=(1,),
                may_spread=False,
                regularization=asked,
            )
        )
        return None if way is None else way.gradient_checkpointing

    assert checkpointing(None) is False
    assert checkpointing(KL) is True
