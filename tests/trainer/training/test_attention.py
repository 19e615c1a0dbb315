"""Tests the choice of attention and kernels, and that every attention on the CPU keeps packed documents apart."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from dapt_contract.stages.common import DistributionConfig, OptimizerConfig, ScheduleConfig
from dapt_trainer.modeling import attention, kernels
from dapt_trainer.modeling.attention import (
    choose_attention,
    flatten_rows,
    stack_rows,
    unpacked_attention,
    use_attention,
)
from dapt_trainer.modeling.kernels import choose_kernels
from dapt_trainer.training.arguments import deepspeed_settings, scheduler_settings
from support.toy_training import FILTERS, VOCABULARY, make_model

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
LENGTHS = ((11, 3, 18), (20, 12))


def supporting(*, flash: bool = True, flex: bool = True, sdpa: bool = True) -> Any:
    return SimpleNamespace(_supports_flash_attn=flash, _supports_flex_attn=flex, _supports_sdpa=sdpa)


def varlen_model(*, weights: tuple[str, ...] = (), **over: Any) -> Any:
    """What a model that transformers lets run on other attention says of itself."""
    shape = {"hidden_size": 256, "num_attention_heads": 4, "attention_dropout": 0.0}
    return SimpleNamespace(
        _supports_flash_attn=True,
        _supports_flex_attn=True,
        _supports_attention_backend=True,
        config=SimpleNamespace(**(shape | over)),
        named_parameters=lambda: [(name, None) for name in weights],
    )


@pytest.mark.parametrize(
    ("device", "boundaries", "precision", "installed", "model", "chosen"),
    [
        (GPU, True, "bf16", True, varlen_model(), "flash_attention_2"),
        (GPU, True, "bf16", False, varlen_model(), "dapt_torch_varlen"),
        (GPU, True, "fp32", False, varlen_model(), "flex_attention"),
        (GPU, True, "bf16", False, varlen_model(attn_logit_softcapping=50.0), "flex_attention"),
        (GPU, True, "bf16", False, varlen_model(head_dim=512), "flex_attention"),
        (GPU, True, "bf16", False, varlen_model(weights=("layers.0.self_attn.sinks",)), "flex_attention"),
        (CPU, True, "bf16", True, supporting(), "sdpa"),
        (GPU, True, "bf16", True, supporting(), "flash_attention_2"),
        (GPU, True, "fp32", True, supporting(), "flex_attention"),
        (GPU, True, "bf16", False, supporting(), "flex_attention"),
        (GPU, True, "bf16", True, supporting(flash=False), "flex_attention"),
        (GPU, True, "bf16", False, supporting(flex=False), "sdpa"),
        (GPU, False, "bf16", True, supporting(), "sdpa"),
        (GPU, False, "bf16", False, supporting(sdpa=False), "flex_attention"),
        (CPU, True, "fp32", False, supporting(sdpa=False), "eager"),
    ],
)
def test_the_fastest_available_attention_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
    device: Any,
    boundaries: bool,
    precision: str,
    installed: bool,
    model: Any,
    chosen: str,
) -> None:
    monkeypatch.setattr(attention, "has_flash_attention", lambda: installed)
    found = choose_attention(model, device, document_boundaries=boundaries, precision=precision)
    assert found.implementation == chosen
    assert found.collate is (flatten_rows if chosen in attention.TAKES_BORDERS else stack_rows)
    assert found.text.startswith(f"{chosen}: ")


def rows() -> list[dict[str, Any]]:
    """Two packed rows of 32 tokens as `PackedDataset` gives them."""
    generator = torch.Generator().manual_seed(2)
    made = []
    for lengths in LENGTHS:
        tokens = torch.randint(1, VOCABULARY, (sum(lengths),), generator=generator)
        positions = torch.cat([torch.arange(length) for length in lengths])
        labels = tokens.clone()
        labels[positions == 0] = -100
        made.append({"input_ids": tokens, "labels": labels, "position_ids": positions})
    return made


def test_rows_of_a_micro_batch_are_concatenated_for_the_varlen_kernel() -> None:
    batch = flatten_rows(rows())
    assert batch["input_ids"].shape == (1, 64)
    assert batch["cu_seq_lens_q"].tolist() == [0, 11, 14, 32, 52] + 11 * [64]
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert (batch["max_length_q"], batch["max_length_k"]) == (32, 32)
    assert int(batch["labels"][0, 32]) == -100
    broken = rows()
    broken[1]["position_ids"] = broken[1]["position_ids"] + 1
    with pytest.raises(ValueError, match="must start with a document's first token"):
        flatten_rows(broken)


def test_batches_with_other_documents_have_borders_of_few_sizes() -> None:
    def row(length: int) -> dict[str, Any]:
        """Documents of one length, in a row of 64 tokens."""
        positions = torch.arange(64) % length
        return {"input_ids": positions, "labels": positions, "position_ids": positions}

    sizes = set()
    for length in range(2, 65):
        batch = flatten_rows([row(length)])
        sizes.add((len(batch["cu_seq_lens_q"]), batch["max_length_q"]))
    assert sizes == {(64, 2), (32, 4), (16, 8), (16, 16), (16, 32), (16, 64)}


@pytest.fixture
def model(tmp_path: Any) -> Any:
    from transformers import AutoModelForCausalLM

    make_model(tmp_path)
    return AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()


def loss_and_gradient(model: Any, batch: dict[str, Any]) -> tuple[float, Any]:
    model.zero_grad()
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    return float(loss.detach()), model.get_input_embeddings().weight.grad.clone()


def alone(model: Any) -> tuple[float, Any]:
    """Mean over the label tokens of all documents, each in a row of its own."""
    model.zero_grad()
    total: Any = 0  # a tensor after the first document
    count = 0
    for row, lengths in zip(rows(), LENGTHS, strict=True):
        for tokens in row["input_ids"].split(list(lengths)):
            logits = model(input_ids=tokens[None], use_cache=False).logits[0]
            total = total + torch.nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="sum")
            count += len(tokens) - 1
    loss = total / count
    loss.backward()
    return float(loss.detach()), model.get_input_embeddings().weight.grad.clone()


def varlen_by_hand(
    query: Any, key: Any, value: Any, borders: Any, _borders: Any, longest: int, _longest: int, **options: Any
) -> Any:
    """What torch's kernel computes on a GPU: each document alone, [L, H, D]."""
    assert options["window_size"] == (-1, 0)
    edges = borders.tolist()
    parts = []
    for start, end in itertools.pairwise(edges):
        assert end - start <= longest
        if start == end:
            continue
        part = [tensor[start:end].transpose(0, 1)[None] for tensor in (query, key, value)]
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                *part, is_causal=True, scale=options["scale"], enable_gqa=options["enable_gqa"]
            )[0].transpose(0, 1)
        )
    return torch.cat(parts)


