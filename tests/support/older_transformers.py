"""Reads published models with the oldest transformers that they must load in, in a process of its own.

`make torch-tests` installs it into build/older-transformers; everything else, torch included, is shared with .venv.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "older-transformers"
TEXT = "ab c <|end|> d"
IDS = [7 * number % 250 for number in range(1, 61)]
"""A text as token ids that every toy vocabulary has."""
_READ = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
found = {"version": transformers.__version__}
for folder in sys.argv[3:]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.tensor([json.loads(sys.argv[1])])).logits[0].float()
    chat = [{"role": "user", "content": "a b"}]
    found[folder] = {
        "first_choices": logits.argmax(-1).tolist(),
        "largest_logit": float(logits.abs().max()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "use_cache": model.config.use_cache,
        "tokens": tokenizer(sys.argv[2])["input_ids"],
        "eos_token": tokenizer.eos_token,
        "special_tokens": sorted(tokenizer.all_special_tokens),
        "end_token_ids": model.generation_config.eos_token_id,
        "chat": tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        if tokenizer.chat_template else None,
    }
print("FOUND " + json.dumps(found))
"""


@dataclass(frozen=True)
class ReadModel:
    """Says what a version of transformers makes of a model folder."""

    first_choices: list[int]
    """Most probable next token at each position of `IDS`."""
    largest_logit: float
    dtype: str
    use_cache: bool
    tokens: list[int]
    """Of `TEXT`."""
    eos_token: str
    special_tokens: list[str]
    end_token_ids: int | list[int] | None
    chat: str | None
    """A rendered conversation; None without a template."""


def read_models(folders: list[Path], *, older: bool) -> tuple[str, dict[Path, ReadModel]]:
    """Return the version of transformers, and what it makes of each folder.

    Args:
        folders: of models.
        older: whether the oldest supported version reads them, and not the one that trains.
    """
    environment = dict(os.environ)
    if older:
        stamp = FOLDER / ".installed"
        if not stamp.is_file():
            subprocess.run(["make", str(stamp.relative_to(ROOT))], cwd=ROOT, check=True)
        environment["PYTHONPATH"] = str(FOLDER)
    arguments = [json.dumps(IDS), TEXT, *map(str, folders)]
    done = subprocess.run(
        [sys.executable, "-c", _READ, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stderr
    found = json.loads(lines[-1].removeprefix("FOUND "))
    return found["version"], {folder: ReadModel(**found[str(folder)]) for folder in folders}
