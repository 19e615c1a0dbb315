"""Writes configuration, tokenizer and licence of a published model: the base model's own files.

A file in which nothing changed is copied byte for byte. Training changes two things: fine-tuning may add a chat
template, and the token at which generation stops.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from dapt_contract.base import JsonObject
from dapt_contract.untrusted.regular_files import IrregularFileError, open_regular
from dapt_trainer.data.base_model.facts import begin_of_text_id
from dapt_trainer.data.base_model.files import CARD, EXTENSION, FACTS, INDEX, is_small_file
from dapt_trainer.errors import InputError
from dapt_trainer.publishing.older_transformers import published_config, published_tokenizer_config

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
_NOT_COPIED = (CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG, INDEX, CARD, FACTS, EXTENSION)
"""Written again by publication, or of no use for whoever loads the model."""


@dataclass(frozen=True)
class Changes:
    """Says in what a published model's files differ from the base model's."""

    chat_template: str | None = None
    """Template that tuning has added; None: the base model's files have it, or there is none."""
    end_token_ids: Sequence[int] | None = None
    """Tokens at which generation stops; None: as the base model's."""
    dtype: str | None = None
    """Number format of the weights where it is not the base model's."""


def write_base_files(origin: Path, folder: Path, changes: Changes, *, has_weights: bool = True) -> None:
    """Write all files of a published model but weights and card.

    Args:
        origin: folder of the base model, extended where its tokenizer is.
        folder: of the published model.
        changes: what training has changed.
        has_weights: whether the folder is a whole model, which has its configuration; an adapter has another.

    Raises:
        InputError: a link or a special file stands in the place of a file.
    """
    # 1. What users need as it is: vocabulary, special tokens, templates, licence.
    for path in sorted((*origin.iterdir(), *origin.glob("*/*"))):
        name = path.relative_to(origin).as_posix()
        # No digest covers a licence. So nothing is taken that prepare would not have taken: whoever writes to the work
        # volume could add code, or a link to what this pod alone can read.
        if is_small_file(name) and name not in _NOT_COPIED:
            _copy(origin, name, folder / name)

    # 2. The configurations, which earlier versions of transformers must be able to read.
    config = published_config(_read(origin / CONFIG))
    if changes.dtype is not None:
        config |= {"dtype": changes.dtype, "torch_dtype": changes.dtype}
    if has_weights:
        _write_changed(origin / CONFIG, folder / CONFIG, config)
    _write_generation_config(origin, folder, config, changes.end_token_ids)
    if (origin / TOKENIZER_CONFIG).is_file():
        settings = published_tokenizer_config(
            _read(origin / TOKENIZER_CONFIG), adds_begin_of_text=_adds_begin_of_text(origin)
        )
        if changes.chat_template is not None:
            settings.pop("chat_template", None)
        _write_changed(origin / TOKENIZER_CONFIG, folder / TOKENIZER_CONFIG, settings)

    # 3. A template of our own; 4.57 and later look for it in this file.
    if changes.chat_template is not None:
        (folder / CHAT_TEMPLATE).write_text(changes.chat_template, encoding="utf-8")


def _copy(origin: Path, name: str, target: Path) -> None:
    try:
        descriptor = open_regular(origin, name)
    except IrregularFileError as error:
        raise InputError(
            f"{origin / name}: {error.strerror}, so it is not published: the work volume changed since prepare wrote"
            " it; restore the file, or remove it"
        ) from error
    target.parent.mkdir(exist_ok=True)
    with os.fdopen(descriptor, "rb") as read, target.open("wb") as written:
        shutil.copyfileobj(read, written)


def _write_generation_config(
    origin: Path, folder: Path, config: JsonObject, end_token_ids: Sequence[int] | None
) -> None:
    """Write it where the base model has one, or where generation stops at another token than the base model's."""
    (folder / GENERATION_CONFIG).unlink(missing_ok=True)
    has_own = (origin / GENERATION_CONFIG).is_file()
    if end_token_ids is None and not has_own:
        return  # transformers takes what config.json says
    settings = _read(origin / GENERATION_CONFIG) if has_own else _token_ids(config)
    if end_token_ids is not None:
        settings["eos_token_id"] = list(end_token_ids)
    _write_changed(origin / GENERATION_CONFIG, folder / GENERATION_CONFIG, settings)


def _token_ids(config: JsonObject) -> JsonObject:
    names = ("bos_token_id", "pad_token_id")
    return {name: config[name] for name in names if config.get(name) is not None}


def _adds_begin_of_text(origin: Path) -> bool:
    file = origin / "tokenizer.json"
    return file.is_file() and begin_of_text_id(Tokenizer.from_file(str(file))) is not None


def _read(path: Path) -> JsonObject:
    content: JsonObject = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write_changed(origin: Path, target: Path, content: JsonObject) -> None:
    """Write JSON; copy the original where it holds the same."""
    if origin.is_file() and _read(origin) == content:
        shutil.copyfile(origin, target)
        return
    target.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
