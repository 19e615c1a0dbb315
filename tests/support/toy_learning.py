"""Teaches a random toy which tokens its texts have: the baseline refuses a model that predicts by chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def learn_a_little(model: Any, tokenizer: Any, texts: Sequence[str], *, steps: int = 12) -> None:
    """Take some optimizer steps on the texts, each on the next few; the same ones give the same model."""
    learn_rows(
        model, [tokenizer(text)["input_ids"] for text in texts], end_id=tokenizer.eos_token_id, steps=steps
    )


def learn_rows(model: Any, rows: Sequence[Sequence[int]], *, end_id: int, steps: int = 12) -> None:
    """Take some optimizer steps on texts that are token ids already, four a step in turn."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        chosen = [rows[(step * 4 + place) % len(rows)] for place in range(4)]
        ids = torch.tensor([[end_id, *(token for row in chosen for token in [*row, end_id])]])[:, :96]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
