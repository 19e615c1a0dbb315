"""Ranks that share one model measure what one process measures, and hold a part of the weights each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from dapt_contract.stages.common import ModelReference, ModelSpread
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.loading.spread_model import plain_folder, problem_of_slices, usable_spread
from support.rank_processes import run_ranks
from support.spread_ranks import measure, measure_base, measure_rank, verify_on_own_volume

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def alone(toy_work: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A volume with a finished baseline, and what one process measures there."""
    work = tmp_path_factory.mktemp("spread") / "work"
    shutil.copytree(toy_work, work)
    measure_base(work)
    return work, measure(work, 0, 1, ModelSpread())


@pytest.mark.distributed
@pytest.mark.parametrize("method", ["tensorParallel", "zero3"])
def test_two_ranks_that_share_a_model_measure_the_same_as_one(
    alone: tuple[Path, dict[str, Any]], tmp_path: Path, method: Literal["tensorParallel", "zero3"]
) -> None:
    work, expected = alone
    spread = ModelSpread(ranks_per_model=2, method=method)
    assert run_ranks(measure_rank, work, tmp_path, spread, ranks=2) == [0, 0]
    for rank in range(2):
        found = json.loads((tmp_path / f"found-{rank}.json").read_text())
        assert found["part"] == pytest.approx(0.5, abs=0.02)
        assert found["texts"] == expected["texts"]
        assert found["report"]["samples"] == expected["report"]["samples"]
        for own, whole in zip(found["report"]["measures"], expected["report"]["measures"], strict=True):
            assert own["measure"]["digest"] == whole["measure"]["digest"]
            for side in ("domain", "general"):
                for half in ("a", "b"):
                    assert own["measure"][side][half] == pytest.approx(whole["measure"][side][half], rel=1e-5)
            for score, whole_score in zip(own["measure"]["scores"], whole["measure"]["scores"], strict=True):
                assert score["items"] == whole_score["items"]
                assert score["score"] == pytest.approx(whole_score["score"], rel=1e-5)


@pytest.mark.distributed
def test_ranks_that_see_different_files_follow_the_first(
    alone: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    volumes = [tmp_path / f"rank-{rank}" for rank in range(2)]
    template = "{% for message in messages %}<{{ message['content'] }}>a{% endfor %}"
    for volume in volumes:
        shutil.copytree(alone[0], volume, ignore=shutil.ignore_patterns("verify-*"))
        for name in ("model", "tuned"):
            (volume / name / "chat_template.jinja").write_text(template)
    # A measurement that one node sees and the other does not yet.
    measure_base(volumes[0])
    shutil.copytree(volumes[0] / "stages/baseline-a1", volumes[0] / "stages/evaluate-a1")
    assert run_ranks(verify_on_own_volume, tmp_path, ranks=2) == [0, 0]
    first, second = (json.loads((volume / "found.json").read_text()) for volume in volumes)
    assert second == first
    assert not (volumes[0] / "stages/verify-a1/try-1/items-base.jsonl").exists()


def ranks(world_size: int) -> Ranks:
    return Ranks(0, 0, world_size, torch.device("cpu"))


def test_a_number_of_ranks_that_holds_no_whole_copies_is_refused(toy_work: Path) -> None:
    spread = ModelSpread(ranks_per_model=2)
    assert usable_spread(toy_work, "model", spread, ranks(4)) == spread
    with pytest.raises(InputError) as caught:
        usable_spread(toy_work, "model", ModelSpread(ranks_per_model=3), ranks(4))
    assert str(caught.value) == (
        "3 ranks share one model, and the stage has 4: give it a multiple of 3 GPUs, or let another number share the "
        "model"
    )


def test_zero_3_divides_what_tensor_parallelism_cannot(
    toy_work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spread = ModelSpread(ranks_per_model=4)
    assert usable_spread(toy_work, "model", spread, ranks(8)) == ModelSpread(
        ranks_per_model=4, method="zero3"
    )
    assert [record.getMessage() for record in caplog.records] == [
        "model: tensor parallelism over 4 ranks is impossible: its 2 key-value heads cannot be divided evenly; ZeRO 3 "
        "divides it over all 8 ranks instead"
    ]
    assert problem_of_slices(LlamaConfig(num_attention_heads=32, num_key_value_heads=8), 8) is None
    assert problem_of_slices(GPT2Config(), 2) == "transformers has no plan for models of type gpt2"


def test_a_recipe_is_never_divided_while_it_is_computed() -> None:
    with pytest.raises(ValueError, match="must be a folder of weights, not a recipe"):
        plain_folder(ModelReference(weights="model", tuned=("adapter",)))
