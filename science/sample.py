"""A bed so small that the whole way takes seconds: a few modules of the standard library, one run of each kind.

It shows that the machinery works; its numbers say nothing about the method.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from science import campaign, corpus
from science.base import BaseSettings, Texts
from science.bed import BedSettings
from science.chain import Chain
from science.model import Rate, Shape
from science.rows import NewRows
from science.settings import Adaptation, Penalty
from science.world import World

SOURCE = "sample"
SETTINGS = BaseSettings(
    bed=BedSettings(
        vocabulary_size=384, context_tokens=64, held_out_tokens_a_side=2000, held_out_fraction=0.2
    ),
    shape=Shape(layers=2, width=48, inner=96, heads=2),
    rate=Rate(peak=5e-3),
    steps=150,
)
_GENERAL = (
    "argparse",
    "ast",
    "textwrap",
    "tarfile",
    "zipfile",
    "subprocess",
    "inspect",
    "pathlib",
    "mailbox",
)
_WEAK = ("optparse", "calendar", "imaplib", "ftplib")
RUNS: tuple[Any, ...] = (
    Adaptation(steps=40, readings=4, shares=(0.5,), averaged=2),
    Adaptation(steps=40, replay=0.5, readings=4),
    Adaptation(steps=10, replay=0.25, penalty=Penalty("ewc", 0.1, samples=20)),
    Chain(steps=20, replay=0.1, peak=1e-2),
    NewRows(words="foreign", beginning="mean", steps=5),
)


def texts() -> Texts:
    """The sides of a few modules."""
    general = [corpus.split(_source(name)) for name in _GENERAL]
    weak = [corpus.split(_source(name))[0] for name in _WEAK]
    return {
        "general": [part for code, _ in general for part in corpus.parts(code)],
        "strong": [
            text for _, docstrings in general for text in docstrings if len(text) > corpus.SHORTEST_CHARACTERS
        ],
        "weak": [part for code in weak for part in corpus.parts(code)],
    }


def open_sample(say: Callable[[str], None]) -> World:
    """Its bed and base, in the same cache."""
    return campaign.open_all(SETTINGS, say, texts=texts, source=SOURCE)


def run(workers: int, say: Callable[[str], None]) -> list[str]:
    """One run of each kind; a line each."""
    world = open_sample(say)
    keys = campaign.run_missing(world, RUNS, workers=workers, ends=lambda: False, say=say)
    lines = []
    for settings, record in zip(RUNS, campaign.records_of(keys, RUNS), strict=True):
        told = record.get("readings") or record["readings_by_attempt"]["1"]
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in told[-1].items() if name != "step")
        lines.append(f"{type(settings).__name__} {asdict(settings)['steps']} steps: {numbers}")
    return lines


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")
