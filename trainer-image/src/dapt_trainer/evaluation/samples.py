"""Generates each model's answers to a few prompts, for people to read. No decision depends on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dapt_contract.layout import PROBES, TASKS
from dapt_contract.stages.common import EvaluationConfig
from dapt_trainer.data.chat.render_pool import RenderPool
from dapt_trainer.data.chat.rendering import Conversation, TemplateError, TemplateSet
from dapt_trainer.data.chat.template_files import has_usable_template
from dapt_trainer.data.packing.held_out import read_held_out
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.custom_tasks import Question, read_questions
from dapt_trainer.evaluation.scoring import evaluating
from dapt_trainer.evaluation.sharing.generation import IN_ONE_PROCESS, SharedGeneration, padded_left
from dapt_trainer.modeling.loading.sharding import is_sharded

_BEGINNING_TOKENS = 32
_MAX_PROMPT_TOKENS = 512
_RENDERED: Final = TypeAdapter(dict[str, str])


def sample_prompts(
    work: Path, config: EvaluationConfig, tokenizer: PreTrainedTokenizerBase, count: int
) -> list[str]:
    """Return prompts about the domain that no model was trained on.

    They are questions of custom domain tasks, then domain probes, then beginnings of held-out domain documents.

    Args:
        work: root of the work volume.
        config: says which tasks and probes there are.
        tokenizer: of the base model.
        count: how many prompts at most.
    """
    sets: list[list[str]] = []
    for task in config.tasks:
        if task.side == "domain" and task.source is not None:
            sets.append(_texts(work / TASKS / f"{task.name}.jsonl", "question", count))
    for probe in config.probes:
        if probe.side == "domain":
            sets.append(_texts(work / PROBES / f"{probe.name}.jsonl", "prompt", count))
    documents = read_held_out(work, "domain", "a")[:count] if sum(map(len, sets)) < count else []
    sets.append([tokenizer.decode(document.ids[:_BEGINNING_TOKENS]) for document in documents])
    return list(dict.fromkeys(text for texts in sets for text in texts if text.strip()))[:count]


def right_answers(work: Path, config: EvaluationConfig, count: int) -> dict[str, str]:
    """Return the right answers to those prompts of `sample_prompts` that are questions with choices.

    Args:
        work: root of the work volume.
        config: as given to `sample_prompts`.
        count: as given to it.
    """
    files = [
        (work / TASKS / f"{task.name}.jsonl", "question")
        for task in config.tasks
        if task.side == "domain" and task.source is not None
    ]
    files += [
        (work / PROBES / f"{probe.name}.jsonl", "prompt") for probe in config.probes if probe.side == "domain"
    ]
    # The first file that asks something is the one whose question became the prompt.
    return {
        question.text: question.choices[question.answer]
        for path, field in reversed(files)
        for question in _questions(path, field, count)
    }


def _texts(path: Path, field: str, count: int) -> list[str]:
    return [question.text for question in _questions(path, field, count)]


def _questions(path: Path, field: str, count: int) -> tuple[Question, ...]:
    try:
        return read_questions(path, field, limit=count)
    except InputError:
        return ()


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    new_tokens: int,
    generation: SharedGeneration = IN_ONE_PROCESS,
) -> list[str]:
    """Return greedy answers to the prompts, through the chat template where the tokenizer has one, on every rank.

    Args:
        model: on its device.
        tokenizer: the model's.
        prompts: plain text.
        new_tokens: largest number of tokens to generate for each.
        generation: divides the prompts over the ranks.
    """
    # By one rank for all: what is too slow to render is left out, and ranks that share a model must generate alike.
    rendered = generation.from_first(lambda: _rendered(tokenizer, prompts), _RENDERED)
    ids = [_prompt_ids(tokenizer, prompt, rendered)[-_MAX_PROMPT_TOKENS:] for prompt in prompts]
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    device = next(model.parameters()).device

    def generate(numbers: list[int]) -> list[str]:
        ids_bl, mask_bl = padded_left([ids[number] for number in numbers], pad_id)
        output_bl = model.generate(
            ids_bl.to(device),
            attention_mask=mask_bl.to(device),
            max_new_tokens=new_tokens,
            do_sample=False,
            # Not as the model's generation_config.json says: a thousand beams would fill the memory.
            num_beams=1,
            num_return_sequences=1,
            temperature=None,
            top_p=None,
            top_k=None,
            use_cache=True,
            pad_token_id=pad_id,
            synced_gpus=is_sharded(model),
        )
        new_bl = output_bl[:, ids_bl.shape[1] :].tolist()
        return [_text(tokenizer, row, _end_ids(model)) for row in new_bl]

    with evaluating(model):
        return generation.run([len(row) + new_tokens for row in ids], generate)


def _end_ids(model: PreTrainedModel) -> set[int]:
    """Return the tokens that end an answer."""
    end = model.generation_config.eos_token_id
    return set() if end is None else {end} if isinstance(end, int) else set(end)


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int], end_ids: set[int]) -> str:
    """Return the text of an answer up to its end; behind it is padding, while longer answers of the batch go on."""
    length = next((number for number, token in enumerate(ids) if token in end_ids), len(ids))
    return str(tokenizer.decode(ids[: length + 1], skip_special_tokens=True)).strip()


def _rendered(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> dict[str, str]:
    """Return the prompts in the form of the tokenizer's chat template, within limits of time, memory and length.

    One that the template does not render is left out, and so are all where of several templates none is the default.
    """
    templates = tokenizer.chat_template
    if not has_usable_template(templates):
        return {}
    named = templates if isinstance(templates, dict) else {"default": templates}
    special_tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    conversations = [Conversation([{"role": "user", "content": prompt}], ()) for prompt in prompts]
    with RenderPool(TemplateSet(named, special_tokens), processes=1) as pool:
        results = list(pool.rendered(conversations))
    return {
        prompt: texts[0].text
        for prompt, texts in zip(prompts, results, strict=True)
        if not isinstance(texts, TemplateError)
    }


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, rendered: Mapping[str, str]) -> list[int]:
    if prompt in rendered:
        return list(tokenizer.encode(rendered[prompt], add_special_tokens=False))
    ids = list(tokenizer.encode(prompt))
    # Some tokenizers end every text with end-of-text, after which there is nothing to continue.
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids
