"""Extends the tokenizer in prepare: learns on the domain, writes `model-extended/`, tokenizes the corpus again.

`model/` does not change: it is the base of all measurements and is measured with its own tokenizer.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dapt_contract.layout import EXTENDED_MODEL, MODEL
from dapt_contract.stages.prepare import TokenizerExtensionConfig, TokenizerFacts
from dapt_contract.untrusted.folders import copy_folder
from dapt_trainer.data.base_model.check import named_tokens
from dapt_trainer.data.base_model.facts import TokenizerDescription
from dapt_trainer.data.base_model.files import FACTS
from dapt_trainer.data.choose_held_out import Corpus
from dapt_trainer.data.packing.data_manifest import TokenType
from dapt_trainer.data.packing.held_out import HeldOutDocument
from dapt_trainer.data.plain_tokenizer import plain_tokenizer
from dapt_trainer.data.run_module import OFFLINE, run_module
from dapt_trainer.data.slices.spooled_source import SpooledSource
from dapt_trainer.digests import weights_digest
from dapt_trainer.errors import InputError, StageOutOfMemoryError
from dapt_trainer.tokenization.extension import FIELD, GrownTokenizer, check_extendable, grow_tokenizer
from dapt_trainer.tokenization.grow_model import Extension, write_extension
from dapt_trainer.tokenization.retokenize import SAMPLE_BYTES, retokenized, texts_of, training_sample

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_OLD_FORMATS = (
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
"""Other forms of the old vocabulary, which would contradict the extended one in the same folder."""
_GROWN_TOKENS = "grown-tokens"
"""Folder of the documents in the new tokens, until they are packed."""
WORTHWHILE_FRACTION = 0.02
"""Share of the domain's held-out tokens that an extension must save, else prepare warns."""

Beat = Callable[[], None]


@dataclass(frozen=True)
class Grown:
    """Holds the corpus in the new tokens, and what is reported of the extension."""

    spooled: list[SpooledSource]
    token_type: TokenType
    facts: TokenizerFacts
    warnings: tuple[str, ...]


def check_model(model: Path, first_id: int, source: str, beat: Beat = lambda: None) -> None:
    """Refuse a model that cannot be extended, before a corpus is read for it.

    Args:
        model: folder of the base model.
        first_id: of the first new token.
        source: of the model, for messages.
        beat: called during the check of the matrices.

    Raises:
        InputError: the tokenizer or the matrices cannot grow.
    """
    tokenizer_json = (model / "tokenizer.json").read_text(encoding="utf-8")
    check_extendable(tokenizer_json, source)
    _check_named_tokens(model, tokenizer_json, source)
    _run_grow(["check", str(model), str(first_id)], source, beat)


def grow(
    prepared: Path,
    extension: TokenizerExtensionConfig,
    corpus: Corpus,
    tokenizer: TokenizerDescription,
    source: str,
    beat: Beat,
) -> Grown:
    """Extend the tokenizer and the model, and tokenize the corpus again.

    Args:
        prepared: folder with the base model; gets the extended one.
        extension: how many tokens to add at most, and how frequent they must be.
        corpus: with the texts of its documents.
        tokenizer: of the base model.
        source: of the model, for messages.
        beat: called now and then.

    Raises:
        InputError: this tokenizer or model cannot be extended.
        StageOutOfMemoryError: memory ran out while the matrices were extended.
    """
    # 1. Learn on training text alone: held-out text must not shape the tokens that it is measured in.
    old_json = tokenizer.tokenizer_json
    grown = grow_tokenizer(old_json, lambda: _sample(corpus), extension, source=source, beat=beat)

    # 2. Check the written file on real text before anything is trained with it.
    old, new = plain_tokenizer(old_json), plain_tokenizer(grown.tokenizer_json)
    _check_on_held_out(old, new, corpus, grown, source)

    # 3. Write the model, and tokenize all documents again.
    write_grown_model(prepared / MODEL, prepared / EXTENDED_MODEL, grown, source=source, beat=beat)
    largest_id = max(new.get_vocab(with_added_tokens=True).values())
    # The new ids may be the first that 16 bits cannot hold.
    token_type: TokenType = "uint16" if largest_id < 1 << 16 else "uint32"
    tokens_folder = prepared / _GROWN_TOKENS
    tokens_folder.mkdir()
    spooled = [
        retokenized(
            spool,
            tokens_folder / f"{spool.name}.bin",
            new,
            begin_of_text_id=tokenizer.begin_of_text_id,
            end_of_text_id=tokenizer.end_of_text_id,
            token_type=token_type,
            beat=beat,
        )
        for spool in corpus.spooled
    ]
    facts = facts_of(new, corpus, len(grown.tokens), weights_digest(prepared / EXTENDED_MODEL, beat))
    return Grown(spooled, token_type, facts, warnings_of(facts, extension))


