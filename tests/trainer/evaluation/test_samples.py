"""Prompts come from what no model was trained on, and answers are greedy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.stages.common import EvaluationConfig, ModelReference, ProbeConfig, TaskConfig
from dapt_trainer.evaluation.custom_tasks import read_questions
from dapt_trainer.evaluation.samples import answers, right_answers, sample_prompts
from dapt_trainer.modeling.loading.load_folder import load_model
from dapt_trainer.modeling.stored_models.model_folder import load_tokenizer

pytestmark = pytest.mark.torch
EVALUATION = EvaluationConfig(
    tasks=(
        TaskConfig(name="colours", side="general", source="file://colours.jsonl"),
        TaskConfig(name="animals", side="domain", source="file://animals.jsonl"),
        TaskConfig(name="arc_easy", side="domain"),
    ),
    probes=(ProbeConfig(name="facts", side="domain", source="file://facts.jsonl"),),
    context_length_tokens=32,
)


def test_questions_about_the_domain_come_first_then_its_held_out_text(toy_work: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(toy_work)
    assert [prompt.split(":")[0] for prompt in sample_prompts(toy_work, EVALUATION, tokenizer, 3)] == [
        "item 0",
        "item 80",
        "item 160",
    ]
    known = right_answers(toy_work, EVALUATION, 3)
    questions = read_questions(toy_work / "tasks/animals.jsonl", "question", limit=3)
    assert {known[question.text] for question in questions} <= {
        question.choices[question.answer] for question in questions
    }
    work = tmp_path / "work"
    shutil.copytree(toy_work, work)
    (work / "tasks" / "animals.jsonl").unlink()
    (work / "probes" / "facts.jsonl").unlink()
    held_out = (work / "held-out" / "domain-a.jsonl").read_text()
    prompts = sample_prompts(work, EVALUATION, tokenizer, 2)
    assert len(prompts) == 2
    assert all(prompt in held_out for prompt in prompts)


@pytest.mark.parametrize(
    "template", [None, {"rag": "of several, none the default"}, "<{{ messages[0]['content'] }}>"]
)
def test_an_answer_is_the_most_likely_token_at_each_place(toy_work: Path, template: Any) -> None:
    import torch

    model: Any = load_model(toy_work, ModelReference(weights="model"), precision="fp32")
    tokenizer: Any = load_tokenizer(toy_work)
    tokenizer.chat_template = template
    prompt = "red cat"
    ids = tokenizer.encode(f"<{prompt}>" if isinstance(template, str) else prompt)
    expected: list[int] = []
    with torch.no_grad():
        for _ in range(6):
            expected.append(int(model(torch.tensor([ids + expected])).logits[0, -1].argmax()))
    if 0 in expected:
        expected = expected[: expected.index(0)]
    assert answers(model, tokenizer, [prompt], new_tokens=6) == [tokenizer.decode(expected).strip()]


def test_prompts_of_different_lengths_are_answered_together_as_alone(toy_work: Path) -> None:
    model: Any = load_model(toy_work, ModelReference(weights="model"), precision="fp32")
    tokenizer: Any = load_tokenizer(toy_work)
    prompts = ["red cat", "a bird sleeps under the green dog and the blue cat", "the"]
    batches: list[int] = []
    model.model.embed_tokens.register_forward_hook(
        lambda _module, inputs, _output: batches.append(len(inputs[0]))
    )
    together = answers(model, tokenizer, prompts, new_tokens=8)
    assert set(batches) == {3}
    assert together == [answers(model, tokenizer, [prompt], new_tokens=8)[0] for prompt in prompts]


def test_an_answer_ends_where_the_model_ends_it(toy_work: Path) -> None:
    model: Any = load_model(toy_work, ModelReference(weights="model"), precision="fp32")
    tokenizer: Any = load_tokenizer(toy_work)
    tokenizer.chat_template = None
    prompts = ["red cat", "a bird sleeps under the"]
    whole = answers(model, tokenizer, prompts, new_tokens=8)
    first = tokenizer.encode(f" {whole[0]}")[0]
    model.generation_config.eos_token_id = [0, first]
    ended = answers(model, tokenizer, prompts, new_tokens=8)
    assert ended[0] == tokenizer.decode([first]).strip()
    assert ended == [answers(model, tokenizer, [prompt], new_tokens=8)[0] for prompt in prompts]


def test_a_prompt_does_not_end_where_the_tokenizer_ends_every_text(toy_work: Path) -> None:
    from tokenizers import processors

    model: Any = load_model(toy_work, ModelReference(weights="model"), precision="fp32")
    tokenizer: Any = load_tokenizer(toy_work)
    tokenizer.chat_template = None
    expected = answers(model, tokenizer, ["red cat"], new_tokens=4)
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    assert tokenizer.encode("red cat")[-1] == tokenizer.eos_token_id
    assert answers(model, tokenizer, ["red cat"], new_tokens=4) == expected
