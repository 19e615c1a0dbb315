"""The bed's files and the base model: made once, kept below the cache folder under digests, resumed when cut off."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dapt_contract.measure import Side
from science import bed, corpus
from science.bed import BedSettings, SideData
from science.digests import code_digest, digest_of
from science.model import BATCH_SEQUENCES, Rate, Shape, Training, make_model

BED_CODE = (
    "science.corpus",
    "science.bed",
    "dapt_trainer.data.packing.best_fit",
    "dapt_trainer.data.choose_held_out",
    "dapt_trainer.data.dedup.held_out_neighbours",
    "dapt_trainer.data.text",
)
TRAINING_CODE = ("science.model",)
SAVE_EVERY_STEPS = 200
_NOTE = "note.txt"
SIDES = ("general", "strong", "weak")


@dataclass(frozen=True)
class BaseSettings:
    """How the base is pretrained on the general side."""

    bed: BedSettings = field(default_factory=BedSettings)
    shape: Shape = field(default_factory=Shape)
    rate: Rate = field(default_factory=lambda: Rate(peak=2e-3))
    steps: int = 6000
    """Of 2,048 tokens: 12.3M tokens."""
    seed: int = 0


@dataclass(frozen=True)
class Bed:
    """Everything that an adaptation starts from."""

    digests: dict[str, str]
    """By side, of packed rows and held-out text: what they are, whatever made them."""
    sides: dict[str, SideData]
    """`general`, and the domains `strong` and `weak`."""
    tokenizer: Any


Texts = dict[str, list[str]]


def own_texts() -> Texts:
    """Of this interpreter's library, by side."""
    return {"general": corpus.general(), "strong": corpus.strong(), "weak": corpus.weak()}


def open_bed(settings: BedSettings, texts: Callable[[], Texts] = own_texts, source: str | None = None) -> Bed:
    """The bed of this interpreter's library; made when it is not there (half a minute).

    Args:
        settings: sizes.
        texts: reads the text of each side.
        source: names that text without reading it.
    """
    source = source or f"python {platform.python_version()}, {corpus.weak_version()}"
    folder = bed.cache_folder() / f"bed-{digest_of(code_digest(*BED_CODE), settings, source)}"
    from tokenizers import Tokenizer

    done = folder / "digests.json"
    if not done.is_file():
        read = texts()
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = bed.fit_tokenizer(read["general"], settings)
        tokenizer.save(str(folder / "tokenizer.json"))
        made = {side: bed.make_side(_kind(side), read[side], tokenizer, settings) for side in SIDES}
        for side, data in made.items():
            bed.save(data, folder / f"{side}.npz")
        done.write_text(json.dumps({side: bed.content_digest(data) for side, data in made.items()}))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    sides = {side: bed.load(_kind(side), folder / f"{side}.npz") for side in SIDES}
    return Bed(json.loads(done.read_text()), sides, tokenizer)


def _kind(side: str) -> Side:
    return "general" if side == "general" else "domain"


def _training(settings: BaseSettings, made: Bed) -> Training:
    return Training(
        make_model(settings.shape, settings.bed, settings.seed),
        [made.sides["general"].shard],
        rate=settings.rate,
        total_steps=settings.steps,
        replay_fraction=1.0,
        seed=settings.seed,
    )


def base_digest(settings: BaseSettings, made: Bed) -> str:
    """Names the base model's weights by what they come from."""
    order = _training(settings, made).order_digest(settings.steps)
    return digest_of(code_digest(*TRAINING_CODE), settings, made.digests["general"], order)


def open_base(settings: BaseSettings, made: Bed, say: Callable[[str], None]) -> dict[str, Any]:
    """State dict of the base model; trained when it is not there, from where an earlier try was cut off."""
    import torch

    folder = bed.cache_folder() / f"base-{base_digest(settings, made)}"
    weights, partial = folder / "model.pt", folder / "partial.pt"
    if weights.is_file():
        return dict(torch.load(weights, weights_only=True))
    folder.mkdir(parents=True, exist_ok=True)
    training = _training(settings, made)
    if partial.is_file():
        training.load_state_dict(torch.load(partial, weights_only=True))
        say(f"base: goes on from step {training.steps_done} of {settings.steps}")
    while training.steps_done < settings.steps:
        loss = training.step()
        if training.steps_done % SAVE_EVERY_STEPS == 0:
            _save(training.state_dict(), partial)
            per_step = training.cpu_seconds / training.steps_done
            say(
                f"base: step {training.steps_done} of {settings.steps}, loss {loss:.3f}, {per_step:.3f} CPU s a step"
            )
    _save(training.model.state_dict(), weights)
    tokens = settings.steps * BATCH_SEQUENCES * settings.bed.context_tokens
    (folder / _NOTE).write_text(f"{tokens} tokens, {training.cpu_seconds:.0f} CPU seconds in steps\n")
    partial.unlink(missing_ok=True)
    return dict(training.model.state_dict())


def base_cpu_seconds(settings: BaseSettings, made: Bed) -> float:
    """What pretraining the base took in steps, when it was done."""
    note = bed.cache_folder() / f"base-{base_digest(settings, made)}" / _NOTE
    return float(note.read_text().split()[2])


def _save(content: Any, path: Path) -> None:
    import torch

    written = path.with_suffix(".new")
    torch.save(content, written)
    written.replace(path)
