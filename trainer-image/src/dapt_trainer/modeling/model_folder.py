"""Models on the work volume: loaded from safetensors alone, named by a digest.

Nothing here reaches a network, and no code of a model's repository is ever run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from dapt_contract.layout import MODEL
from dapt_trainer.errors import InputError

Precision = Literal["bf16", "fp32"]


def check_model_folder(folder: Path) -> None:
    """Refuse what cannot, or must not, be loaded.

    Raises:
        InputError: see `load_model`.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise InputError(f"{folder}: no model there (config.json is missing); run prepare again")
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: no *.safetensors file; only safetensors weights are read")
    if json.loads(config_file.read_text()).get("auto_map"):
        raise InputError(
            f"{config_file}: `auto_map` asks for code from the model's repository, which dapt never runs; "
            "use a model of an architecture that transformers knows"
        )


def load_tokenizer(work: Path, weights: str = MODEL) -> Any:
    """The tokenizer that lies with the weights (default: the base model's)."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(work / weights, trust_remote_code=False, local_files_only=True)
