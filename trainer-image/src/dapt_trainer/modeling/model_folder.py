"""Checks model folders on the work volume and loads their tokenizers.

Weights are read from safetensors alone; nothing reaches a network, and no code of a model's repository is ever run.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dapt_contract.inputs.model_files import GENERIC_TOKENIZER
from dapt_contract.layout import MODEL
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.protocols import Tokenizer

_GENERIC_CLASSES = (GENERIC_TOKENIZER, "TokenizersBackend")
"""Names of the class that reads tokenizer.json as it is, by earlier versions of transformers and by 5."""


def check_model_folder(folder: Path) -> None:
    """Refuse a folder that cannot be loaded, or must not be.

    Raises:
        InputError: it holds no model, no safetensors, or asks for code from the model's repository.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise InputError(f"{folder}: no model there (config.json is missing); run prepare again")
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: no *.safetensors file; only safetensors weights are read")
    if json.loads(config_file.read_text()).get("auto_map"):
        raise InputError(
            f"{config_file}: `auto_map` asks for code from the model's repository, which dapt never runs; "
            "use a model of an architecture that transformers has"
        )


def load_tokenizer(work: Path, weights: str = MODEL) -> Tokenizer:
    """Return the tokenizer in a folder of weights, by default the base model's."""
    folder = work / weights
    settings_file = folder / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8")) if settings_file.is_file() else {}
    # Where a folder names the generic class, tokenizer.json decides: prepare has compared them, and AutoTokenizer would
    # take the class of the model's type for some types.
    is_generic = settings.get("tokenizer_class") in _GENERIC_CLASSES and (folder / "tokenizer.json").is_file()
    loader = PreTrainedTokenizerFast if is_generic else AutoTokenizer
    tokenizer: Tokenizer = loader.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return tokenizer
