"""Checks model folders on the work volume and loads their tokenizers.

Weights are read from safetensors alone; nothing reaches a network, and no code of a model's repository is ever run.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoTokenizer

from dapt_contract.layout import MODEL
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.protocols import Tokenizer


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
    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
        work / weights, trust_remote_code=False, local_files_only=True
    )
    return tokenizer