def write_grown_model(
    model: Path, target: Path, grown: GrownTokenizer, *, source: str, beat: Beat = lambda: None
) -> None:
    """Write the model's folder with the extended tokenizer and matrices.

    Raises:
        InputError: the matrices cannot be extended.
        StageOutOfMemoryError: memory ran out while they were extended.
    """
    target.mkdir(parents=True)
    for path in sorted(model.iterdir()):
        if path.is_dir():
            copy_folder(path, target / path.name)
        elif path.suffix != ".safetensors" and path.name not in (*_OLD_FORMATS, "tokenizer.json", FACTS):
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
    """Refuse a model whose other files name tokens that its tokenizer.json lacks.

    transformers gives those tokens the ids after the largest of tokenizer.json, which new tokens would take.

    Raises:
        InputError: with the first of them.
    """
    vocabulary = plain_tokenizer(tokenizer_json).get_vocab(with_added_tokens=True)
    ids = named_tokens(model, source)
    for text, token_id in sorted(ids.items(), key=lambda item: item[1]):
        if text not in vocabulary:
            raise InputError(
                f"{FIELD}: the tokenizer of {source} has a token that its tokenizer.json lacks ({text}, id "
                f"{token_id}), whose id an appended one would take; save the model with a tokenizer.json that has it, "
                "or remove the field"
            )


def _run_grow(arguments: list[str], source: str, beat: Beat) -> None:
    """Run `grow_model`, which needs torch, in a process of its own."""
    process = run_module("dapt_trainer.tokenization.grow_model", arguments, OFFLINE, beat)
    if process.is_out_of_memory:
        raise StageOutOfMemoryError(
            f"{FIELD}: memory ran out while the matrices of {source} were extended; give prepare more memory"
        )
    if process.returncode:
        raise InputError(f"{FIELD}: {source} cannot be extended: {process.last_error}; remove the field")


def facts_of(new: Tokenizer, corpus: Corpus, added: int, model_digest: str) -> TokenizerFacts:
    """Return the tokens a word of each side's held-out text, with the old tokenizer and with the new one.

    Args:
        new: the extended tokenizer.
        corpus: with the held-out text in the old tokens.
        added: number of new tokens.
        model_digest: of the weights of the extended model.
    """
    numbers: dict[str, float] = {}
    for side, choice in corpus.choices.items():
        documents = choice.documents
        words = max(1, sum(len(document.text.split()) for document in documents))
        before = sum(len(document.ids) for document in documents)
        after = sum(len(encoding.ids) for encoding in _encode(new, documents))
        numbers[f"{side}_tokens_per_word_before"] = before / words
        numbers[f"{side}_tokens_per_word_after"] = after / words
    return TokenizerFacts(added_tokens=added, model_digest=model_digest, **numbers)


def warnings_of(facts: TokenizerFacts, extension: TokenizerExtensionConfig) -> tuple[str, ...]:
    """Return a warning where the extension saves little."""
    if facts.added_tokens == 0:
        return (
            "The tokenizer got no new token: no two tokens inside a word occur together "
            f"{extension.minimum_frequency} times in the domain's training text; remove {FIELD}, or lower its "
            "minimumFrequency.",
        )
    saved = 1 - facts.domain_tokens_per_word_after / facts.domain_tokens_per_word_before
    if saved >= WORTHWHILE_FRACTION:
        return ()
    return (
        f"The {facts.added_tokens:,} new tokens save {saved:.1%} of the domain's held-out tokens: below "
        f"{WORTHWHILE_FRACTION:.0%} the larger matrices and the rows that must be learned cost more than that saves; "
        f"consider removing {FIELD}.",
    )


def _sample(corpus: Corpus) -> Iterator[str]:
    """Yield the domain's training text, or a share of it that is as large as the sample may be."""
    domain = [spool for spool in corpus.spooled if spool.side == "domain"]
    size = sum(texts_of(spool).size_bytes for spool in domain)
    keys, shingles = corpus.held_out_keys, corpus.held_out_shingles
    share = min(1.0, SAMPLE_BYTES / max(1, size))
    for spool in domain:
        yield from training_sample(spool, share=share, held_out_keys=keys, shingles=shingles)


def _check_on_held_out(
    old: Tokenizer, new: Tokenizer, corpus: Corpus, grown: GrownTokenizer, source: str
) -> None:
    """Check on the user's own text that the file that was written does what it must.

    Raises:
        InputError: a text without new tokens is tokenized differently, or a text is decoded differently.
    """
    new_ids = grown.constituents.keys()
    documents = corpus.held_out_documents
    for document, encoding in zip(documents, _encode(new, documents), strict=True):
        has_new_tokens = not new_ids.isdisjoint(encoding.ids)
        is_decoded_alike = new.decode(encoding.ids) == old.decode(document.ids)
        if not is_decoded_alike or (not has_new_tokens and encoding.ids != document.ids):
            raise InputError(
                f"{FIELD}: the tokenizer of {source} cannot be extended: appended merges would change text that "
                f"has none of the new tokens ({document.text[:40]!r}); remove the field"
            )


def _encode(tokenizer: Tokenizer, documents: Sequence[HeldOutDocument]) -> list[Encoding]:
    return list(tokenizer.encode_batch([document.text for document in documents], add_special_tokens=False))
