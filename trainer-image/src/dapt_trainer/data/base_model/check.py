"""Checks that an imported base model is what its configuration says, before anything is done with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dapt_trainer.data.base_model.complete import compare, completeness_problems
from dapt_trainer.data.base_model.facts import TokenizerDescription, begin_of_text_id, named_architecture
from dapt_trainer.data.base_model.files import FIELD, read_json
from dapt_trainer.data.base_model.sizes import size_problems
from dapt_trainer.data.base_model.tokenizer_agreement import settle_tokenizer
from dapt_trainer.data.base_model.weights import check_vocabulary, weights_headers, weights_problems
from dapt_trainer.data.plain_tokenizer import plain_tokenizer
from dapt_trainer.errors import InputError

_MAX_ID_DIGITS = 12


def check_base_model(
    folder: Path, tokenizer: TokenizerDescription, source: str, beat: Callable[[], None]
) -> list[str]:
    """Refuse a model that would be another one than its files say, or none.

    Args:
        folder: that the model was imported to.
        tokenizer: as tokenizer.json describes it.
        source: URI of the model, for messages.
        beat: called now and then.

    Returns:
        A sentence for each thing that was settled instead of refused.

    Raises:
        InputError: a sentence for each kind of fault, with the first tensors or tokens that have it.
        StageOutOfMemoryError: memory ran out.
    """
    # 1. What cannot be loaded at all has no architecture that it could be compared with.
    problems = weights_problems(folder, source, beat)
    # A size that no file bears out would cost memory at the next step.
    config = read_json(folder / "config.json", source)
    impossible = size_problems(config, weights_headers(folder, source).values())
    if impossible:
        raise InputError(*problems, *(f"{FIELD}: {source}: {problem}" for problem in impossible))
    named_architecture(config, source)
    # 2. Names and shapes, as transformers sees them.
    comparison = compare(folder, tokenizer.end_of_text, source, beat)
    problems += completeness_problems(comparison, source)
    # 3. Every token needs a row, and all stages need the same tokens.
    problem = settled = ""
    try:
        ids = token_ids(folder, tokenizer.tokenizer_json, source)
        check_vocabulary(comparison.embedding_rows, ids, source)
        problem, settled = settle_tokenizer(folder, comparison.tokenizer, source)
    except InputError as error:
        problems += error.problems
    problems += [sentence for sentence in (problem, begin_of_text_problem(tokenizer, source)) if sentence]
    if problems:
        raise InputError(*problems)
    return [settled] if settled else []


def begin_of_text_problem(tokenizer: TokenizerDescription, source: str) -> str:
    """Return what is wrong where the files disagree about the token that begins every text; empty where they agree.

    Versions of transformers go by one file or by the other.
    """
    if tokenizer.begin_of_text_id is not None:
        return ""
    file = plain_tokenizer(tokenizer.tokenizer_json)
    number = begin_of_text_id(file)
    if number is None:
        return ""
    return (
        f"{FIELD}: {source}: tokenizer_config.json has add_bos_token: false, but tokenizer.json puts "
        f"{file.id_to_token(number)!r} before every text; correct the one that is wrong for the model"
    )


def token_ids(folder: Path, tokenizer_json: str, source: str) -> dict[str, int]:
    """Return the ids of all tokens by their texts, also of those that only other files than tokenizer.json name."""
    ids: dict[str, int] = plain_tokenizer(tokenizer_json).get_vocab(with_added_tokens=True)
    return ids | named_tokens(folder, source)


def named_tokens(folder: Path, source: str) -> dict[str, int]:
    """Return the tokens of tokenizer_config.json and added_tokens.json, which transformers adds where they lack."""
    ids: dict[str, int] = {}
    decoder = read_json(folder / "tokenizer_config.json", source).get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        text = token.get("content") if isinstance(token, dict) else None
        if not isinstance(text, str) or not number.isdecimal() or len(number) > _MAX_ID_DIGITS:
            raise InputError(
                f"{FIELD}: {source}: added_tokens_decoder of tokenizer_config.json has the entry {number[:40]!r}, "
                "which is no id with the content of a token; correct it, or save the tokenizer again"
            )
        ids[text] = int(number)
    added = read_json(folder / "added_tokens.json", source)
    for token_text, token_id in added.items():
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
            raise InputError(
                f"{FIELD}: {source}: added_tokens.json gives {token_text[:40]!r} no id; correct it, or save the "
                "tokenizer again"
            )
        ids[token_text] = token_id
    return ids
