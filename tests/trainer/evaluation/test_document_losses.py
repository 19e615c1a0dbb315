"""The standard error of a loss' difference, by document, and the file of the base model's losses."""

from __future__ import annotations

import hashlib
import math
import random
from pathlib import Path

import pytest

from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.base_model.document_losses import (
    DocumentLoss,
    losses_digest,
    paired_error,
    read_losses,
    write_losses,
)


def losses(values: list[tuple[int, float]]) -> list[DocumentLoss]:
    return [DocumentLoss(side="general", half="b", tokens=tokens, nats=nats) for tokens, nats in values]


def test_the_error_of_documents_of_one_length_is_that_of_their_mean() -> None:
    base = losses([(10, 30.0)] * 4)
    measured = losses([(10, 31.0), (10, 33.0), (10, 30.0), (10, 34.0)])
    # Differences a token are 0.1, 0.3, 0.0 and 0.4: mean 0.2, variance 0.1 / 3.
    assert paired_error(measured, base) == pytest.approx(math.sqrt(0.1 / 3 / 4))
    assert paired_error(base, base) == 0.0


def test_the_error_is_the_spread_of_the_difference_over_samples_of_documents() -> None:
    draw = random.Random(7)
    differences, errors = [], []
    for _ in range(400):
        tokens = [draw.choice((50, 400)) for _ in range(60)]
        hard = [draw.gauss(3.0, 0.5) for _ in tokens]  # most of a loss, and both models have it
        risen = [0.1 + draw.gauss(0.0, 0.05) + (0.1 if length == 400 else 0.0) for length in tokens]
        base = losses([(n, n * loss) for n, loss in zip(tokens, hard, strict=True)])
        measured = losses([(n, n * (a + b)) for n, a, b in zip(tokens, hard, risen, strict=True)])
        nats = sum(own.nats - other.nats for own, other in zip(measured, base, strict=True))
        differences.append(nats / sum(tokens))
        errors.append(paired_error(measured, base) or 0.0)
    mean = sum(differences) / len(differences)
    spread = math.sqrt(sum((value - mean) ** 2 for value in differences) / (len(differences) - 1))
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.1)


def test_an_error_that_cannot_be_estimated_is_none() -> None:
    one = losses([(10, 30.0), (0, 0.0)])
    assert paired_error(one, one) is None
    broken = losses([(10, math.inf), (10, 30.0)])
    assert paired_error(broken, losses([(10, 30.0), (10, 30.0)])) is None


@pytest.mark.parametrize("nats", [1e308, 1e200, -1e308])
def test_an_error_of_losses_beyond_all_bounds_is_none(nats: float) -> None:
    base = losses([(1, 0.0)] * 3)
    assert paired_error(losses([(1, nats), (1, nats), (1, -nats)]), base) is None


@pytest.mark.parametrize("tokens", [-1, 10**400])
def test_a_number_of_tokens_that_no_text_has_is_refused(tmp_path: Path, tokens: int) -> None:
    content = b'{"side":"general","half":"b","tokens":%d,"nats":1.0}\n' % tokens
    (tmp_path / "losses.jsonl").write_bytes(content)
    with pytest.raises(InputError, match="the base model's losses cannot be read"):
        read_losses(tmp_path, "losses.jsonl", hashlib.sha256(content).hexdigest())


def test_losses_on_other_documents_are_refused() -> None:
    with pytest.raises(
        InputError, match="measured on 1 documents, this model on 2, and they are not the same"
    ):
        paired_error(losses([(10, 1.0), (11, 1.0)]), losses([(10, 1.0)]))
    with pytest.raises(InputError, match="not the same"):
        paired_error(losses([(10, 1.0)]), losses([(11, 1.0)]))


def test_stored_losses_are_read_back_and_others_refused(tmp_path: Path) -> None:
    path, stored = tmp_path / "losses.jsonl", losses([(10, 30.123456789), (7, 2.0)])
    write_losses(path, stored)
    assert list(read_losses(tmp_path, path.name, losses_digest(stored))) == stored
    path.write_text(path.read_text().replace("2.0", "1.0"))
    with pytest.raises(InputError, match="the work volume changed since"):
        read_losses(tmp_path, path.name, losses_digest(stored))
    path.unlink()
    with pytest.raises(InputError, match="losses cannot be read"):
        read_losses(tmp_path, path.name, losses_digest(stored))


def test_losses_are_not_read_through_a_link(tmp_path: Path) -> None:
    stored = losses([(10, 1.0)])
    write_losses(tmp_path / "elsewhere.jsonl", stored)
    (tmp_path / "losses.jsonl").symlink_to("elsewhere.jsonl")
    with pytest.raises(InputError, match="losses cannot be read"):
        read_losses(tmp_path, "losses.jsonl", losses_digest(stored))
