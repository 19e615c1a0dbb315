"""Models on the work volume: loaded from safetensors alone, adapters merged in order, named by a digest.

Nothing here reaches a network, and no code of a model's repository is ever run.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from dapt_contract.layout import MODEL
from dapt_contract.stages.common import LoraConfig, ModelReference
from dapt_trainer.errors import InputError

Precision = Literal["bf16", "fp32"]
_READ_BLOCK_BYTES = 4 * 1024 * 1024


def load_model(work: Path, reference: ModelReference, *, precision: Precision, device: str = "cpu") -> Any:
    """The referenced model in evaluation mode, with its adapters merged into its weights.

    Merging happens in fp32 whatever `precision` says: bf16 has 8 bits of mantissa, and a LoRA's change of a weight is
    often smaller than its last one.

    Args:
        work: root of the work volume.
        reference: weights, and the adapters to merge in this order.
        precision: of the returned weights.
        device: where they are put.

    Raises:
        InputError: a folder is missing, has no safetensors, or wants remote code.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # a pod's log is no terminal
    folder = work / reference.weights
    check_model_folder(folder)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    load_dtype = torch.float32 if reference.adapters else dtype
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=load_dtype, trust_remote_code=False, use_safetensors=True, local_files_only=True
    )
    for adapter in reference.adapters:
        model = _merged(model, work / adapter)
    return model.to(device=device, dtype=dtype).eval()


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


def _merged(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    if not (adapter / "adapter_model.safetensors").is_file():
        raise InputError(f"{adapter}: no adapter there (adapter_model.safetensors is missing)")
    return PeftModel.from_pretrained(model, adapter, is_trainable=False).merge_and_unload()


def with_lora(model: Any, lora: LoraConfig, *, seed: int) -> Any:
    """The model with fresh low-rank adapters as its only trainable parameters; equal seeds give equal adapters."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model
    from transformers import set_seed

    set_seed(seed)
    targets = (
        lora.targets if lora.targets == "all-linear" else [name.strip() for name in lora.targets.split(",")]
    )
    settings = PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, settings)


def load_tokenizer(work: Path, weights: str = MODEL) -> Any:
    """The tokenizer that lies with the weights (default: the base model's)."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(work / weights, trust_remote_code=False, local_files_only=True)


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def weights_digest(folder: Path) -> str:
    """Hexadecimal SHA-256 over names and digests of a folder's safetensors files, in the order of their names.

    Raises:
        InputError: the folder has none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no *.safetensors file to name the model by")
    lines = "".join(f"{path.name} {sha256_of_file(path)}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def reference_digest(work: Path, reference: ModelReference) -> str:
    """Hexadecimal SHA-256 that names a whole reference: the weights' digest, and those of its adapters in order.

    A reference without adapters has the digest of its weights.
    """
    base = weights_digest(work / reference.weights)
    if not reference.adapters:
        return base
    parts = [base, *(weights_digest(work / adapter) for adapter in reference.adapters)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
