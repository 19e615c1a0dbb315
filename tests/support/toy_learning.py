"""Teaches a random toy which tokens its texts have: the baseline refuses a model that predicts by chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def learn_a_little(model: Any, tokenizer: Any, texts: Sequence[str], *, steps: int = 12) -> None:
    """Take some optimizer steps on the texts, each on the next few; the same ones give the same model."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    end = [tokenizer.eos_token_id]
    for step in range(steps):
        rows = [tokenizer(texts[(step * 4 + row) % len(texts)])["input_ids"] for row in range(4)]
        ids = torch.tensor([end + [token for row in rows for token in [*row, *end]]])[:, :96]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
