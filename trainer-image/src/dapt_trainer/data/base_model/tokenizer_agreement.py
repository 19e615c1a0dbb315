"""Compares the tokenizer that transformers makes of a model folder with tokenizer.json.

The corpus is tokenized by tokenizer.json itself, everything else by what `AutoTokenizer` makes of the folder: by the
class that tokenizer_config.json names, which builds its normalizer and its splitting itself and takes little more than
the vocabulary from the file (transformers 5: Qwen2, Llama, Gemma, GPT-2 and others). Where the two differ on a sample
of texts, tokenizer.json decides for both: it is what the model was trained with, and what earlier versions of
transformers read. The generic class takes it as it is, and `modeling/stored_models/model_folder.py` loads it where the
folder names it; `AutoTokenizer` does so only for some types of models.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dapt_contract.base import Contract
from dapt_contract.inputs.model_files import GENERIC_TOKENIZER
from dapt_trainer.data.base_model.files import FIELD, read_json
from dapt_trainer.data.chat.template_files import TOKEN_NAMES, read_templates
from dapt_trainer.data.input_problems import first_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_SETTINGS = "tokenizer_config.json"
_SHOWN_CHARACTERS = 40
_PIECES = 400
"""Entries of the vocabulary that the sample is made of: they meet merges that usual text does not."""
_TEXTS = (
    "The patient was seen at 10:45 in the morning, and the doctor asked for 2 scans of the heart.",
    "He said that it's fine, THEY'RE late, we'll go at 10 or 11 in 2024; don't wait for 1234567890.",
    "def read(path):\n    with open(path) as file:\n\t\treturn file.read()[::-1]  # comment\n",
    "x = {'a': 1_000, \"b\": [1.5e-3, 0xFF]} if y != z else None; print(f\"{x!r}\")",
    "Ünïcödé ñandú — “quotes” … naïve café, e\u0301 and é, ﬁ and fi, ½, ①, Ⅳ, ＡＢＣ",
    "Ελληνικά, русский текст, 中文文本, 日本語のテキスト, 한국어, العربية, हिन्दी, ไทย",
    "👩‍⚕️🩺 🙂🙂 🇩🇪, \u200bzero\u200d width \ufeff, \u00a0no break\u3000wide",
    "  two  spaces,\ttabs\t\tand\n\n\nlines\r\n   ",
    " a", "a ", "a  b", "  ", "\n", "\n a", "a\n\nb\n", "", ".a", "A", "ab1 2cd", "\u2028", "\0",
)  # fmt: skip


class TokenizerComparison(Contract):
    """Says how the tokenizer of `AutoTokenizer` differs from tokenizer.json."""

    class_name: str = ""
    difference: str = ""
    """The first difference, as a clause; empty where there is none."""
    is_settled_by_file: bool = False
    """Whether the generic class agrees with tokenizer.json."""
    is_class_kept: bool = False
    """Whether `AutoTokenizer` takes its own class even where the folder names the generic one."""


def compare_tokenizers(folder: Path, end_of_text: str, embedding_rows: int) -> TokenizerComparison:
    """Load the tokenizer of a folder as transformers does, and compare; needs transformers.

    Args:
        folder: of the model.
        end_of_text: token that stands between documents.
        embedding_rows: of the model; each token needs one.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    file.no_truncation()
    file.no_padding()
    named_tokens = _tokens_of_templates(folder) | {"eos_token": end_of_text}

    def difference_of(load: Callable[[], PreTrainedTokenizerBase]) -> tuple[str, str]:
        try:
            tokenizer = load()
        except Exception as error:  # each class fails in its own way
            return "", f"cannot be loaded ({type(error).__name__}: {first_line(error)})"
        return type(tokenizer).__name__, _difference(tokenizer, file, named_tokens, embedding_rows)

    options = {"trust_remote_code": False, "local_files_only": True}
    name, difference = difference_of(lambda: AutoTokenizer.from_pretrained(folder, **options))
    if not difference:
        return TokenizerComparison(class_name=name)
    _, left = difference_of(lambda: PreTrainedTokenizerFast.from_pretrained(folder, **options))
    with tempfile.TemporaryDirectory() as copy:
        for path in folder.iterdir():
            if path.suffix != ".safetensors":
                (Path(copy) / path.name).symlink_to(path.resolve())
        (Path(copy) / _SETTINGS).unlink(missing_ok=True)
        _write_generic_class(folder, Path(copy))
        _, left_by_auto = difference_of(lambda: AutoTokenizer.from_pretrained(copy, **options))
    return TokenizerComparison(
        class_name=name or str(read_json(folder / _SETTINGS, "").get("tokenizer_class")),
        difference=difference,
        is_settled_by_file=not left,
        is_class_kept=bool(left_by_auto),
    )


