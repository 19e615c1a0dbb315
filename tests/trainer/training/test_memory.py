"""Compares the estimated memory with real tensors: states of DeepSpeed's engine, and a step's peak."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.stages.common import DistributionConfig, LoraConfig, ModelReference
from dapt_operator.plan.sizing.model_fit.memory import TrainingShape, training_memory
from dapt_trainer.data.base_model.facts import read_model_facts
from dapt_trainer.distributed import join_ranks
from dapt_trainer.modeling.loading.load_folder import load_model
from dapt_trainer.modeling.lora import with_lora
from dapt_trainer.stages.pretrain import PretrainRun
from dapt_trainer.training.arguments import BUCKET_ELEMENTS
from support.toy_training import FILTERS, make_context, make_work_volume, pretrain_config

torch = pytest.importorskip("torch")
from torch._subclasses.fake_tensor import FakeTensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_map_only  # noqa: E402
from torch.utils.weak import WeakIdKeyDictionary  # noqa: E402

pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]
LORA = LoraConfig(rank=8, alpha=16)
ROWS, LENGTH = 2, 256


def make_llama(folder: Path, *, layers: int = 6) -> Any:
    """Wide enough that matrices outweigh what the formulas leave out."""
    from transformers import LlamaConfig, LlamaForCausalLM

    for file in folder.glob("*.safetensors"):
        file.unlink()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512, hidden_size=128, intermediate_size=352, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=LENGTH, tie_word_embeddings=True,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    return read_model_facts(folder, "toy", has_chat_template=False)


@pytest.fixture(autouse=True)
def whole_weights_afterwards() -> Iterator[None]:
    """transformers spreads every model that is loaded while a stage 3 configuration lives."""
    yield
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def storage_bytes() -> dict[int, int]:
    """Bytes of each storage that some tensor of this process uses, by address."""
    gc.collect()
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        try:
            # a compiled model of an earlier test leaves fake tensors, which have no storage
            if (
                issubclass(type(thing), torch.Tensor)
                and not isinstance(thing, FakeTensor)
                and thing.device.type == "cpu"
            ):
                storage = thing.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
        except (ReferenceError, RuntimeError, TypeError):
            continue
    return found


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("zero_stage", "precision"),
    [(0, "fp32"), (2, "fp32"), (0, "bf16"), (1, "bf16"), (2, "bf16"), (3, "bf16")],
)
def test_states_between_steps_have_the_estimated_size(
    tmp_path: Path, zero_stage: Any, precision: Any, lora: LoraConfig | None
) -> None:
    work = make_work_volume(tmp_path / "work", sequences=16)
    facts = make_llama(work / "model")
    before = storage_bytes()
    config = pretrain_config(
        lora=lora, total_steps=2, checkpoint_steps=(2,),
        distribution=DistributionConfig(zero_stage=zero_stage, precision=precision),
    )  # fmt: skip
    stage = PretrainRun(config, make_context(work, tmp_path / "scratch", config), join_ranks(0, 0, 1))
    stage.run()
    after = storage_bytes()
    measured = sum(size for place, size in after.items() if before.get(place) != size)
    memory = training_memory(
        TrainingShape(
            model=facts,
            lora=lora,
            kind="cpu",
            world_size=1,
            zero_stage=zero_stage,
            precision=precision,
            micro_batch_size=1,
            sequence_length_tokens=1,
            gradient_checkpointing=False,
        )
    )
    states = memory.weights + memory.optimizer + memory.master_weights
    if precision == "bf16" and zero_stage in (1, 3):
        states += memory.gradients  # have a place of their own that stays
    if zero_stage == 3:
        states += 4 * BUCKET_ELEMENTS  # and so has the reduction's buffer
    assert measured == pytest.approx(states, rel=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_activations_of_a_forward_pass_have_the_estimated_size(
    tmp_path: Path, precision: Any, lora: LoraConfig | None, checkpointing: bool
) -> None:
    """Of four layers: what eight keep less what four do, so that embedding and last norm fall out."""
    measured = estimated = 0.0
    for layers, sign in ((8, 1), (4, -1)):
        folder = tmp_path / str(layers)
        facts = make_llama(folder / "model", layers=layers)
        measured += sign * kept_bytes(folder, precision, lora, checkpointing=checkpointing)
        memory = training_memory(
            TrainingShape(
                model=facts,
                lora=lora,
                kind="cpu",
                world_size=1,
                zero_stage=0,
                precision=precision,
                micro_batch_size=ROWS,
                sequence_length_tokens=LENGTH,
                gradient_checkpointing=checkpointing,
            )
        )
        estimated += sign * memory.activations
    assert estimated == pytest.approx(measured, rel=0.1)


def kept_bytes(work: Path, precision: Any, lora: LoraConfig | None, *, checkpointing: bool) -> int:
    """Growth of all tensors' memory by a forward pass through the decoder, while its output is held."""
    model = load_model(work, ModelReference(weights="model"), precision=precision)
    if lora is not None:
        model = with_lora(model, lora, seed=0).to(torch.bfloat16 if precision == "bf16" else torch.float32)
        model.enable_input_require_grads()
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    decoder = model.get_base_model().model if lora is not None else model.model
    tokens = torch.randint(0, 512, (ROWS, LENGTH))
    with NewStorages(model) as new:
        hidden = decoder(input_ids=tokens, use_cache=False).last_hidden_state
        kept = new.bytes()
    assert hidden.requires_grad
    return kept


class NewStorages(TorchDispatchMode):
    """Every storage that an operation makes, for as long as something holds it; a model's parameters are not new."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._known: Any = WeakIdKeyDictionary()
        self._old = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._note, result)
        return result

    def _note(self, tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._old:
            self._known[storage] = storage.nbytes()
        return tensor

    def bytes(self) -> int:
        """Of those that are alive."""
        return int(sum(self._known.values()))
