"""prepare's step that grows the tokenizer: learn on the domain, write `model-extended/`, tokenize everything anew.

`model/` stays as it is: it is the base of all measurements, measured with its own tokenizer.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dapt_contract.measure import Side
from dapt_contract.stages.prepare import TokenizerExtensionConfig, TokenizerFacts
from dapt_trainer.data.base_model.fetch import read_json
from dapt_trainer.data.choose_held_out import HeldOutChoice
from dapt_trainer.data.dedup.held_out_neighbours import HeldOutShingles
from dapt_trainer.data.packing.data_manifest import TokenType
from dapt_trainer.data.packing.held_out import HALVES, HeldOutDocument
from dapt_trainer.data.run_module import run_module
from dapt_trainer.data.spool import SpooledSource
from dapt_trainer.errors import InputError, StageOutOfMemoryError
from dapt_trainer.tokenization.extension import (
    FIELD,
    GrownTokenizer,
    check_extendable,
    grow_tokenizer,
    plain_tokenizer,
)
from dapt_trainer.tokenization.grow_model import Extension, write_extension
from dapt_trainer.tokenization.retokenize import SAMPLE_BYTES, retokenized, training_sample

_OLD_FORMATS = ("vocab.json", "merges.txt", "tokenizer.model", "spiece.model")
"""Other forms of the old vocabulary, which would be wrong beside the grown one."""
WORTHWHILE_FRACTION = 0.02
"""Share of the domain's tokens below which growing is warned about."""

Choices = dict[Side, HeldOutChoice]
Beat = Callable[[], None]


@dataclass(frozen=True)
class Grown:
    """What packing goes on with."""

    spooled: list[SpooledSource]
    token_type: TokenType
    facts: TokenizerFacts
    warnings: tuple[str, ...]


def check_model(model: Path, first_id: int, source: str, beat: Beat = lambda: None) -> None:
    """Refuse what cannot be extended, before a corpus is read for it.

    Args:
        model: folder of the base model.
        first_id: of the first new token.
        source: of the model, for messages.
        beat: called while the matrices are looked at.

    Raises:
        InputError: the tokenizer or the matrices cannot grow.
    """
    tokenizer_json = (model / "tokenizer.json").read_text(encoding="utf-8")
    check_extendable(tokenizer_json, source)
    _check_named_tokens(model, tokenizer_json, source)
    _run_grow(["check", str(model), str(first_id)], source, beat)


def grow(
    model: Path,
    target: Path,
    wanted: TokenizerExtensionConfig,
    spooled: Sequence[SpooledSource],
    choices: Choices,
    *,
    source: str,
    begin_of_text_id: int | None,
    end_of_text_id: int,
    beat: Beat,
) -> Grown:
    """Do the whole step.

    Args:
        model: folder of the base model, which is only read.
        target: folder of the grown model; does not exist yet.
        wanted: how the tokenizer grows.
        spooled: all sources, with their texts.
        choices: what is held out of them.
        source: of the model, for messages.
        begin_of_text_id: stands before each document; None: nothing does.
        end_of_text_id: stands behind each document.
        beat: called now and then.

    Raises:
        InputError: this tokenizer or model cannot be extended.
        OutOfMemory: growing the matrices took too much.
    """
    old_json = (model / "tokenizer.json").read_text(encoding="utf-8")
    grown = grow_tokenizer(old_json, lambda: _sample(spooled, choices), wanted, source=source, beat=beat)
    old, new = plain_tokenizer(old_json), plain_tokenizer(grown.tokenizer_json)
    _check_on_held_out(old, new, choices, grown, source)
    write_grown_model(model, target, grown, source=source, beat=beat)
    largest = max(new.get_vocab(with_added_tokens=True).values())
    token_type: TokenType = "uint16" if largest < 1 << 16 else "uint32"
    anew = [
        retokenized(
            spool,
            new,
            begin_of_text_id=begin_of_text_id,
            end_of_text_id=end_of_text_id,
            token_type=token_type,
            beat=beat,
        )
        for spool in spooled
    ]
    facts = facts_of(new, choices, len(grown.tokens))
    return Grown(anew, token_type, facts, warnings_of(facts, wanted))


def write_grown_model(
    model: Path, target: Path, grown: GrownTokenizer, *, source: str, beat: Beat = lambda: None
) -> None:
    """The model's folder with the grown tokenizer and matrices.

    Raises:
        InputError: the matrices cannot be grown.
        OutOfMemory: growing them took too much.
    """
    target.mkdir(parents=True)
    for path in sorted(model.iterdir()):
        if path.suffix != ".safetensors" and path.name not in (*_OLD_FORMATS, "tokenizer.json", "facts.json"):
            shutil.copyfile(path, target / path.name)
    (target / "tokenizer.json").write_text(grown.tokenizer_json, encoding="utf-8")
    first = grown.tokens[0].id if grown.tokens else 0
    write_extension(target, Extension(first, tuple(token.constituents for token in grown.tokens)))
    if not grown.tokens:
        for path in sorted(model.glob("*.safetensors")):
            os.link(path, target / path.name)
        return
    _run_grow(["grow", str(model), str(target)], source, beat)


