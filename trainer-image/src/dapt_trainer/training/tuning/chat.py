"""Connects chat templates with tokenizers as transformers loads them: the plain template, where generation stops."""

from __future__ import annotations

from typing import Final

from pydantic import TypeAdapter
from transformers import PreTrainedModel

from dapt_trainer.data.chat.render_pool import RenderPool
from dapt_trainer.data.chat.rendering import Conversation, Message, TemplateError, TemplateSet
from dapt_trainer.data.chat.template_files import PLAIN_TEMPLATE
from dapt_trainer.data.chat.tokens import TextEncoder
from dapt_trainer.distributed import Ranks
from dapt_trainer.modeling.protocols import Tokenizer

LINES_PER_HEARTBEAT = 256
_END: Final[TypeAdapter[int | None]] = TypeAdapter(int | None)
_SHORT_CHAT: tuple[Message, ...] = (
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
)


def with_template(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with its own chat template, or with the plain one where it has none."""
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


def encoder_of(tokenizer: Tokenizer) -> TextEncoder:
    """Return what examples need of a tokenizer."""
    return TextEncoder(
        encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        encode_with_beginning=lambda text: tokenizer(text)["input_ids"],
        end_of_text_id=tokenizer.eos_token_id,
    )


def templates_of(tokenizer: Tokenizer) -> TemplateSet:
    """Return the chat templates of a tokenizer."""
    template: object = tokenizer.chat_template  # some tokenizers have several, by their names
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    return TemplateSet(
        template if isinstance(template, dict) else {"default": str(template)},
        tokenizer.special_tokens_map,
        tuple(token for token in dict.fromkeys([*tokenizer.all_special_tokens, *added]) if token),
    )


def stop_at_end_of_turn(model: PreTrainedModel, tokenizer: Tokenizer, ranks: Ranks | None = None) -> None:
    """Make generation stop at the token with which the chat template ends the assistant's turn.

    Many base models have a template whose end is not their end of text (ChatML's `<|im_end|>`): fine-tuning teaches the
    token, and the generation config must list it.

    Args:
        model: gets the token.
        tokenizer: with the template.
        ranks: that generate together; all call it, and the first one renders for all, within a limit of time. None: a
            single process.
    """
    end = (
        _end_of_turn(tokenizer) if ranks is None else ranks.from_first(lambda: _end_of_turn(tokenizer), _END)
    )
    if end is None:
        return
    configured = model.generation_config.eos_token_id
    ends = [configured] if isinstance(configured, int) else list(configured or [])
    if end not in ends:
        model.generation_config.eos_token_id = [*ends, end]


def _end_of_turn(tokenizer: Tokenizer) -> int | None:
    """Return the token that ends the assistant's turn; None where no template renders a short chat."""
    if not tokenizer.chat_template:
        return None
    with RenderPool(templates_of(tokenizer), processes=1) as pool:
        (texts,) = pool.rendered([Conversation(_SHORT_CHAT, (1,))])
    return None if isinstance(texts, TemplateError) else encoder_of(tokenizer).encode(texts[0].text)[-1]
