"""Tests that decoder blocks are compiled once for all, for training alone, and that nothing else changes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from dapt_contract.stages.common import DistributionConfig
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.attention import stack_rows
from dapt_trainer.training import block_compilation
from dapt_trainer.training.block_compilation import choose_compilation, compile_blocks, repeated_blocks
from support.toy_training import FILTERS, VOCABULARY

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.torch,
    *(pytest.mark.filterwarnings(line) for line in FILTERS),
    # torch's compiler looks at the gradient of a block's input; the trainer hides that too.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
LAYERS = 4
DOCUMENTS = ((11, 5), (3, 3, 10), (8, 8))


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def tiny_model(*, checkpointing: bool = False) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            num_key_value_heads=1,
            use_cache=False,
        )
    )
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model.train()


def batches() -> list[dict[str, Any]]:
    """Rows of one length and other documents."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for lengths in DOCUMENTS:
        tokens = torch.randint(1, VOCABULARY, (16,), generator=generator)
        positions = torch.cat([torch.arange(length) for length in lengths])
        made.append(stack_rows([{"input_ids": tokens, "labels": tokens, "position_ids": positions}] * 2))
    return made


def losses(model: Any) -> list[float]:
    found = []
    for batch in batches():
        loss = model(**batch).loss
        loss.backward()
        found.append(float(loss.detach()))
    return [*found, float(model.get_input_embeddings().weight.grad.norm())]


class CountingBackend:
    """Runs what it is given uncompiled, and counts it."""

    def __init__(self) -> None:
        self.num_graphs = 0

    def __call__(self, graph: Any, _examples: object) -> Callable[..., object]:
        self.num_graphs += 1
        forward: Callable[..., object] = graph.forward
        return forward


@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_blocks_and_batches_share_what_is_compiled_once(checkpointing: bool) -> None:
    model, backend = tiny_model(checkpointing=checkpointing), CountingBackend()
    assert compile_blocks(model, backend=backend) == LAYERS
    assert losses(model) == pytest.approx(losses(tiny_model()), abs=1e-6)
    assert backend.num_graphs == 1


def test_a_compiled_model_keeps_the_names_of_its_weights() -> None:
    model = tiny_model()
    names = list(model.state_dict())
    compile_blocks(model, backend=CountingBackend())
    assert list(model.state_dict()) == names


def test_evaluation_compiles_nothing() -> None:
    model, backend = tiny_model().eval(), CountingBackend()
    compile_blocks(model, backend=backend)
    losses(model)
    assert backend.num_graphs == 0


def test_a_compiler_that_fails_is_reported_once_and_nothing_is_lost(caplog: Any) -> None:
    def broken(_graph: object, _examples: object) -> Callable[..., object]:
        raise RuntimeError("no such instruction")

    model = tiny_model()
    compile_blocks(model, backend=broken)
    with caplog.at_level(logging.WARNING, logger=block_compilation.__name__):
        assert losses(model) == losses(tiny_model())
    (message,) = [
        record.getMessage() for record in caplog.records if record.name == block_compilation.__name__
    ]
    assert message.startswith("decoder blocks run uncompiled, since the compiler failed: ")
    assert "no such instruction" in message


def test_blocks_compiled_on_the_cpu_give_the_same_losses(caplog: Any) -> None:
    model = tiny_model()
    assert compile_blocks(model) == LAYERS
    with caplog.at_level(logging.WARNING, logger=block_compilation.__name__):
        assert losses(model) == pytest.approx(losses(tiny_model()), abs=1e-5)
    assert not [record for record in caplog.records if record.name == block_compilation.__name__]


def test_lists_of_different_modules_are_no_blocks() -> None:
    model = torch.nn.Sequential(torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.ReLU()]))
    assert repeated_blocks(model) == []
    assert compile_blocks(model) == 0


@pytest.mark.parametrize(
    ("wanted", "device", "distribution", "compilers", "reason"),
    [
        ("", CPU, {}, True, "not compiled: on the CPU it takes longer than it gains"),
        ("on", CPU, {}, True, "compiled: TRAINER_COMPILE is on"),
        ("on", CPU, {}, False, "not compiled: a compiler (c++, g++, clang++) is not installed"),
        ("", GPU, {}, True, "compiled: once for each kind of block"),
        ("", GPU, {}, False, "not compiled: a compiler (cc, gcc, clang) is not installed"),
        ("off", GPU, {}, True, "not compiled: TRAINER_COMPILE is off"),
        ("on", GPU, {"zero_stage": 3}, True, "not compiled: ZeRO 3 gathers weights within a block"),
        (
            "",
            GPU,
            {"sequence_parallel": 2},
            True,
            "not compiled: ranks exchange parts of a sequence within a block",
        ),
    ],
)
def test_blocks_are_compiled_where_it_serves(
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    device: Any,
    distribution: dict[str, Any],
    compilers: bool,
    reason: str,
) -> None:
    monkeypatch.setenv("TRAINER_COMPILE", wanted)
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if compilers else None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    found = choose_compilation(device, DistributionConfig(**distribution))
    assert found.text == f"decoder blocks {reason}"


def test_another_value_of_the_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_COMPILE", "yes")
    with pytest.raises(InputError, match="TRAINER_COMPILE is 'yes', expected on or off"):
        choose_compilation(CPU, DistributionConfig())
