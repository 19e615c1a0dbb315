"""Tries a base model's tokenizer on texts that cost a bad one time or memory, before prepare itself loads it.

    python -m dapt_trainer.data.base_model.tokenizer_trial FILE

prints what is wrong with the file, or nothing. It runs in a process of its own, which the kernel ends at a limit: a
tokenizer is a program (patterns, replacements, templates, padding) that comes from anybody, and no handler interrupts
the library while it works. The texts are long runs and mixtures, on which patterns that look back and forth take
exponential time; texts like these are in every large corpus.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dapt_contract.inputs.json_files import BadJsonError, read_json_object
from dapt_trainer.data.base_model.files import FIELD, MAX_VOCABULARY_BYTES
from dapt_trainer.data.chat.render_pool import LimitExceededError, RenderPool
from dapt_trainer.data.chat.rendering import Conversation
from dapt_trainer.data.chat.template_files import PLAIN_TEMPLATE, read_templates
from dapt_trainer.data.input_problems import first_line
from dapt_trainer.data.run_module import Beat, Limits, run_module
from dapt_trainer.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_ADDRESS_BYTES = 6 << 30
LIMITS = Limits(cpu_seconds=60, address_bytes=_ADDRESS_BYTES)
"""The largest published tokenizers take 3 seconds and 1 GiB."""
MAX_ADDED_TOKENS = 100_000
"""Published tokenizers have up to 7,000."""
TEMPLATE_CPU_SECONDS = 10
_MAX_TOKENS_A_BYTE, _SPARE_TOKENS = 4, 64
"""A token stands for one byte at least; some tokenizers put others around each text."""
_MAX_CHARACTERS_A_CHARACTER = 4
_DECODED_AT_ONCE = 1_000
_RUN = 4_000
_TEXTS = (
    *(character * _RUN for character in "a 0.\nA-é中"),
    *(mixture * (_RUN // len(mixture)) for mixture in ("a ", "ab1 ", "a.b,", "A0 ", " \n", "'s", "中 a")),
    "a" * _RUN + "!", " " * _RUN + "a", "0" * _RUN + "x", "\n" * _RUN + "0",
)  # fmt: skip


def try_tokenizer(folder: Path, source: str, beat: Beat) -> None:
    """Refuse a tokenizer or a chat template that cannot be used within limits of time and memory.

    Args:
        folder: that the model was imported to.
        source: URI of the model, for messages.
        beat: called while the trial runs.

    Raises:
        InputError: says what is wrong.
    """
    module = "dapt_trainer.data.base_model.tokenizer_trial"
    file = folder / "tokenizer.json"
    process = run_module(
        module, [str(file)], {"TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"}, beat, LIMITS
    )
    problem = process.output.strip()
    if process.is_out_of_time:
        problem = f"takes more than {LIMITS.cpu_seconds} seconds for a few texts; use a model with another tokenizer"
    elif process.returncode:
        problem = (
            f"takes more than {_ADDRESS_BYTES >> 30} GiB of memory, or makes the library fail "
            f"({process.last_error}); use a model with another tokenizer"
        )
    if problem:
        raise InputError(f"{FIELD}: {source}: tokenizer.json {problem}")
    if reason := _problem_of_template(folder, beat):
        raise InputError(f"{FIELD}: {source}: its chat template cannot be used: {reason}")


def _problem_of_template(folder: Path, beat: Beat) -> str:
    """Return which limit the model's chat template exceeds at one short question; empty where it does not.

    That it rejects the question is no fault: what it is made for is seen when conversations are rendered.
    """
    templates = read_templates(folder)
    if templates.templates == {"default": PLAIN_TEMPLATE}:
        return ""
    question = Conversation([{"role": "user", "content": "Which one?"}], ())
    with RenderPool(templates, processes=1, max_cpu_seconds=TEMPLATE_CPU_SECONDS, beat=beat) as pool:
        (result,) = pool.rendered([question])
    return str(result) if isinstance(result, LimitExceededError) else ""


def problem_of(file: Path) -> str:
    """Return what is wrong with a tokenizer.json, as the end of a sentence; empty where it can be used."""
    try:
        content = read_json_object(file, MAX_VOCABULARY_BYTES)
    except (FileNotFoundError, BadJsonError) as error:
        return f"cannot be read ({error}); download it again"
    added = content.get("added_tokens")
    if isinstance(added, list) and len(added) > MAX_ADDED_TOKENS:
        return f"has {len(added):,} added tokens, and at most {MAX_ADDED_TOKENS:,} are read; remove what is not used"
    model = content.get("model")
    if isinstance(model, dict) and model.get("dropout"):
        return (
            f"drops merges at random (dropout {str(model['dropout'])[:20]}), so a text has other tokens each time; set"
            " model.dropout to null"
        )
    try:
        return _problem_of_texts(json.dumps(content))
    except MemoryError:
        raise
    except BaseException as error:  # the library panics with a class that is no Exception
        return f"cannot be read ({first_line(error)}); download it again"


def _problem_of_texts(content: str) -> str:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(content)
    # They are never used: a length of a thousand million would fill the memory.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for text in ("a", *_TEXTS):
        shown = repr(text if len(text) < 20 else f"{text[:10]}...{text[-5:]}")
        try:
            num_tokens = len(tokenizer.encode(text).ids)
        except MemoryError:
            raise
        except BaseException as error:  # as above
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            return f"fails at the text {shown} ({first_line(error)}); use a model with another tokenizer"
        num_bytes = len(text.encode())
        if num_tokens > _MAX_TOKENS_A_BYTE * num_bytes + _SPARE_TOKENS:
            return (
                f"makes {num_tokens:,} tokens of the {num_bytes:,} bytes of {shown}; use a model with another "
                "tokenizer"
            )
    return _problem_of_decoding(tokenizer)


def _problem_of_decoding(tokenizer: Tokenizer) -> str:
    """Return what is wrong with the text of a token: a decoder has patterns and replacements too."""
    numbers = sorted(tokenizer.get_vocab(with_added_tokens=True).values())
    for start in range(0, len(numbers), _DECODED_AT_ONCE):
        part = numbers[start : start + _DECODED_AT_ONCE]
        try:
            texts = tokenizer.decode_batch([[number] for number in part], skip_special_tokens=False)
        except MemoryError:
            raise
        except BaseException as error:  # as above
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            return f"fails at the text of a token ({first_line(error)}); use a model with another tokenizer"
        for number, text in zip(part, texts, strict=True):
            token = tokenizer.id_to_token(number) or ""
            if len(text) > _MAX_CHARACTERS_A_CHARACTER * len(token) + _SPARE_TOKENS:
                return (
                    f"makes {len(text):,} characters of the token {token[:20]!a}; use a model with another "
                    "tokenizer"
                )
    return ""


if __name__ == "__main__":
    print(problem_of(Path(sys.argv[1])))
