"""Tests that the ranks share the files of a model's weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from dapt_trainer.distributed import Ranks
from dapt_trainer.modeling.save_weights import save_weights, stage_weights
from dapt_trainer.staged_files import StagedFiles
from support.toy_training import make_model, make_tokenizer

pytestmark = pytest.mark.torch
FILE_BYTES = 40_000


@dataclass(frozen=True)
class RanksInTurn(Ranks):
    """Ranks that stage one after the other in this process, rank 0 last."""

    gathered: Any = None

    def gather(self, value: Any, _: Any) -> list[Any]:
        self.gathered.append(value)
        return list(self.gathered)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    make_model(tmp_path / "model")
    return load(tmp_path / "model")


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=False, use_safetensors=True, weights_only=True, attn_implementation=None
    )


def save_by(world_size: int, model: Any, folder: Path) -> list[tuple[Any, ...]]:
    """Save by so many ranks; return what each has written."""
    gathered: list[Any] = []
    written = []
    for rank in reversed(range(world_size)):
        staged = StagedFiles(folder.parent / "scratch")
        ranks = RanksInTurn(rank, rank, world_size, torch.device("cpu"), gathered=gathered)
        stage_weights(model, make_tokenizer(), staged, ranks, file_bytes=FILE_BYTES)
        written.append(staged.write(folder))
    return written[::-1]


def weight_bytes(files: tuple[Any, ...]) -> int:
    return sum(file.size_bytes for file in files if file.path.endswith(".safetensors"))


def test_ranks_write_one_model_folder_together(tmp_path: Path, model: Any) -> None:
    save_by(2, model, tmp_path / "saved")
    found, expected = load(tmp_path / "saved").state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_each_rank_writes_its_share_and_nothing_twice(tmp_path: Path, model: Any) -> None:
    written = save_by(2, model, tmp_path / "saved")
    shares = [weight_bytes(files) for files in written]
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    assert parameters <= sum(shares) < 1.1 * parameters
    assert max(shares) < 0.7 * parameters
    names = [file.path for files in written for file in files]
    assert len(names) == len(set(names))


def test_files_are_the_same_for_any_number_of_ranks(tmp_path: Path, model: Any) -> None:
    digests = [
        {
            file.path: file.sha256
            for files in save_by(ranks, model, tmp_path / f"by-{ranks}")
            for file in files
            if file.path.endswith((".safetensors", ".index.json"))
        }
        for ranks in (1, 2, 3)
    ]
    assert len(digests[0]) > 2
    assert digests[0] == digests[1] == digests[2]


def test_small_model_is_one_file_without_an_index(tmp_path: Path, model: Any) -> None:
    save_weights(model, make_tokenizer(), tmp_path / "saved")
    assert not (tmp_path / "saved/model.safetensors.index.json").exists()
    with safe_open(tmp_path / "saved/model.safetensors", framework="pt") as file:
        # The head is tied to the embedding: it has no tensor of its own.
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    assert load(tmp_path / "saved").config.use_cache