def settle_tokenizer(folder: Path, comparison: TokenizerComparison, source: str) -> tuple[str, str]:
    """Make all stages read tokenizer.json as it is where the class that the folder names does not.

    Returns:
        (what is wrong and cannot be settled, what was settled); empty texts where there is nothing to say.
    """
    if not comparison.difference:
        return "", ""
    if not comparison.is_settled_by_file:
        return (
            f"{FIELD}: {source}: the tokenizer that transformers makes of its files differs from tokenizer.json: "
            f"{comparison.class_name} {comparison.difference}; save the tokenizer again "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(...)) if that is the model's, or correct its files"
        ), ""
    _write_generic_class(folder, folder)
    kept = (
        f" AutoTokenizer of transformers 5 takes {comparison.class_name} all the same: load the published tokenizer "
        f"with {GENERIC_TOKENIZER}."
    )
    return "", (
        f"The base model's tokenizer.json is used as it is ({GENERIC_TOKENIZER}), and the published model says so: "
        f"{comparison.class_name}, which transformers chooses for it, {comparison.difference}."
        + (kept if comparison.is_class_kept else "")
    )


def _write_generic_class(origin: Path, target: Path) -> None:
    """Write the settings of a folder's tokenizer with the generic class."""
    settings = read_json(origin / _SETTINGS, "") | {"tokenizer_class": GENERIC_TOKENIZER}
    content = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (target / _SETTINGS).write_text(content, encoding="utf-8")


def _difference(
    tokenizer: PreTrainedTokenizerBase,
    file: Tokenizer,
    named_tokens: Mapping[str, str | None],
    embedding_rows: int,
) -> str:
    """Return how a tokenizer differs from tokenizer.json; empty where it does not."""
    for text in _sample(file):
        expected = file.encode(text, add_special_tokens=False).ids
        expected_whole = file.encode(text).ids
        try:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            whole = tokenizer(text)["input_ids"]
        except Exception as error:  # the tokenizers library raises plain Exception
            return f"fails at {_quoted(text)} ({first_line(error)})"
        if ids != expected:
            return f"makes {_counted(ids)} of {_quoted(text)} where tokenizer.json makes {_counted(expected)}"
        if whole != expected_whole:
            return f"puts other tokens around {_quoted(text)} than tokenizer.json does"
    for name, token in named_tokens.items():
        own = tokenizer.special_tokens_map.get(name)
        if own != token:
            return f"has the {name} {own!r} where the files have {token!r}"
    beyond = sorted(
        (number, token) for token, number in tokenizer.get_vocab().items() if number >= embedding_rows
    )
    if beyond:
        number, token = beyond[0]
        return f"adds the token {token!r} ({number}), beyond the {embedding_rows:,} rows of the embedding"
    return ""


def _tokens_of_templates(folder: Path) -> dict[str, str | None]:
    """Return the special tokens that the chat templates name, as the files have them; None for one they lack."""
    templates = read_templates(folder)
    return {
        name: templates.special_tokens.get(name)
        for name in TOKEN_NAMES
        if any(name in template for template in templates.templates.values())
    }


def _sample(file: Tokenizer) -> Iterator[str]:
    """Yield texts with the borders, scripts and white space that tokenizers treat in their own ways."""
    yield from _TEXTS
    added = [token.content for token in file.get_added_tokens_decoder().values()]
    for token in added[:32]:
        yield f"a{token}b"
        yield f"a {token} \n{token}{token}b "
    size = file.get_vocab_size(with_added_tokens=False)
    step = max(1, size // _PIECES)
    pieces = [file.decode([number]) for number in range(0, size, step)]
    yield "".join(pieces)
    yield " ".join(pieces)


def _counted(ids: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in ids[:6])
    return f"{len(ids)} tokens ({shown}{', ...' if len(ids) > 6 else ''})"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...")
