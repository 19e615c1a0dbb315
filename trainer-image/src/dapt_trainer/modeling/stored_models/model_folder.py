"""Checks model folders on the work volume and loads their tokenizers.

Weights are read from safetensors alone; nothing reaches a network, and no code of a model's repository is ever run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dapt_contract.inputs.json_files import read_json_object
from dapt_contract.inputs.model_files import GENERIC_TOKENIZER, read_complete_header
from dapt_contract.layout import MODEL
from dapt_trainer.digests import SIDE_FILES
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.protocols import Tokenizer
from dapt_trainer.modeling.stored_models.code_settings import code_problems
from dapt_trainer.modeling.stored_models.weight_files import BadWeightsError, leading_out, weight_files

_ADAPTER = "adapter_config.json"

_GENERIC_CLASSES = (GENERIC_TOKENIZER, "TokenizersBackend")
"""Names of the class that reads tokenizer.json as it is, by earlier versions of transformers and by 5."""


def check_model_folder(folder: Path) -> None:
    """Refuse a folder that cannot be loaded, or must not be: whoever can write to the volume may have changed it.

    Raises:
        InputError: it holds no model, no safetensors, settings that name code, or an index or a link that leads out of
            the folder; with a sentence for each.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no model there (config.json is missing); run prepare again")
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: no *.safetensors file; only safetensors weights are read")
    problems = code_problems(folder)
    if (folder / _ADAPTER).exists():
        # transformers would load the adapter, or the model that it names, instead of the folder's own weights.
        problems.append(
            f"holds a model and {_ADAPTER}; remove that file, or merge the adapter into the model"
        )
    try:
        names = weight_files(folder)
        problems += _links(folder, names) or _damaged(folder, names)
    except BadWeightsError as error:
        problems.append(str(error))
    if problems:
        raise InputError(*(f"{folder}: {problem}" for problem in problems))


def check_adapter_folder(folder: Path) -> None:
    """Refuse an adapter that would have code or other files loaded.

    Raises:
        InputError: it has settings that name code, or a link that leads out of the folder; a sentence for each.
    """
    problems = code_problems(folder) + _links(folder, ("adapter_model.safetensors",))
    if problems:
        raise InputError(*(f"{folder}: {problem}" for problem in problems))


def _damaged(folder: Path, weights: Iterable[str]) -> list[str]:
    """Return a sentence for each file of weights whose header does not fit it."""
    problems = []
    for name in weights:
        try:
            read_complete_header(folder / name)
        except (OSError, ValueError) as error:
            problems.append(f"{name} is truncated or damaged ({error}); restore it, or run prepare again")
    return problems


def _links(folder: Path, weights: Iterable[str]) -> list[str]:
    """Return the sentence for the first file that a link takes out of the folder; an empty list for none."""
    small = [name for name in (*SIDE_FILES, _ADAPTER) if (folder / name).is_file()]
    found = leading_out(folder, [*weights, *small])
    return [f"{found[0]} leads to {found[1]}, outside of the folder; run prepare again"] if found else []


def load_tokenizer(work: Path, weights: str = MODEL) -> Tokenizer:
    """Return the tokenizer in a folder of weights, by default the base model's.

    Raises:
        InputError: its settings name code.
    """
    folder = work / weights
    if problems := code_problems(folder):
        raise InputError(*(f"{folder}: {problem}" for problem in problems))
    settings_file = folder / "tokenizer_config.json"
    settings = read_json_object(settings_file) if settings_file.is_file() else {}
    # Where a folder names the generic class, tokenizer.json decides: prepare has compared them, and AutoTokenizer would
    # take the class of the model's type for some types.
    is_generic = settings.get("tokenizer_class") in _GENERIC_CLASSES and (folder / "tokenizer.json").is_file()
    loader = PreTrainedTokenizerFast if is_generic else AutoTokenizer
    tokenizer: Tokenizer = loader.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return tokenizer
