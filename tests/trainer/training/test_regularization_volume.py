"""Tests the Fisher information on the volume, and the anchor of later attempts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dapt_contract.stages.common import DistributionConfig, LoraConfig, ModelReference
from dapt_contract.stages.pretrain import PretrainReport, RegularizationConfig
from dapt_trainer.context import SilentProgress
from dapt_trainer.distributed import join_ranks
from dapt_trainer.errors import InputError, StopRequested
from dapt_trainer.stages import pretrain
from dapt_trainer.training.regularization.fisher_of_run import measured_fisher
from dapt_trainer.training.regularization.general_rows import GeneralRows
from support.toy_training import FILTERS, make_context, make_work_volume, pretrain_config
from support.written import load_recipe

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]
EWC = RegularizationConfig(kind="ewc", strength=20.0, samples=6)


class Watched(SilentProgress):
    """Keeps what was shown, and asks to stop after so many sequences of the Fisher information."""

    def __init__(self, stop_after: int = 1000) -> None:
        self.fractions: list[float] = []
        self.activities: list[str] = []
        self._stop_after = stop_after

    def update(self, **fields: Any) -> None:
        activity = fields.get("activity")
        if activity is not None and activity not in self.activities[-1:]:
            self.activities.append(activity)
        if activity == "measuring what general text depends on":
            self.fractions.append(fields["fraction"])

    def stop_requested(self) -> bool:
        return len(self.fractions) >= self._stop_after


def config(**changes: Any) -> Any:
    distribution = DistributionConfig(zero_stage=0, precision="fp32")
    return pretrain_config(**({"lora": None, "regularization": EWC, "distribution": distribution} | changes))


def measured(work: Path, settings: Any, *, try_number: int = 1, progress: Any = None) -> Any:
    context = make_context(work, work / "scratch", settings, try_number=try_number, progress=progress)
    return measured_fisher(settings, settings.regularization, context, join_ranks(0, 0, 1))


def manifests(work: Path) -> list[str]:
    return sorted(path.parent.name for path in work.glob("stages/pretrain-a1/try-*/fisher-*.json"))


def trained(work: Path, settings: Any, **options: Any) -> PretrainReport:
    return pretrain.run(settings, make_context(work, work / "scratch", settings, **options))


def test_a_later_run_uses_the_fisher_of_an_earlier_one(tmp_path: Path) -> None:
    work = make_work_volume(tmp_path)
    first, shown = Watched(), Watched()
    measured(work, config(), progress=first)
    assert first.fractions == [pytest.approx(number / 6) for number in range(1, 7)]
    again = measured(work, config(), try_number=2, progress=shown)
    assert shown.fractions == []
    assert manifests(work) == ["try-1"]
    assert again.manifest.sequences == 6
    assert again.manifest.mean > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 4},
        {"regularization": EWC.model_copy(update={"samples": 5})},
        {"regularization": EWC.model_copy(update={"parameters": "mlp"})},
        {"lora": LoraConfig(rank=2, alpha=4)},
        {"document_boundaries": False},
        {"distribution": DistributionConfig(zero_stage=0, precision="bf16")},
    ],
)
def test_a_change_of_what_decides_the_fisher_measures_another_one(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    work = make_work_volume(tmp_path, sequences=8)
    measured(work, config())
    measured(work, config(**changes), try_number=2)
    assert manifests(work) == ["try-1", "try-2"]


def test_strength_and_learning_rate_keep_the_fisher(tmp_path: Path) -> None:
    work = make_work_volume(tmp_path, sequences=8)
    measured(work, config())
    measured(work, config(regularization=EWC.model_copy(update={"strength": 1.0}), replay_fraction=0.5))
    assert manifests(work) == ["try-1"]


def test_a_file_that_was_altered_is_measured_again(tmp_path: Path) -> None:
    work = make_work_volume(tmp_path, sequences=8)
    wanted = measured(work, config()).tensor("model.norm.weight").clone()
    (path,) = work.glob("stages/*/*/fisher-*/part-000-001.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    found = measured(work, config(), try_number=2)
    assert manifests(work) == ["try-1", "try-2"]
    torch.testing.assert_close(found.tensor("model.norm.weight"), wanted, rtol=0, atol=0)


def test_files_without_a_manifest_are_ignored(tmp_path: Path) -> None:
    work = make_work_volume(tmp_path, sequences=8)
    measured(work, config())
    (path,) = work.glob("stages/*/*/fisher-*.json")
    path.unlink()
    measured(work, config(), try_number=2)
    assert manifests(work) == ["try-2"]


def test_the_measurement_can_be_stopped_between_two_sequences(tmp_path: Path) -> None:
    work = make_work_volume(tmp_path)
    with pytest.raises(StopRequested) as stopped:
        trained(work, config(), progress=Watched(stop_after=4))
    assert str(stopped.value) == (
        "stop requested when the Fisher information was measured on 4 of 6 sequences; nothing was trained yet, and the "
        "next run measures again"
    )
    assert manifests(work) == []
    assert len(trained(work, config(), try_number=2).penalties) == 6


def test_no_more_sequences_are_read_than_exist(tmp_path: Path) -> None:
    work = make_work_volume(tmp_path, sequences=5)
    found = measured(work, config(regularization=EWC.model_copy(update={"samples": 2000})))
    assert found.manifest.sequences == 5


def test_an_order_of_general_rows_reads_each_once_and_none_of_the_domain(tmp_path: Path) -> None:
    from dapt_trainer.data.packing.data_manifest import read_manifest
    from dapt_trainer.data.packing.shards import open_shards

    work = make_work_volume(tmp_path, sequences=7)
    rows = GeneralRows(work, read_manifest(work), seed=1, document_boundaries=True)
    seen = {tuple(rows.row(number)["input_ids"].tolist()) for number in range(7)}
    general = next(shard for shard in open_shards(work) if shard.side == "general")
    assert seen == {tuple(general.sequence(row).input_ids.tolist()) for row in range(7)}


@pytest.mark.parametrize("kind", ["ewc", "klToBase"])
def test_general_text_is_read_though_none_is_trained_on(tmp_path: Path, kind: Any) -> None:
    work = make_work_volume(tmp_path)
    asked = RegularizationConfig(kind=kind, strength=5.0, samples=4)
    report = trained(work, config(regularization=asked, replay_fraction=0.0))
    assert dict(report.tokens_by_source)["general-0"] == 0
    assert report.penalties[-1].penalty_nats > 1e-4


def test_a_penalty_without_general_text_is_refused(tmp_path: Path) -> None:
    from dapt_trainer.data.packing.data_manifest import read_manifest, write_manifest

    work = make_work_volume(tmp_path)
    manifest = read_manifest(work)
    write_manifest(work / "data", manifest.model_copy(update={"shards": manifest.shards[:1]}), run_key="toy")
    with pytest.raises(InputError) as refused:
        trained(work, config(replay_fraction=0.0))
    assert str(refused.value) == (
        "pretraining.regularization needs general training text, and spec.corpus.general left no sequence of it; add "
        "general text, or remove regularization"
    )


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8)], ids=["full", "lora"])
def test_an_attempt_from_a_checkpoint_is_anchored_at_the_base_model(
    tmp_path: Path, lora: LoraConfig | None
) -> None:
    work = make_work_volume(tmp_path)
    trained(work, config(lora=lora, regularization=None))
    checkpoint = "stages/pretrain-a1/try-1/checkpoint-6"
    start = (
        ModelReference(weights="model", adapters=(checkpoint,))
        if lora
        else ModelReference(weights=checkpoint)
    )
    settings = config(lora=lora, model=start)
    fisher = measured(work, settings, try_number=2)
    report = trained(work, settings, try_number=2)
    base = dict(load_recipe(work, ModelReference(weights="model"), precision="fp32").named_parameters())
    begun = dict(load_recipe(work, start, precision="fp32").named_parameters())
    wanted = sum(
        10.0 * float((fisher.tensor(name) * (begun[name] - base[name]).detach() ** 2).sum())
        for name in fisher.manifest.file_of
    )
    assert wanted > 0.01
    assert report.penalties[0].penalty_nats == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8)], ids=["full", "lora"])
def test_an_attempt_from_a_checkpoint_is_compared_with_the_base_models_predictions(
    tmp_path: Path, lora: LoraConfig | None
) -> None:
    work = make_work_volume(tmp_path)
    trained(work, config(lora=lora, regularization=None))
    checkpoint = "stages/pretrain-a1/try-1/checkpoint-6"
    start = (
        ModelReference(weights="model", adapters=(checkpoint,))
        if lora
        else ModelReference(weights=checkpoint)
    )
    asked = RegularizationConfig(kind="klToBase", strength=1.0)
    report = trained(work, config(lora=lora, model=start, regularization=asked), try_number=2)
    assert report.penalties[0].penalty_nats > 1e-4  # held near its own start it would be 0


@pytest.mark.parametrize("kind", ["ewc", "l2sp"])
def test_rows_of_new_tokens_are_not_penalized(tmp_path: Path, kind: Any) -> None:
    from dapt_trainer.tokenization.grow_model import Extension, write_extension

    work = make_work_volume(tmp_path)
    (work / "model").rename(work / "model-extended")
    write_extension(work / "model-extended", Extension(first_id=100, constituents=((1, 2), (3, 4))))
    start = ModelReference(weights="model-extended", origin="model-extended")
    asked = RegularizationConfig(kind=kind, strength=20.0, samples=4)
    settings = config(model=start, regularization=asked)
    fisher = measured(work, settings) if kind == "ewc" else None
    report = trained(work, settings)
    base = dict(load_recipe(work, start, precision="fp32").named_parameters())
    checkpoint = ModelReference(weights="stages/pretrain-a1/try-1/checkpoint-4")
    weights = dict(load_recipe(work, checkpoint, precision="fp32").named_parameters())
    held = free = 0.0
    for name, weight in weights.items():
        moved = (weight - base[name]).detach() ** 2 * (1.0 if fisher is None else fisher.tensor(name))
        held += 10.0 * float(moved.sum())
        if name == "model.embed_tokens.weight":
            free = 10.0 * float(moved[100:102].sum())
    assert free > 0.0
    assert report.penalties[4].penalty_nats == pytest.approx(held - free, rel=2e-4)
