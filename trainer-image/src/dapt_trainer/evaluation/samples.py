"""Generates each model's answers to a few prompts, for people to read. No decision depends on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dapt_contract.layout import PROBES, TASKS
from dapt_contract.stages.common import EvaluationConfig
from dapt_trainer.data.chat.render_pool import RenderPool
from dapt_trainer.data.chat.rendering import Conversation, TemplateError, TemplateSet
from dapt_trainer.data.chat.template_files import has_usable_template
from dapt_trainer.data.packing.held_out import read_held_out
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.custom_tasks import read_questions
from dapt_trainer.evaluation.scoring import evaluating

_BEGINNING_TOKENS = 32
_MAX_PROMPT_TOKENS = 512


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


def _texts(path: Path, field: str, count: int) -> list[str]:
    try:
        return [question.text for question in read_questions(path, field, limit=count)]
    except InputError:
        return []


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], *, new_tokens: int
) -> list[str]:
    """Return greedy answers to the prompts, through the chat template where the tokenizer has one.

    Args:
        model: on its device.
        tokenizer: the model's.
        prompts: plain text.
        new_tokens: largest number of tokens to generate for each.
    """
    texts = []
    rendered = _rendered(tokenizer, prompts)
    with evaluating(model):
        for prompt in prompts:
            ids = _prompt_ids(tokenizer, prompt, rendered)[-_MAX_PROMPT_TOKENS:]
            ids_1l = torch.tensor([ids], device=next(model.parameters()).device)
            output_1l = model.generate(
                ids_1l,
                attention_mask=torch.ones_like(ids_1l),
                max_new_tokens=new_tokens,
                do_sample=False,
                # Not as the model's generation_config.json says: a thousand beams would fill the memory.
                num_beams=1,
                num_return_sequences=1,
                temperature=None,
                top_p=None,
                top_k=None,
                use_cache=True,
                pad_token_id=tokenizer.pad_token_id
                if tokenizer.pad_token_id is not None
                else tokenizer.eos_token_id,
            )
            texts.append(tokenizer.decode(output_1l[0, len(ids) :], skip_special_tokens=True).strip())
    return texts


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
