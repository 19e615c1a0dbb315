"""Converts GGUF files, and tokenizers without tokenizer.json, to the form that the stages read.

    python -m dapt_trainer.data.base_model.convert gguf|tokenizer ORIGIN FOLDER

It runs in a process of its own, because it imports torch and transformers.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the model and tokenizer of one GGUF file as an HF folder, dequantized to bfloat16.

    The weights of the folder are plain, so the configuration must not say that they are quantized.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, trust_remote_code=False, local_files_only=True
    )
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.bfloat16,
        trust_remote_code=False,
        local_files_only=True,
        attn_implementation=None,
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def convert_tokenizer(origin: Path, folder: Path) -> None:
    """Write the tokenizer of a folder that has no tokenizer.json in the fast form."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        origin, trust_remote_code=False, local_files_only=True, use_fast=True
    )
    tokenizer.save_pretrained(folder)
    if not (folder / "tokenizer.json").is_file():
        raise SystemExit("no fast tokenizer can be made of it")


def main(arguments: list[str]) -> None:
    """Run the conversion that the arguments name: gguf or tokenizer, origin, folder."""
    conversion, origin, folder = arguments
    # The caller shows the last line of standard error as the reason of a failure.
    warnings.simplefilter("ignore")
    {"gguf": convert_gguf, "tokenizer": convert_tokenizer}[conversion](Path(origin), Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
