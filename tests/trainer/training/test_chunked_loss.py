"""Tests that a loss in chunks is the model's own loss, with its gradients, for every architecture that has one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from dapt_contract import chunked_loss as contract
from dapt_contract.stages.common import LoraConfig, ModelReference
from dapt_trainer.modeling import chunked_loss
from dapt_trainer.modeling.chunked_loss import use_chunked_loss
from dapt_trainer.modeling.loading.load_folder import load_model
from dapt_trainer.modeling.lora import with_lora
from support.toy_families import FAMILIES, make_family_model
from support.toy_training import FILTERS, VOCABULARY

pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]
CHUNK = 11
"""Tokens of a chunk: the last one of a batch is shorter."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_loss, "chunk_tokens", lambda _vocabulary_size: CHUNK)


def batch() -> dict[str, torch.Tensor]:
    """Two rows with documents, and labels that are left out."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, VOCABULARY, (2, 20), generator=generator)
    labels = ids.clone()
    labels[0, :4] = labels[1, 9] = -100
    positions = torch.arange(20).repeat(2, 1)
    positions[1, 9:] -= 9
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


def loss_and_gradients(model: Any, **options: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The factor stands for what scales a loss before its backward pass."""
    torch.manual_seed(0)  # of dropout
    loss = model(**batch(), use_cache=False, **options).loss
    (loss * 3.0).backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return loss.detach(), gradients


def assert_equal(one: Any, other: Any, *, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(one[0], other[0], atol=tolerance, rtol=0)
    assert sorted(one[1]) == sorted(other[1])
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_chunked_loss_and_gradients_are_those_of_the_model(tmp_path: Path, family: str) -> None:
    make_family_model(tmp_path / "model", family)
    model = load_model(tmp_path, ModelReference(weights="model"), precision="fp32").train()
    expected = loss_and_gradients(copy.deepcopy(model))
    chunked = copy.deepcopy(model)
    assert use_chunked_loss(chunked), type(model).__name__
    found = loss_and_gradients(chunked)
    assert_equal(found, expected)


def test_the_loss_is_divided_by_the_items_of_the_global_batch(tmp_path: Path) -> None:
    make_family_model(tmp_path / "model", "Llama")
    model = load_model(tmp_path, ModelReference(weights="model"), precision="fp32").train()
    expected = loss_and_gradients(copy.deepcopy(model), num_items_in_batch=torch.tensor(100))
    assert use_chunked_loss(model)
    assert_equal(loss_and_gradients(model, num_items_in_batch=torch.tensor(100)), expected)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("new_rows", [(), (3, 7)])
def test_adapters_have_the_same_loss_and_gradients(
    tmp_path: Path, tied: bool, new_rows: tuple[int, ...]
) -> None:
    make_family_model(tmp_path / "model", "Qwen2" if tied else "Llama")

    def adapted(*, chunked: bool) -> Any:
        model = load_model(tmp_path, ModelReference(weights="model"), precision="fp32").train()
        assert not chunked or use_chunked_loss(model)
        return with_lora(model, LoraConfig(rank=2, alpha=4), seed=1, new_token_ids=new_rows)

    assert_equal(loss_and_gradients(adapted(chunked=True)), loss_and_gradients(adapted(chunked=False)))


def test_a_bf16_head_sums_its_gradient_over_chunks_in_fp32(tmp_path: Path) -> None:
    make_family_model(tmp_path / "model", "Llama")
    model = load_model(tmp_path, ModelReference(weights="model"), precision="bf16").train()
    exact = loss_and_gradients(copy.deepcopy(model).float())
    plain = loss_and_gradients(copy.deepcopy(model))
    assert use_chunked_loss(model)
    found = loss_and_gradients(model)

    def error(gradients: dict[str, torch.Tensor]) -> float:
        expected = exact[1]["lm_head.weight"]
        return float((gradients["lm_head.weight"].float() - expected).norm() / expected.norm())

    assert error(found[1]) < 1.2 * error(plain[1])


def test_without_labels_and_in_evaluation_the_model_returns_logits(tmp_path: Path) -> None:
    make_family_model(tmp_path / "model", "Llama")
    model = load_model(tmp_path, ModelReference(weights="model"), precision="fp32").train()
    assert use_chunked_loss(model)
    assert model(input_ids=batch()["input_ids"]).logits.shape == (2, 20, VOCABULARY + 4)
    assert model.eval()(**batch()).logits is not None


def test_a_model_whose_logits_are_not_known_keeps_its_own_loss() -> None:
    class OtherForCausalLM(transformers.LlamaForCausalLM):
        pass

    config = transformers.LlamaConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    assert not use_chunked_loss(OtherForCausalLM(config))


def test_a_chunk_is_bounded_in_bytes_and_the_estimate_counts_it() -> None:
    assert contract.chunk_tokens(128_256) == 523
    assert contract.chunk_tokens(10**7) == contract.FEWEST_CHUNK_TOKENS
    held = contract.loss_bytes(128_256, 4096, 65_536, is_head_trained=True)
    assert held == 523 * 128_256 * 12 + 4 * 128_256 * 4096 + 65_536 * 4096 * 2
    assert held < 65_536 * 128_256 * 12 / 20
