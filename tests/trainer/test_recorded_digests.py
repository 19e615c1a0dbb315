"""Tests that weights and prepared data which changed since they were recorded are refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.stages.baseline import BaselineConfig
from dapt_contract.stages.blend import Blend, BlendConfig
from dapt_contract.stages.common import EvaluationConfig, ModelReference, RecordedDigests
from dapt_contract.stages.evaluate import EvaluateConfig
from dapt_contract.stages.verify import NamedModel, VerifyConfig
from dapt_trainer.data.packing.data_manifest import read_manifest, write_manifest
from dapt_trainer.data.packing.recorded_data import changed_shards, content_digest, require_recorded_data
from dapt_trainer.data.packing.shards import open_shards
from dapt_trainer.digests import (
    HeldWeights,
    checked_reference_digest,
    reference_digest,
    sha256_of_file,
    weights_digest,
)
from dapt_trainer.errors import InfrastructureError, InputError
from dapt_trainer.stages import baseline, blend, evaluate, pretrain, publish, verify
from support.card_builders import publish_config
from support.toy_training import FILTERS, make_context, make_work_volume, pretrain_config

pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]
CHAIN = ModelReference(weights="model", adapters=("adapter",))
EVALUATION = EvaluationConfig(context_length_tokens=32)
WRONG = RecordedDigests(folders=(("model", "0" * 64),))


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A work volume with weights of a few bytes."""
    for name in ("model", "adapter"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(name.encode())
    return tmp_path


def recorded_of(work: Path) -> RecordedDigests:
    return RecordedDigests(
        recipe=reference_digest(work, CHAIN),
        folders=tuple((name, weights_digest(work / name)[:12]) for name in ("model", "adapter")),
    )


def test_unchanged_weights_have_the_digest_of_the_recipe(volume: Path) -> None:
    assert checked_reference_digest(volume, CHAIN, recorded_of(volume)) == reference_digest(volume, CHAIN)


def test_every_changed_folder_of_weights_is_named(volume: Path) -> None:
    recorded, before = recorded_of(volume), weights_digest(volume / "model")
    for name in ("model", "adapter"):
        (volume / name / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(InputError) as caught:
        checked_reference_digest(volume, CHAIN, recorded)
    first, second = caught.value.problems
    found = weights_digest(volume / "model")
    assert first == (
        f"{volume}/model: its weights have the digest {found[:12]}, and {before[:12]} was recorded of them: the work "
        "volume changed since, so they are not used; restore the folder, or create a new DomainAdaptation, which "
        "trains again"
    )
    assert second.startswith(f"{volume}/adapter: its weights have the digest ")


def test_file_that_was_added_to_weights_is_noticed(volume: Path) -> None:
    recorded = recorded_of(volume)
    (volume / "adapter/chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(InputError, match=f"{volume}/adapter: its weights have the digest"):
        checked_reference_digest(volume, CHAIN, recorded)


def test_recipe_that_was_measured_otherwise_is_refused(volume: Path) -> None:
    recorded = RecordedDigests(recipe="0" * 64)
    with pytest.raises(
        InputError, match=f"{volume}/adapter: its weights have the digest .* 000000000000 was"
    ):
        checked_reference_digest(volume, CHAIN, recorded)


def write_over(path: Path) -> None:
    before = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap_and_put_back(path: Path) -> None:
    kept = path.rename(path.with_name("kept"))
    path.write_bytes(b"other weights")
    path.unlink()
    kept.rename(path)


def add_template(path: Path) -> None:
    (path.parent / "chat_template.jinja").write_text("{{ messages }}")


@pytest.mark.parametrize("change", [write_over, swap_and_put_back, add_template])
def test_weights_that_are_written_to_while_they_are_read_are_refused(
    volume: Path, change: Callable[[Path], None]
) -> None:
    held = HeldWeights(volume, [CHAIN])
    weights_digest(volume / "adapter")
    held.require_unchanged()
    change(volume / "adapter/model.safetensors")
    with pytest.raises(InfrastructureError) as caught:
        held.require_unchanged()
    assert str(caught.value) == (
        f"{volume}/adapter: its weights were written to while they were read, so they are not used; the next run "
        "compares them again"
    )


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_work_volume(tmp_path_factory.mktemp("toy"))


Stage = tuple[Any, str, Any]
STAGES: dict[str, Callable[[Path], Stage]] = {
    "baseline": lambda _: (
        baseline,
        "baseline",
        BaselineConfig(model=ModelReference(weights="model"), evaluation=EVALUATION, recorded=WRONG),
    ),
    "blend": lambda _: (
        blend,
        "blend",
        BlendConfig(
            blends=(Blend(candidate="a1-avg2", model=ModelReference(weights="model")),),
            context_length_tokens=32,
            recorded=WRONG,
        ),
    ),
    "verify": lambda _: (
        verify,
        "verify",
        VerifyConfig(
            models=(NamedModel(name="final", model=ModelReference(weights="model"), recorded=WRONG),),
            evaluation=EVALUATION,
            base_items_path="stages/baseline-a1",
        ),
    ),
    "pretrain": lambda _: (pretrain, "pretrain", pretrain_config(recorded=WRONG)),
    "publish": lambda out: (publish, "publish", publish_config(f"file://{out}", recorded=WRONG)),
}


@pytest.mark.parametrize("name", STAGES)
def test_stage_refuses_weights_that_are_not_the_recorded_ones(toy: Path, tmp_path: Path, name: str) -> None:
    module, kind, config = STAGES[name](tmp_path / "out")
    with pytest.raises(InputError, match=f"{toy}/model: its weights have the digest .* 000000000000 was rec"):
        module.run(config, make_context(toy, tmp_path / "scratch", config, kind=kind))
    assert not (tmp_path / "out").exists()


def test_recorded_digests_do_not_change_what_a_checkpoint_belongs_to() -> None:
    from dapt_trainer.checkpoints.same_training import training_digest

    changed = pretrain_config(recorded=WRONG, prepared_digest="sha256:1")
    assert training_digest(changed) == training_digest(pretrain_config())
    assert training_digest(pretrain_config(seed=4)) != training_digest(pretrain_config())


def shown_digest(work: Path) -> str:
    return content_digest(work, read_manifest(work)).removeprefix("sha256:")[:12]


def test_data_with_the_reported_digest_is_read(toy: Path) -> None:
    require_recorded_data(toy, read_manifest(toy).data_digest)
    require_recorded_data(toy, None)


@pytest.mark.parametrize("module", [baseline, evaluate, pretrain])
def test_stage_refuses_data_that_prepare_did_not_report(toy: Path, tmp_path: Path, module: Any) -> None:
    model = ModelReference(weights="model")
    config: Any = {
        baseline: BaselineConfig(model=model, evaluation=EVALUATION, prepared_digest="sha256:1"),
        evaluate: EvaluateConfig(
            candidate="a1-s2",
            model=model,
            evaluation=EVALUATION,
            base_items_path="stages/baseline-a1",
            prepared_digest="sha256:1",
        ),
        pretrain: pretrain_config(prepared_digest="sha256:1"),
    }[module]
    kind = module.__name__.rpartition(".")[2]
    with pytest.raises(InputError) as caught:
        module.run(config, make_context(toy, tmp_path, config, kind=kind))
    assert str(caught.value) == (
        f"{toy}/data/manifest.json: lists data with the digest {shown_digest(toy)}, and 1 is what prepare "
        "reported: the work volume changed since, so the data is not used; restore it, or create a new "
        "DomainAdaptation, which prepares it again"
    )


def test_manifest_that_keeps_its_digest_and_lists_other_files_is_refused(toy: Path, tmp_path: Path) -> None:
    listed = read_manifest(toy).model_copy(update={"files": (("held-out/general-a.jsonl", "1" * 64),)})
    honest = listed.model_copy(update={"data_digest": content_digest(toy, listed)})
    (tmp_path / "data").mkdir()
    write_manifest(tmp_path / "data", honest, run_key="")
    require_recorded_data(tmp_path, honest.data_digest)
    forged = honest.model_copy(update={"files": (("held-out/general-a.jsonl", "2" * 64),)})
    write_manifest(tmp_path / "data", forged, run_key="")
    with pytest.raises(InputError, match=r"manifest\.json: lists data with the digest"):
        require_recorded_data(tmp_path, honest.data_digest)


def test_manifest_without_a_list_of_files_is_not_believed(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy, tmp_path / "work")
    manifest = read_manifest(toy)
    assert not manifest.files
    shards = (manifest.shards[0].model_copy(update={"files": ()}), *manifest.shards[1:])
    write_manifest(tmp_path / "work/data", manifest.model_copy(update={"shards": shards}), run_key="")
    with pytest.raises(InputError, match=r"manifest\.json: lists data with the digest"):
        require_recorded_data(tmp_path / "work", manifest.data_digest)


@pytest.fixture
def swapped(toy: Path, tmp_path: Path) -> Path:
    """A work volume with one other token in a shard, whose file has the size and the times that it had."""
    work = tmp_path / "swapped"
    shutil.copytree(toy, work)
    tokens = work / "data/domain-0/tokens.bin"
    before = tokens.stat()
    content = bytearray(tokens.read_bytes())
    content[1000] ^= 1
    tokens.write_bytes(content)
    os.utime(tokens, ns=(before.st_atime_ns, before.st_mtime_ns))
    return work


def test_swapped_shard_of_the_same_size_is_refused_before_a_model_is_loaded(
    swapped: Path, tmp_path: Path
) -> None:
    tokens, manifest = swapped / "data/domain-0/tokens.bin", read_manifest(swapped)
    listed = next(file.sha256 for file in manifest.shards[0].files if file.name == "tokens.bin")
    config = pretrain_config(prepared_digest=manifest.data_digest)
    (swapped / "model/config.json").unlink()
    with pytest.raises(InputError) as caught:
        pretrain.run(config, make_context(swapped, tmp_path / "scratch", config))
    assert str(caught.value) == (
        f"{tokens}: has the SHA-256 {sha256_of_file(tokens)[:12]}, and {listed[:12]} was written there: the work "
        "volume changed since, so the file is not used; restore it, or create a new "
        "DomainAdaptation, which writes it again"
    )


def test_ranks_share_the_comparison_of_shards(swapped: Path) -> None:
    manifest, beats = read_manifest(swapped), [0, 0, 0]

    def beat(rank: int) -> None:
        beats[rank] += 1

    found = [
        changed_shards(swapped, manifest, partial(beat, rank), rank=rank, world_size=3) for rank in range(3)
    ]
    assert [len(problems) for problems in found].count(1) == 1
    assert sum(beats) == sum(len(shard.files) for shard in manifest.shards)
    assert max(beats) < sum(beats)


@pytest.mark.parametrize(
    "change", [{"sequences": 63}, {"sequences": 0}, {"sequences": -1}, {"sequences": 10**12}]
)
def test_shard_with_another_number_of_sequences_than_listed_is_refused(
    toy: Path, change: dict[str, int]
) -> None:
    manifest = read_manifest(toy)
    shards = (manifest.shards[0].model_copy(update=change), *manifest.shards[1:])
    with pytest.raises(InputError) as caught:
        open_shards(toy, manifest.model_copy(update={"shards": shards}))
    assert str(caught.value) == (
        f"{toy}/data/domain-0/tokens.bin: has 2,048 tokens, and the manifest says {change['sequences']:,} sequences of "
        "32; run prepare again"
    )
