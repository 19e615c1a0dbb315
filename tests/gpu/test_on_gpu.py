"""What only an accelerator can show. Run with `pytest tests/gpu -m gpu` where one is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dapt_contract.stages.common import DistributionConfig, LoraConfig, ModelReference
from dapt_operator.plan.sizing.model_fit.memory import TrainingShape, training_memory
from support.toy_training import FILTERS, VOCABULARY, make_context, make_work_volume, pretrain_config

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.torch,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
    *(pytest.mark.filterwarnings(line) for line in FILTERS),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning"),
]
LENGTHS = ((300, 84, 128), (512,))
MODES = (
    (0, "none"), (1, "none"), (2, "none"), (2, "optimizer"), (3, "none"), (3, "optimizer"), (3, "all"),
)  # fmt: skip


def packed_rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(2)
    made = []
    for lengths in LENGTHS:
        tokens = torch.randint(1, VOCABULARY, (sum(lengths),), generator=generator)
        positions = torch.cat([torch.arange(length) for length in lengths])
        labels = torch.where(positions == 0, -100, tokens)
        made.append({"input_ids": tokens, "labels": labels, "position_ids": positions})
    return made


def llama(*, window: int | None = None) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    shape = {
        "vocab_size": VOCABULARY + 4, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    torch.manual_seed(0)
    if window is None:
        return LlamaForCausalLM(LlamaConfig(**shape)).cuda().eval()
    return MistralForCausalLM(MistralConfig(**shape, sliding_window=window)).cuda().eval()


def on_gpu(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def documents_alone(model: Any) -> Any:
    with torch.no_grad():
        return torch.cat(
            [
                model(input_ids=tokens[None].cuda(), use_cache=False).logits[0]
                for row, lengths in zip(packed_rows(), LENGTHS, strict=True)
                for tokens in row["input_ids"].split(list(lengths))
            ]
        )


@pytest.mark.parametrize("window", [None, 64], ids=["full", "sliding-window"])
@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
def test_packed_documents_get_what_they_get_alone(implementation: str, window: int | None) -> None:
    from dapt_trainer.modeling.attention import stack_rows

    model = llama(window=window)
    expected = documents_alone(model)
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        found = model(**on_gpu(stack_rows(packed_rows())), use_cache=False).logits.flatten(0, 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("window", [None, 64], ids=["full", "sliding-window"])
@pytest.mark.parametrize("implementation", ["flash_attention_2", "dapt_torch_varlen"])
def test_varlen_kernels_give_packed_documents_what_they_get_alone(
    implementation: str, window: int | None
) -> None:
    from dapt_trainer.modeling.attention import flatten_rows, register_torch_varlen

    if implementation == "flash_attention_2":
        pytest.importorskip("flash_attn")
    model = llama(window=window).to(torch.bfloat16)
    expected = documents_alone(model).float()
    register_torch_varlen()
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        found = model(**on_gpu(flatten_rows(packed_rows())), use_cache=False).logits[0].float()
    assert float((found - expected).abs().mean()) < 0.01 * float(expected.abs().mean())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_compiled_blocks_train_as_uncompiled_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    losses = {}
    for switch in ("off", "on"):
        monkeypatch.setenv("TRAINER_COMPILE", switch)
        distribution = DistributionConfig(
            zero_stage=1, precision="bf16", gradient_checkpointing=checkpointing
        )
        report = trained(tmp_path, f"compile-{switch}", distribution=distribution)
        losses[switch] = [point.loss_nats for point in report.curve]
    assert losses["on"] == pytest.approx(losses["off"], abs=0.02)


def trained(tmp_path: Path, name: str, **changes: Any) -> Any:
    from dapt_trainer.stages import pretrain

    work = make_work_volume(tmp_path / name)
    config = pretrain_config(**changes)
    return pretrain.run(config, make_context(work, tmp_path / f"{name}-scratch", config))


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8)], ids=["full", "lora"])
def test_every_mode_of_one_gpu_trains_the_same_model(tmp_path: Path, lora: LoraConfig | None) -> None:
    curves = {}
    for stage, offload in (
        (0, "none"),
        (1, "none"),
        (2, "none"),
        (2, "optimizer"),
        (3, "none"),
        (3, "optimizer"),
        (3, "all"),
    ):
        distribution = DistributionConfig.model_validate(
            {"zero_stage": stage, "offload": offload, "precision": "fp32"}
        )
        report = trained(tmp_path, f"{stage}-{offload}", distribution=distribution, lora=lora)
        curves[stage, offload] = [point.loss_nats for point in report.curve]
        assert report.attention.startswith("flex_attention: ")
    for mode, losses in curves.items():
        assert losses == pytest.approx(curves[0, "none"], abs=1e-4), mode


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=64, alpha=128)], ids=["full", "lora"])
def test_peak_memory_matches_the_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: LoraConfig | None, checkpointing: bool
) -> None:
    """About 0.3 B parameters, 8 rows of 2,048: enough that what the formulas leave out is small."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from bench import gpu, gpu_cases

    shape = gpu_cases.Shape(1024, 4096, 16, 16, 8, 32_768, 2048, 400)
    work = tmp_path / "work"
    gpu_cases.make_work(work, shape, 64)
    case = gpu_cases.Case("full" if lora is None else "lora", "stage")
    config = gpu_cases.config_of(case, shape, steps=3, micro=8, accumulation=1, checkpointing=checkpointing)
    monkeypatch.setattr("dapt_trainer.training.setup.choose_kernels", _plain_kernels)
    found = gpu_cases.run_stage(work, config)
    memory = training_memory(
        TrainingShape(
            model=gpu.facts(shape),
            lora=lora,
            kind="gpu",
            world_size=1,
            zero_stage=0,
            precision="bf16",
            micro_batch_size=8,
            sequence_length_tokens=shape.length,
            gradient_checkpointing=checkpointing,
        )
    )
    assert found["peak_bytes"] == pytest.approx(memory.total - memory.overhead, rel=0.1)


def _plain_kernels(*_args: Any, **_kwargs: Any) -> Any:
    from dapt_trainer.modeling.kernels import Kernels

    return Kernels(None, "the estimate is of plain layers")


def test_fused_kernels_learn_the_same(tmp_path: Path) -> None:
    pytest.importorskip("liger_kernel")
    from transformers.integrations.liger import apply_liger_kernel

    from dapt_trainer.modeling.attention import stack_rows

    batch = on_gpu(stack_rows(packed_rows()))
    plain, fused = llama(), llama()
    apply_liger_kernel(fused, {"fused_linear_cross_entropy": True, "cross_entropy": False})
    losses = [float(model(**batch, use_cache=False).loss.detach()) for model in (plain, fused)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_the_estimate_is_of_the_model_that_is_loaded(tmp_path: Path) -> None:
    from dapt_trainer.modeling.loading.load_folder import load_model

    make_work_volume(tmp_path)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = load_model(tmp_path, ModelReference(weights="model"), precision="bf16", device="cuda")
    held = sum(weight.numel() for weight in model.parameters()) * 2
    assert torch.cuda.memory_allocated() - before >= held
