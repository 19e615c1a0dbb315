"""Prepare's check of the free space asks for the bytes that the planner has estimated, whatever is trained."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dapt_contract.inputs.model_size import checkpoint_size
from dapt_contract.stages.common import LoraConfig
from dapt_contract.stages.prepare import PrepareConfig
from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.plan.sizing.estimate import EstimateFacts, estimate
from dapt_operator.plan.stages.prepare import prepare_stage
from dapt_trainer.data import disk_space
from dapt_trainer.errors import InputError
from support.builders import adaptation, model_facts, profile

BASE = model_facts(parameters=1_000_000_000, weights_bytes=2_000_000_000)
METHODS = {
    "rank 8": {"lora": {"rank": 8}},
    "rank 64": {"lora": {"rank": 64}},
    "rank 256": {"lora": {"rank": 256}},
    "full": {"lora": None, "full": {}},
}


@pytest.mark.parametrize("extend", [None, {"extend": {"vocabularySize": 400}}], ids=["as it is", "grown"])
@pytest.mark.parametrize("kind", ["gpu", "cpu"])
@pytest.mark.parametrize("method", METHODS)
def test_disk_estimate_matches_what_prepare_requires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, kind: str, extend: dict[str, Any] | None
) -> None:
    over: dict[str, Any] = {"pretraining": {"method": METHODS[method]}}
    if extend is not None:
        over["model"] = {"tokenizer": extend}
    spec = DomainAdaptation.model_validate(adaptation(**over)).spec
    offered = AdaptationProfile.model_validate(profile(accelerator={"kind": kind, "memoryGiB": 640})).spec
    estimated = estimate(spec, offered, EstimateFacts(model=BASE)).checkpoint_bytes
    assert estimated is not None
    # what the trainer reads is the configuration as it was written to stage.json
    config = PrepareConfig.model_validate(prepare_stage(spec, offered).config.model_dump(mode="json"))
    needed = int(estimated) + (BASE.weights_bytes if extend else 0)
    free = SimpleNamespace(free=needed)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: free)
    disk_space.check_space(tmp_path, BASE, config)
    free.free = needed - 1
    with pytest.raises(InputError, match="not enough disk for the 4 checkpoints to keep"):
        disk_space.check_space(tmp_path, BASE, config)


def test_a_checkpoint_grows_with_the_rank_and_the_precision() -> None:
    small, large = (checkpoint_size(BASE, LoraConfig(rank=rank), "bf16") for rank in (8, 256))
    assert large.weights_bytes == 32 * small.weights_bytes
    assert large.optimizer_bytes == 32 * small.optimizer_bytes
    assert checkpoint_size(BASE, LoraConfig(rank=8), "fp32").weights_bytes == 2 * small.weights_bytes
    full = checkpoint_size(BASE, None, "bf16")
    assert (full.weights_bytes, full.optimizer_bytes) == (2_000_000_000, 12_000_000_000)
    assert (full.total_bytes(1), full.total_bytes(10)) == (14_000_000_000, 44_000_000_000)


def test_a_configuration_of_before_the_rank_was_named_is_read_as_the_default() -> None:
    old = PrepareConfig(model_source="file:///m", domain=(), general=())
    assert old.trained_adapters == LoraConfig(rank=64)
    assert (
        PrepareConfig(
            model_source="file:///m", domain=(), general=(), trains_all_weights=True
        ).trained_adapters
        is None
    )
