"""Compares the tensors in a model's files with those of its architecture, and reads nothing but headers.

    python -m dapt_trainer.data.base_model.complete FOLDER END_OF_TEXT

prints a `Comparison` as JSON, with what `tokenizer_agreement` finds. It runs in a process of its own, because it needs
torch and transformers, which prepare never imports: transformers loads the model onto the meta device, so it renames
and converts names exactly as it will when the model is loaded to be trained.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dapt_contract.base import Contract
from dapt_trainer.data.base_model.files import FIELD, read_json
from dapt_trainer.data.base_model.tokenizer_agreement import TokenizerComparison, compare_tokenizers
from dapt_trainer.data.base_model.weights import some
from dapt_trainer.data.run_module import OFFLINE, Limits, run_module
from dapt_trainer.errors import InputError, StageOutOfMemoryError

if TYPE_CHECKING:
    from torch import Tensor


_OLD_BUFFERS = re.compile(
    r"\.(attn|attention|self_attn)\.(bias|masked_bias)$|\.inv_freq$|(^|\.)position_ids$"
)
"""Constants that earlier versions of transformers stored: masks, frequencies, positions."""
_CPU_SECONDS = 1800
"""A model of a thousand billion parameters takes two minutes."""


class Comparison(Contract):
    """Says how a model's files differ from its architecture; names are the architecture's."""

    architecture: str
    named_architecture: str = ""
    """As config.json has it."""
    embedding_rows: int
    missing: tuple[str, ...] = ()
    """Tensors that no file holds, which a load would fill with random numbers."""
    unexpected: tuple[str, ...] = ()
    """Stored tensors that the architecture has not, which a load would drop."""
    mismatched: tuple[str, ...] = ()
    """`NAME (stored AxB, expected CxD)`."""
    untied: tuple[str, ...] = ()
    """Tensors that config.json ties to the embedding and that the files hold with other values."""
    tokenizer: TokenizerComparison = TokenizerComparison()


def compare(folder: Path, end_of_text: str, source: str, beat: Callable[[], None]) -> Comparison:
    """Compare in a process of its own, which takes seconds.

    Raises:
        InputError: transformers cannot build the model.
        StageOutOfMemoryError: memory ran out.
    """
    module = "dapt_trainer.data.base_model.complete"
    process = run_module(module, [str(folder), end_of_text], OFFLINE, beat, Limits(_CPU_SECONDS))
    if process.is_out_of_memory:
        raise StageOutOfMemoryError(
            f"{FIELD}: {source}: memory ran out while its tensors were compared; give prepare more memory"
        )
    if process.is_out_of_time:
        raise InputError(
            f"{FIELD}: {source}: building it without its weights takes more than {_CPU_SECONDS:,} seconds; correct "
            "config.json"
        )
    if process.returncode:
        raise InputError(
            f"{FIELD}: {source}: transformers cannot build this model ({process.last_error}); use a model of an "
            "architecture that this version of transformers knows"
        )
    return Comparison.model_validate_json(process.output.strip().splitlines()[-1])


def completeness_problems(comparison: Comparison, source: str) -> list[str]:
    """Return a sentence for each kind of difference between files and architecture."""
    return [f"{FIELD}: {source}: {sentence}" for sentence in _sentences(comparison)]


def _sentences(comparison: Comparison) -> list[str]:
    """Return one sentence for each kind of fault."""
    name, sentences = comparison.architecture, []
    named = comparison.named_architecture
    if named and named.casefold() != name.casefold():
        sentences.append(
            f"config.json names the architecture {named}, but its model_type loads {name}, so programs would compute "
            "different things from it; correct architectures or model_type"
        )
    if comparison.missing:
        sentences.append(
            f"no file holds {some(comparison.missing, 'tensor', 'tensors')} of {name}, which would start from random "
            "numbers; use a complete checkpoint, or correct config.json (tie_word_embeddings, num_hidden_layers)"
        )
    if comparison.unexpected:
        sentences.append(
            f"its files hold {some(comparison.unexpected, 'tensor', 'tensors')} that {name} has not, which would be "
            "dropped; correct config.json, or convert the checkpoint to this architecture"
        )
    if comparison.mismatched:
        sentences.append(
            f"its files hold {some(comparison.mismatched, 'tensor', 'tensors')} in other shapes than {name} has by "
            "config.json; correct config.json, or use the checkpoint that belongs to it"
        )
    if comparison.untied:
        sentences.append(
            f"config.json ties {some(comparison.untied, 'tensor', 'tensors')} to the embedding, but its files hold "
            "other values; write tie_word_embeddings: false into config.json if these are meant"
        )
    return sentences


def comparison_of(folder: Path) -> Comparison:
    """Load a model onto the meta device, and compare."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        device_map="meta",
        trust_remote_code=False,
        attn_implementation=None,
        use_safetensors=True,
        weights_only=True,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    mismatched = sorted(info["mismatched_keys"])
    named = read_json(folder / "config.json", "").get("architectures")
    return Comparison(
        architecture=type(model).__name__,
        named_architecture=str(named[0]) if isinstance(named, list) and named else "",
        embedding_rows=int(model.get_input_embeddings().weight.shape[0]),
        missing=tuple(sorted(info["missing_keys"])),
        unexpected=tuple(sorted(name for name in info["unexpected_keys"] if not _OLD_BUFFERS.search(name))),
        mismatched=tuple(
            f"{name} (stored {_by(stored)}, expected {_by(shape)})" for name, stored, shape in mismatched
        ),
        untied=tuple(_untied(folder, dict(getattr(model, "all_tied_weights_keys", {})))),
    )


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape) or "one number"


def _untied(folder: Path, tied: dict[str, str]) -> list[str]:
    """Return tied tensors that the files hold twice, with other values; transformers would not tie them."""
    import torch
    from safetensors import safe_open

    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            files |= dict.fromkeys(file.keys(), path)

    def tensor(name: str) -> Tensor:
        with safe_open(files[name], "pt") as file:
            found: Tensor = file.get_tensor(name)
            return found

    both = [(target, origin) for target, origin in tied.items() if target in files and origin in files]
    return sorted(target for target, origin in both if not torch.equal(tensor(target), tensor(origin)))


def main(arguments: list[str]) -> None:
    """Print the comparison of the folder and the end-of-text token that the arguments name."""
    warnings.simplefilter("ignore")
    folder, end_of_text = Path(arguments[0]), arguments[1]
    comparison = comparison_of(folder)
    tokenizer = compare_tokenizers(folder, end_of_text, comparison.embedding_rows)
    print(comparison.model_copy(update={"tokenizer": tokenizer}).model_dump_json())


if __name__ == "__main__":
    main(sys.argv[1:])
