"""A small model of each family that people adapt goes the whole way: prepare, baseline, training, tuning, publishing.

Tuning data comes in three formats. The published model is read by both versions of transformers and answers alike.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dapt_contract.layout import MODEL
from dapt_contract.stages.baseline import BaselineConfig
from dapt_contract.stages.common import EvaluationConfig, LoraConfig, ModelReference
from dapt_contract.stages.finetune import FinetuneConfig
from dapt_contract.stages.prepare import PrepareConfig, PrepareReport, TextSource
from dapt_contract.stages.tuning_data import FieldNames, InstructionSource, TuningDataConfig
from dapt_trainer.data.base_model import check
from dapt_trainer.data.base_model.complete import comparison_of
from dapt_trainer.stages import baseline, finetune, prepare, pretrain, publish
from support import toy_tokenizers
from support.card_builders import publish_config
from support.older_transformers import IDS, TEXT, read_models
from support.toy_corpus import documents, write_jsonl
from support.toy_families import make_family_model
from support.toy_learning import learn_a_little
from support.toy_training import FILTERS, make_context, pretrain_config

pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]

LLAMA2 = "Llama with a SentencePiece tokenizer"
FAMILIES = ("Qwen3", "GPTNeoX", "Gemma3Text", "Phi", LLAMA2)


def write_base(folder: Path, family: str, texts: list[str]) -> None:
    """Write a base model that has learned a little."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    make_family_model(folder, family if family != LLAMA2 else "Llama")
    config = AutoConfig.from_pretrained(folder)
    if family == LLAMA2:
        (folder / "tokenizer.json").write_text(toy_tokenizers.sentencepiece_bpe())
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "legacy": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | names))
        (folder / "special_tokens_map.json").write_text(json.dumps(names))
        config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id = 512, 1, 2, None
    model = AutoModelForCausalLM.from_config(config)
    learn_a_little(model, AutoTokenizer.from_pretrained(folder), texts, steps=25)
    model.save_pretrained(folder)


def tuning_data(folder: Path) -> TuningDataConfig:
    """Write eight examples in each of three formats."""
    formats: dict[str, list[dict[str, Any]]] = {"messages": [], "promptResponse": [], "mapped": []}
    for number, text in enumerate(documents(24, first=700_000, words=6)):
        asked, answer = f"what is {number}", text
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        if number < 8:
            formats["messages"].append({"messages": turns})
        elif number < 16:
            formats["promptResponse"].append({"prompt": asked, "response": answer})
        else:
            formats["mapped"].append({"instruction": asked, "output": answer})
    for name, rows in formats.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TuningDataConfig(
        kind="instructions",
        instructions=(
            InstructionSource(source=f"file://{folder}/messages.jsonl", format="messages"),
            InstructionSource(source=f"file://{folder}/promptResponse.jsonl", format="promptResponse"),
            InstructionSource(
                source=f"file://{folder}/mapped.jsonl",
                format="promptResponse",
                fields=FieldNames(prompt="instruction", response="output"),
            ),
        ),
    )


def prepared(root: Path, work: Path, data: TuningDataConfig) -> PrepareReport:
    domain = write_jsonl(root / "domain.jsonl", documents(40, words=30))
    general = write_jsonl(root / "general.jsonl", documents(30, first=10_000, words=30))
    config = PrepareConfig(
        model_source=f"file://{root}/base",
        domain=(TextSource(source=f"file://{domain}"),),
        general=(TextSource(source=f"file://{general}"),),
        held_out_fraction=0.1,
        sequence_length_tokens=64,
        global_batch_size=4,
        tuning_data=(data,),
        seed=7,
    )
    report = prepare.run(config, make_context(work, root, config, kind="prepare"))
    assert isinstance(report, PrepareReport)
    return report


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_the_whole_way(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # In this process: another one with torch takes seconds.
    monkeypatch.setattr(check, "compare", lambda folder, end_of_text, source, beat: comparison_of(folder))
    work = tmp_path / "work"
    work.mkdir()
    write_base(tmp_path / "base", family, documents(40, words=20))

    # 1. Everything is read: corpus, and tuning data in three formats.
    data = tuning_data(tmp_path)
    facts = prepared(tmp_path, work, data).facts
    assert [counted.records for counted in facts.tuning_data] == [24]

    # 2. The base model is measured, and trained with adapters.
    measured = BaselineConfig(
        model=ModelReference(weights=MODEL), evaluation=EvaluationConfig(context_length_tokens=64)
    )
    base = baseline.run(measured, make_context(work, tmp_path, measured, kind="baseline")).facts.measure
    training: dict[str, Any] = {
        "sequence_length_tokens": 64,
        "lora": LoraConfig(rank=4, alpha=8),
        "base_general_perplexity": base.general.both.perplexity,
    }
    settings = pretrain_config(total_steps=2, checkpoint_steps=(2,), **training)
    trained = pretrain.run(settings, make_context(work, tmp_path, settings)).facts
    assert trained.checkpoints[-1].general_a_nats < 1.5 * base.general.a.loss_nats

    # 3. It learns from the examples, with a template, which its tokenizer lacks.
    adapter = next(work.glob("stages/pretrain-*/*/checkpoint-2")).relative_to(work).as_posix()
    shared = {name: getattr(settings, name) for name in ("optimizer", "schedule", "distribution")}
    tuning = FinetuneConfig(
        model=ModelReference(weights=MODEL, adapters=(adapter,)),
        data_folder=data.folder,
        total_steps=2,
        lora=LoraConfig(rank=2, alpha=4),
        sequence_length_tokens=64,
        global_batch_size=4,
        micro_batch_size=2,
        **shared,
    )
    tuned = finetune.run(tuning, make_context(work, tmp_path, tuning, kind="finetune")).facts
    assert (tuned.steps, tuned.examples) == (2, 24)

    # 4. Whoever loads it, with either version, gets the same answers, tokens and template.
    out = tmp_path / "out"
    config = publish_config(f"file://{out}", model=tuned.model)
    publish.run(config, make_context(work, tmp_path, config, kind="publish"))
    oldest = read_models([out], older=True)[1][out]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    with torch.no_grad():
        assert oldest.first_choices == model(torch.tensor([IDS])).logits[0].argmax(-1).tolist()
    assert oldest.tokens == tokenizer(TEXT)["input_ids"]
    assert oldest.end_token_ids == model.generation_config.eos_token_id
    chat = [{"role": "user", "content": "a b"}]
    assert oldest.chat == tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert (out / "tokenizer.json").read_bytes() == (tmp_path / "base/tokenizer.json").read_bytes()
