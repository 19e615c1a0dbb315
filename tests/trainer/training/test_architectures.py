"""Each architecture through the real pretrain stage, small and random: documents kept apart, adapters where they
belong, a checkpoint that reloads to the same model, and facts that the planner can trust."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dapt_contract.inputs.model_size import trainable_parameters
from dapt_contract.stages.common import LoraConfig
from dapt_trainer.data.base_model.facts import read_model_facts
from dapt_trainer.distributed import join_ranks
from dapt_trainer.modeling.attention import choose_attention, use_attention
from dapt_trainer.modeling.flops import exact_flops_per_token, flops_per_token
from dapt_trainer.modeling.lora import with_lora
from dapt_trainer.stages.pretrain import PretrainRun
from support.toy_training import (
    END_OF_TEXT,
    FILTERS,
    VOCABULARY,
    make_context,
    make_work_volume,
    pretrain_config,
)
from support.written import load_recipe

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]

SMALL = {
    "vocab_size": VOCABULARY + 4, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TEXT, "pad_token_id": END_OF_TEXT,
}  # fmt: skip
WINDOW = 6
"""Tokens that a layer with a sliding window sees; the documents below are longer."""
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": {"tie_word_embeddings": False},
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen3": {"tie_word_embeddings": True, "head_dim": 16},
    "Mistral": {"sliding_window": WINDOW, "head_dim": 8},
    "Gemma2": {
        "head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "Gemma3Text": {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16},
    "GPTNeoX": {"num_key_value_heads": None, "tie_word_embeddings": False},
    "SmolLM3": {"no_rope_layers": [1, 1, 0], "tie_word_embeddings": True},
}  # fmt: skip
LENGTHS = (11, 3, 18)
CPU = torch.device("cpu")


@pytest.fixture(params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A work volume whose model is a small random one of the architecture."""
    import transformers

    work = make_work_volume(tmp_path / "work", sequences=16)
    settings = {
        name: value for name, value in (SMALL | ARCHITECTURES[request.param]).items() if value is not None
    }
    name = request.param
    config = getattr(transformers, f"{name}Config" if name != "Gemma3Text" else "Gemma3TextConfig")(
        **settings
    )
    model_class = getattr(transformers, "Gemma3ForCausalLM" if name == "Gemma3Text" else f"{name}ForCausalLM")
    torch.manual_seed(5)
    for file in (work / "model").glob("*.safetensors"):
        file.unlink()
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # norms and biases are no plain ones and zeros
    model.save_pretrained(work / "model")
    return work


def packed_row() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, VOCABULARY, (sum(LENGTHS),), generator=generator)
    return tokens, torch.cat([torch.arange(length) for length in LENGTHS])


@pytest.mark.parametrize("implementation", ["chosen", "eager"])
def test_packed_documents_give_the_outputs_that_each_gives_alone(folder: Path, implementation: str) -> None:
    from dapt_contract.stages.common import ModelReference

    model = load_recipe(folder, ModelReference(weights="model"), precision="fp32")
    if implementation == "eager":
        model.set_attn_implementation("eager")
    else:
        use_attention(model, choose_attention(model, CPU, document_boundaries=True, precision="fp32"))
    tokens, positions = packed_row()
    with torch.no_grad():
        packed = model(input_ids=tokens[None], position_ids=positions[None], use_cache=False).logits[0]
        alone = torch.cat(
            [model(input_ids=part[None], use_cache=False).logits[0] for part in tokens.split(list(LENGTHS))]
        )
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)
    other = tokens.clone()
    other[0] = (other[0] + 1) % VOCABULARY
    with torch.no_grad():
        changed = model(input_ids=other[None], position_ids=positions[None], use_cache=False).logits[0]
    assert not torch.allclose(changed[LENGTHS[0] - 1], packed[LENGTHS[0] - 1], atol=1e-6)
    torch.testing.assert_close(changed[LENGTHS[0] :], packed[LENGTHS[0] :], atol=0, rtol=0)


def test_adapters_are_on_every_linear_layer_but_the_head(folder: Path) -> None:
    from dapt_contract.stages.common import ModelReference

    lora = LoraConfig(rank=2, alpha=4)
    facts = read_model_facts(folder / "model", "toy", has_chat_template=False)
    base = load_recipe(folder, ModelReference(weights="model"), precision="fp32")
    linear = {
        name
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not base.get_output_embeddings()
    }
    config, parameters = base.config, sum(weight.numel() for weight in base.parameters())
    model = with_lora(base, lora, seed=1)
    adapted = {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    assert adapted == linear
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert trained == trainable_parameters(facts, lora)
    assert flops_per_token(model) == 4 * (parameters + trained) + 2 * trained
    assert (facts.parameters, facts.layers, facts.vocabulary_size) == (parameters, 3, VOCABULARY + 4)
    assert facts.head_size == getattr(config, "head_dim", None) or facts.head_size == 8
    assert facts.gated_mlp == (config.model_type != "gpt_neox")
    assert facts.tied_embeddings == (
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=4)], ids=["full", "lora"])
def test_two_steps_save_a_checkpoint_that_reloads_to_the_same_model(
    folder: Path, tmp_path: Path, lora: LoraConfig | None
) -> None:
    from dapt_contract.stages.common import ModelReference

    config = pretrain_config(lora=lora, total_steps=2, checkpoint_steps=(2,))
    stage = PretrainRun(config, make_context(folder, tmp_path / "scratch", config), join_ranks(0, 0, 1))
    report = stage.run()
    assert [point.step for point in report.curve] == [1, 2]
    assert report.facts.checkpoints[0].general_a_nats > 0
    way = "eager" if stage.model.config.model_type == "gemma2" else "sdpa"
    assert report.attention == f"{way}: on the CPU, documents kept apart by a mask from position ids"
    assert report.kernels.startswith("transformers' own layers: no accelerator; loss in chunks of ")
    saved = str(next(folder.rglob("checkpoint-2")).relative_to(folder))
    reference = (
        ModelReference(weights=saved) if lora is None else ModelReference(weights="model", adapters=(saved,))
    )
    base = load_recipe(folder, ModelReference(weights="model"), precision="fp32")
    reloaded = load_recipe(folder, reference, precision="fp32")
    tokens, positions = packed_row()
    inputs = {"input_ids": tokens[None], "position_ids": positions[None], "use_cache": False}
    with torch.no_grad():
        trained = stage.model.eval()(**inputs).logits
        torch.testing.assert_close(reloaded(**inputs).logits, trained, atol=1e-5, rtol=0)
        assert not torch.allclose(base(**inputs).logits, trained, atol=1e-4)


def test_exact_flops_exclude_the_embedding_lookup_and_count_attention(folder: Path) -> None:
    from dapt_contract.stages.common import ModelReference

    model = load_recipe(folder, ModelReference(weights="model"), precision="fp32")
    parameters = sum(weight.numel() for weight in model.parameters())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    table = 0 if tied else (VOCABULARY + 4) * 32
    found = exact_flops_per_token(model, layers=3, attention_width=32, mean_document_tokens=10)
    assert found == 6 * (parameters - table) + 6 * 3 * 32 * 10