def test_torchs_varlen_kernel_gets_each_document_alone(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    monkeypatch.setattr(attention.varlen, "varlen_attn", varlen_by_hand)
    expected_loss, expected_gradient = alone(model)
    attention.register_torch_varlen()
    use_attention(model, attention.Attention(attention.TORCH_VARLEN, "for the test", flatten_rows))
    loss, gradient = loss_and_gradient(model, flatten_rows(rows()))
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", ["sdpa", "eager", "flattened"])
def test_every_attention_gives_the_gradients_of_each_document_alone(model: Any, way: str) -> None:
    expected_loss, expected_gradient = alone(model)
    batch = stack_rows(rows())
    if way == "flattened":  # the varlen batch without its borders: transformers finds them in the positions
        batch = {
            name: value for name, value in flatten_rows(rows()).items() if isinstance(value, torch.Tensor)
        }
        batch = {name: value for name, value in batch.items() if not name.startswith("cu_")}
    else:
        model.set_attn_implementation(way)
    loss, gradient = loss_and_gradient(model, batch)
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=0)


def test_scoring_uses_plain_attention_and_restores_the_chosen_one(model: Any) -> None:
    use_attention(model, attention.Attention("flex_attention", "for the test", stack_rows))
    with unpacked_attention(model):
        assert model.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "flex_attention"