def _check_named_tokens(model: Path, tokenizer_json: str, source: str) -> None:
    """Refuse a model whose other files name tokens that its tokenizer.json lacks: they follow its largest id.

    Raises:
        InputError: with the first of them.
    """
    known = plain_tokenizer(tokenizer_json).get_vocab(with_added_tokens=True)
    decoder = read_json(model / "tokenizer_config.json", source).get("added_tokens_decoder") or {}
    named = {token["content"]: int(number) for number, token in decoder.items()}
    named |= read_json(model / "added_tokens.json", source)
    for text, number in sorted(named.items(), key=lambda item: item[1]):
        if text not in known:
            raise InputError(
                f"{FIELD}: the tokenizer of {source} has a token beside its tokenizer.json ({text}, id {number}), "
                "whose id an appended one would take; save the model with a tokenizer.json that has it, or remove "
                "the field"
            )


def _run_grow(arguments: list[str], source: str, beat: Beat) -> None:
    """The helper that needs torch, in its own process."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = run_module("dapt_trainer.tokenization.grow_model", arguments, quiet, beat)
    if done.returncode in (-9, 137):
        raise StageOutOfMemoryError(
            f"{FIELD}: memory ran out while the matrices of {source} were grown; give prepare more memory"
        )
    if done.returncode:
        raise InputError(f"{FIELD}: {source} cannot be extended: {done.last_error}; remove the field")


def facts_of(new: Any, choices: Choices, added: int) -> TokenizerFacts:
    """Tokens a word of each side's held-out text, with the old tokenizer and with the new one."""
    numbers: dict[str, float] = {}
    for side, choice in choices.items():
        documents = _held_out(choice)
        words = max(1, sum(len(document.text.split()) for document in documents))
        after = sum(len(item.ids) for item in _encoded(new, documents))
        numbers[f"{side}_tokens_per_word_before"] = sum(len(d.ids) for d in documents) / words
        numbers[f"{side}_tokens_per_word_after"] = after / words
    return TokenizerFacts(added_tokens=added, **numbers)


def warnings_of(facts: TokenizerFacts, wanted: TokenizerExtensionConfig) -> tuple[str, ...]:
    """A sentence where growing brought little."""
    if facts.added_tokens == 0:
        return (
            f"The tokenizer did not grow: no two tokens inside a word occur together {wanted.minimum_frequency} times "
            f"in the domain's training text; remove {FIELD}, or lower its minimumFrequency.",
        )
    saved = 1 - facts.domain_tokens_per_word_after / facts.domain_tokens_per_word_before
    if saved >= WORTHWHILE_FRACTION:
        return ()
    return (
        f"The {facts.added_tokens:,} new tokens save {saved:.1%} of the domain's held-out tokens: below "
        f"{WORTHWHILE_FRACTION:.0%} larger matrices and rows that must be learned cost more than that brings; consider "
        f"removing {FIELD}.",
    )


def _sample(spooled: Sequence[SpooledSource], choices: Choices) -> Iterator[str]:
    """The domain's training text, or a share of it that is no larger than is needed."""
    domain = [spool for spool in spooled if spool.side == "domain"]
    size = sum(spool.texts.stat().st_size for spool in domain if spool.texts is not None)
    shingles, keys = near_held_out(choices)
    for spool in domain:
        yield from training_sample(
            spool,
            share=min(1.0, SAMPLE_BYTES / max(1, size)),
            held_out_keys=keys,
            shingles=shingles,
        )


def near_held_out(choices: Choices) -> tuple[HeldOutShingles, npt.NDArray[np.uint64]]:
    """What tells whether a document is held out, or near to one that is."""
    texts = [document.text for choice in choices.values() for document in _held_out(choice)]
    keys = np.array(sorted(set().union(*(choice.keys for choice in choices.values()))), dtype=np.uint64)
    return HeldOutShingles(texts), keys


def _check_on_held_out(old: Any, new: Any, choices: Choices, grown: GrownTokenizer, source: str) -> None:
    """The user's own text says whether the file that we wrote does what it must.

    Raises:
        InputError: some text has other tokens, or does not come back.
    """
    known = grown.constituents
    for choice in choices.values():
        documents = _held_out(choice)
        for document, encoding in zip(documents, _encoded(new, documents), strict=True):
            without = known.keys().isdisjoint(encoding.ids)
            comes_back = new.decode(encoding.ids) == old.decode(document.ids)
            if not comes_back or (without and encoding.ids != document.ids):
                raise InputError(
                    f"{FIELD}: the tokenizer of {source} cannot be extended: appended merges would change text that "
                    f"has none of the new tokens ({document.text[:40]!r}); remove the field"
                )


def _held_out(choice: HeldOutChoice) -> list[HeldOutDocument]:
    return [document for half in HALVES for document in choice.halves[half]]


def _encoded(tokenizer: Any, documents: Sequence[HeldOutDocument]) -> list[Any]:
    return list(tokenizer.encode_batch([document.text for document in documents], add_special_tokens=False))
