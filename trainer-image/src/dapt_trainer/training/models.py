"""Models on the work volume: loaded from safetensors alone, named by a digest.

Nothing here reaches a network, and no code of a model's repository is ever run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dapt_contract.layout import MODEL
from dapt_contract.stages.common import LoraConfig, ModelReference
from dapt_trainer.errors import InputError

Precision = Literal["bf16", "fp32"]
_READ_BLOCK_BYTES = 4 * 1024 * 1024


def load_model(work: Path, reference: ModelReference, *, precision: Precision, device: str = "cpu") -> Any:
    """The referenced model in evaluation mode; `training/recipes.py` follows the reference.

    Args:
        work: root of the work volume.
        reference: the recipe.
        precision: of the returned weights.
        device: where they are put.

    Raises:
        InputError: a folder is missing, has no safetensors, or wants remote code; or parts that do not fit together.
    """
    from dapt_trainer.training.recipes import DTYPES, follow

    return follow(work, reference, dtype=DTYPES[precision]).to(device=device).eval()


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


def with_lora(model: Any, lora: LoraConfig, *, seed: int, new_token_ids: Sequence[int] = ()) -> Any:
    """The model with fresh low-rank adapters as its only trainable parameters; equal seeds give equal adapters.

    Args:
        model: to train.
        lora: of the adapters.
        seed: of their first values.
        new_token_ids: of a grown tokenizer; their rows of embedding and head are trained too, those of the old tokens
            stay the base model's.

    Raises:
        InputError: new rows of a model whose weights are spread over the ranks.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model
    from transformers import set_seed

    from dapt_trainer.training.sharding import is_sharded

    if new_token_ids and is_sharded(model):
        raise InputError(
            "spec.pretraining.distribution.zeroStage: with 3, adapters cannot train the rows of new tokens "
            "(spec.model.tokenizer.extend); write 2, with offload: optimizer where memory is short, or train all "
            "weights"
        )
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
        trainable_token_indices=new_rows(model, new_token_ids),
    )
    return get_peft_model(model, settings)


def new_rows(model: Any, ids: Sequence[int]) -> dict[str, list[int]] | None:
    """Ids of new tokens by the name of each matrix that holds their rows; a tied head follows the embedding."""
    if not ids:
        return None
    tied = bool(model.config.tie_word_embeddings)
    matrices = [model.get_input_embeddings(), *(() if tied else (model.get_output_embeddings(),))]
    names = [name for matrix in matrices for name, module in model.named_modules() if module is matrix]
    return {name: list(ids) for name in names}


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
    return digest_of_weights({path.name: sha256_of_file(path) for path in files})


def is_weights(path: str) -> bool:
    """Whether a file of a model folder, named relative to it, is one that `weights_digest` covers."""
    return path.endswith(".safetensors") and "/" not in path


def digest_of_weights(sha256_by_name: Mapping[str, str]) -> str:
    """`weights_digest` of files that were hashed already."""
    lines = "".join(f"{name} {sha256_by_name[name]}\n" for name in sorted(sha256_by_name))
    return hashlib.sha256(lines.encode()).hexdigest()


def reference_digest(work: Path, reference: ModelReference, known: dict[str, str] | None = None) -> str:
    """Hexadecimal SHA-256 that names a whole recipe: its parts' digests, their order and shares.

    A plain folder has the digest of its weights; one with adapters that of the weights' and adapters' digests in order.

    Args:
        work: root of the work volume.
        reference: the recipe.
        known: digests by folder, filled and read: several recipes of the same parts hash them once.

    Raises:
        InputError: a part has no safetensors file.
    """
    cache = {} if known is None else known

    def of_folder(name: str) -> str:
        if name not in cache:
            cache[name] = weights_digest(work / name)
        return cache[name]

    def of_chain(weights: str, adapters: tuple[str, ...]) -> str:
        parts = [of_folder(name) for name in (weights, *adapters)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest() if adapters else parts[0]

    if not reference.averaged_with and reference.interpolation == 1.0:
        return of_chain(reference.weights, (*reference.adapters, *reference.tuned))
    lines = [f"mean {of_chain(reference.weights, reference.adapters)}"]
    lines += [f"mean {of_chain(member.weights, member.adapters)}" for member in reference.averaged_with]
    if reference.interpolation != 1.0:
        lines.append(f"share {reference.interpolation!r} from {of_folder(reference.origin)}")
    lines += [f"tuned {of_folder(adapter)}" for adapter in reference.tuned]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