def config(**over: Any) -> Any:
    return SimpleNamespace(**({"model_type": "llama", "vocab_size": 128_256} | over))


def test_fused_kernels_are_used_where_installed_and_where_they_save_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "is_supported", lambda model_type: model_type == "llama")
    monkeypatch.setattr(kernels, "supported_switches", lambda _type, switches: switches)

    def of(
        device: Any = GPU, tokens: int = 8192, *, zero: int = 0, installed: bool = True, **over: Any
    ) -> Any:
        return choose_kernels(
            config(**over), device, tokens_per_pass=tokens, zero_stage=zero, installed=installed
        )

    assert of(CPU).text == "transformers' own layers: no accelerator"
    assert of(installed=False).text == "transformers' own layers: liger-kernel is not installed"
    assert of(model_type="smollm3").text == "transformers' own layers: liger-kernel has none for smollm3"
    assert of(tokens=2048).text == (
        "transformers' own layers: 2048 tokens a forward pass, under 4096, gain nothing"
    )
    assert of().text == "Liger (rope, rms_norm, swiglu, fused_linear_cross_entropy): 8192 tokens a pass"
    assert of(zero=3).text == "Liger (rope, rms_norm, swiglu): 8192 tokens a pass"
    assert not of(vocab_size=32_000).liger["fused_linear_cross_entropy"]
    assert of().arguments["use_liger_kernel"] is True
    assert of(CPU).arguments == {}


def test_deepspeed_settings_follow_zero_stage_and_offload() -> None:
    def zero(**over: Any) -> dict[str, Any]:
        settings = deepspeed_settings(
            DistributionConfig(**over), OptimizerConfig(learning_rate=1e-5), on_cpu=False
        )
        assert settings["zero_force_ds_cpu_optimizer"] is False
        found = settings["zero_optimization"]
        assert isinstance(found, dict)
        return found

    away = {"device": "cpu", "pin_memory": True}
    assert zero(zero_stage=0) == {"stage": 0}
    assert "offload_optimizer" not in zero(zero_stage=2)
    assert zero(zero_stage=2)["overlap_comm"] is True
    assert zero(zero_stage=2, offload="optimizer")["offload_optimizer"] == away
    everything = zero(zero_stage=3, offload="all")
    assert (everything["offload_optimizer"], everything["offload_param"]) == (away, away)
    assert everything["stage3_param_persistence_threshold"] == "auto"
    assert "offload_param" not in zero(zero_stage=3, offload="optimizer")


@pytest.mark.filterwarnings("ignore:Both num_training_steps")
def test_wsd_warms_up_holds_and_decays_linearly_over_the_last_fifth() -> None:
    from transformers import get_scheduler

    steps, peak, lowest = 50, 2e-3, 0.1
    schedule = ScheduleConfig(type="wsd", warmup_fraction=0.1, minimum_ratio=lowest)
    named = scheduler_settings(schedule, steps)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = get_scheduler(
        named["lr_scheduler_type"], optimizer, num_warmup_steps=5, num_training_steps=steps,
        scheduler_specific_kwargs=named["lr_scheduler_kwargs"],
    )  # fmt: skip
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    for step, rate in enumerate(rates):
        if step < 5:
            expected = peak * (lowest + (1 - lowest) * step / 5)
        elif step < 40:
            expected = peak
        else:
            expected = peak * (1 - (1 - lowest) * (step - 39) / 10)
        assert rate == pytest.approx(expected, rel=1e-9), step
