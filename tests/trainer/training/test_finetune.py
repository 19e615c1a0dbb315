"""finetune: labels on responses alone, the same result from every start, a reference that finds the tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dapt_contract.stages.common import (
    DistributionConfig,
    LoraConfig,
    ModelReference,
    OptimizerConfig,
    ScheduleConfig,
)
from dapt_contract.stages.finetune import FinetuneConfig, FinetuneReport
from dapt_trainer.errors import InputError
from dapt_trainer.stages import finetune
from dapt_trainer.training.models import load_model, weights_digest
from dapt_trainer.training.sft import ShuffledExamples, tokenize, tokenize_all, with_template
from toy_training import (
    FILTERS,
    SEQUENCE_LENGTH,
    make_context,
    make_tokenizer,
    make_work_volume,
    write_instructions,
)

pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]
CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three?"},
    {"role": "assistant", "content": "four!"},
]


def config(**changes: Any) -> FinetuneConfig:
    defaults: dict[str, Any] = {
        "model": ModelReference(weights="model"),
        "lora": LoraConfig(rank=4, alpha=8),
        "epochs": 2.0,
        "sequence_length_tokens": 128,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "optimizer": OptimizerConfig(learning_rate=1e-2),
        "schedule": ScheduleConfig(),
        "distribution": DistributionConfig(zero_stage=2, precision="fp32"),
    }
    return FinetuneConfig(**(defaults | changes))


def tuned(work: Path, settings: FinetuneConfig, **options: Any) -> FinetuneReport:
    return finetune.run(settings, make_context(work, work / "scratch", settings, kind="finetune", **options))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    make_work_volume(tmp_path)
    write_instructions(tmp_path, [(f"what is {number}", f"it is {number * 2}") for number in range(10)])
    return tmp_path


@pytest.mark.parametrize("chat_template", [True, False])
def test_the_labels_are_the_responses_exactly(chat_template: bool) -> None:
    tokenizer = with_template(make_tokenizer(chat_template=chat_template))
    example = tokenize(tokenizer, CHAT, sequence_length_tokens=1000)
    assert example is not None
    whole = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert tokenizer.decode(example.input_ids) == whole
    learned, current = [], []
    for token, label in zip([*example.input_ids, 0], [*example.labels, -100], strict=True):
        assert label in (-100, token)
        if label != -100:
            current.append(token)
        elif current:
            learned.append(tokenizer.decode(current))
            current = []
    end = "<|end|>" if chat_template else "<|end|>\n"
    assert learned == [f"two{end}", f"four!{end}"]


def test_a_template_that_rewrites_earlier_turns_teaches_the_last_response_alone() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}[..]"
        "{% else %}<{{ m['role'] }}>{{ m['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    example = tokenize(tokenizer, CHAT, sequence_length_tokens=1000)
    assert example is not None
    assert tokenizer.decode([label for label in example.labels if label != -100]) == "four!"


def test_a_response_past_the_sequence_length_is_cut_and_one_out_of_reach_refused(work: Path) -> None:
    tokenizer = with_template(make_tokenizer())
    assert (
        len(tokenize_all(tokenizer, work, sequence_length_tokens=SEQUENCE_LENGTH)[0].labels)
        == SEQUENCE_LENGTH
    )
    with pytest.raises(InputError) as caught:
        tokenize_all(tokenizer, work, sequence_length_tokens=8)
    assert str(caught.value) == (
        "none of 10 conversations has a response within 8 tokens; raise corpus.sequenceLength or shorten the prompts"
    )


def test_each_epoch_reads_every_example_once_in_a_new_order(work: Path) -> None:
    examples = tokenize_all(with_template(make_tokenizer()), work, sequence_length_tokens=128)
    rows = ShuffledExamples(examples, rows=20, seed=1)
    epochs = [[tuple(rows[k]["input_ids"]) for k in range(start, start + 10)] for start in (0, 10)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(tuple(example.input_ids) for example in examples)
    assert epochs[0] != epochs[1]


def test_the_first_loss_is_the_mean_over_response_tokens(work: Path) -> None:
    import torch

    settings = config(lora=None)
    examples = tokenize_all(with_template(make_tokenizer()), work, sequence_length_tokens=128)
    rows = ShuffledExamples(examples, rows=20, seed=0)
    model = load_model(work, settings.model, precision="fp32")
    total, tokens = 0.0, 0
    for index in range(4):
        ids, labels = torch.tensor([rows[index]["input_ids"]]), torch.tensor([rows[index]["labels"]])
        count = int((labels != -100).sum())
        total += float(model(input_ids=ids, labels=labels).loss.item()) * count
        tokens += count
    assert tuned(work, settings).facts.first_loss_nats == pytest.approx(total / tokens, abs=1e-5)


def test_lora_adds_an_adapter_and_every_start_ends_with_the_same_weights(work: Path) -> None:
    first = tuned(work, config())
    again = tuned(work, config(), try_number=2)
    assert first.facts.model == ModelReference(weights="model", adapters=("stages/finetune-a1/try-1/model",))
    assert first.facts.weights_digest == again.facts.weights_digest
    assert first.facts.weights_digest == weights_digest(work / "stages/finetune-a1/try-1/model")
    assert (first.facts.steps, first.facts.examples) == (5, 10)
    assert first.facts.last_loss_nats < first.facts.first_loss_nats


def test_full_weights_are_a_model_of_their_own(work: Path) -> None:
    report = tuned(work, config(lora=None, epochs=None, total_steps=2))
    assert report.facts.model == ModelReference(weights="stages/finetune-a1/try-1/model")
    assert report.facts.steps == 2
    load_model(work, report.facts.model, precision="bf16")
