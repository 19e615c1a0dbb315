"""Reads the chat templates and the tokenizer of a model folder, without transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dapt_contract.base import JsonObject
from dapt_contract.inputs.json_files import BadJsonError, read_json_object
from dapt_trainer.data.chat.rendering import TemplateSet
from dapt_trainer.data.chat.tokens import TextEncoder
from dapt_trainer.errors import InputError

PLAIN_TEMPLATE: Final = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{ 'Answer: ' + message['content'] + eos_token + '\\n' }}"
    "{%- elif message['role'] == 'system' -%}{{ message['content'] + '\\n\\n' }}"
    "{%- else -%}{{ 'Question: ' + message['content'] + '\\n' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Answer: ' }}{%- endif -%}"
)
"""Template for base models that have none; saved with the tuned model."""
_TEMPLATE_FILE = "chat_template.jinja"
_MORE_TEMPLATES = "additional_chat_templates"
_MAX_TEMPLATE_BYTES = 1024 * 1024
_MAX_TOKENIZER_BYTES = 256 * 1024 * 1024
TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens that chat templates may name."""


def read_templates(folder: Path) -> TemplateSet:
    """Return the chat templates of a model folder as transformers finds them; the plain one where there is none.

    Raises:
        InputError: a file is damaged.
    """
    settings = _read_object(folder / "tokenizer_config.json")
    special_tokens = _special_tokens(settings, _read_object(folder / "special_tokens_map.json"))
    templates = _named_templates(settings.get("chat_template"))
    files = {"default": folder / _TEMPLATE_FILE} if (folder / _TEMPLATE_FILE).is_file() else {}
    files |= {path.stem: path for path in sorted((folder / _MORE_TEMPLATES).glob("*.jinja"))}
    if files:  # files replace what the configuration has
        templates = {name: _read_template(path) for name, path in files.items()}
    tokens = [token for token in _added_tokens(folder) if token]
    control_tokens = tuple(dict.fromkeys([*special_tokens.values(), *tokens]))
    if not templates:
        description = "the plain chat template, which a model without one of its own gets"
        return TemplateSet({"default": PLAIN_TEMPLATE}, special_tokens, control_tokens, description)
    return TemplateSet(templates, special_tokens, control_tokens)


def has_usable_template(template: object) -> bool:
    """Return whether a tokenizer's `chat_template` can render a conversation: text, or several with a default."""
    return "default" in template if isinstance(template, dict) else bool(template)


def read_encoder(folder: Path, end_of_text: str) -> TextEncoder:
    """Return the tokenizer of a model folder.

    Raises:
        InputError: it cannot be read, or does not know the end-of-text token.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError(f"{path}: cannot be read ({error}); run prepare again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    end_of_text_id = tokenizer.token_to_id(end_of_text)
    if end_of_text_id is None:
        raise InputError(f"{path}: has no token {end_of_text!r}, which must end texts; use another tokenizer")

    # A batch of one: unlike `encode` it releases the interpreter's lock, so that its time can be limited.
    def encode(text: str) -> list[int]:
        return list(tokenizer.encode_batch([text], add_special_tokens=False)[0].ids)

    def encode_with_beginning(text: str) -> list[int]:
        return list(tokenizer.encode_batch([text])[0].ids)

    return TextEncoder(encode, encode_with_beginning, int(end_of_text_id))


def _named_templates(value: object) -> dict[str, str]:
    """Return the templates of a configuration by their names; it has one text, a list with names, or a map."""
    named: dict[str, object] = {}
    if isinstance(value, str):
        named = {"default": value}
    elif isinstance(value, dict):
        named = dict(value)
    elif isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict)]
        named = {str(entry.get("name")): entry.get("template") for entry in entries}
    return {name: template for name, template in named.items() if isinstance(template, str) and template}


def _special_tokens(settings: JsonObject, token_map: JsonObject) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for name in TOKEN_NAMES:
        for source in (settings, token_map):
            text = _token_text(source.get(name))
            if text:
                tokens.setdefault(name, text)
    return tokens


def _token_text(token: object) -> str | None:
    """Return the text of a token, which tokenizer files write as a string or as an object."""
    value = token.get("content") if isinstance(token, Mapping) else token
    return value if isinstance(value, str) else None


def _added_tokens(folder: Path) -> list[str]:
    added = _read_object(folder / "tokenizer.json").get("added_tokens")
    tokens = [_token_text(token) for token in added] if isinstance(added, list) else []
    return [token for token in tokens if token]


def _read_object(path: Path) -> JsonObject:
    """Read a JSON file of the tokenizer; an empty object where there is none."""
    try:
        return read_json_object(path, _MAX_TOKENIZER_BYTES)
    except FileNotFoundError:
        return {}
    except BadJsonError as error:
        raise InputError(f"{path}: not JSON ({error}); download the model again") from error


def _read_template(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            content = file.read(_MAX_TEMPLATE_BYTES + 1)
        if len(content) > _MAX_TEMPLATE_BYTES:
            raise InputError(
                f"{path}: longer than {_MAX_TEMPLATE_BYTES >> 20} MiB; use a model with another template"
            )
        return content
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); download the model again") from error
