"""Tests a second attempt that starts from a checkpoint of the first: its model, its data, and its reports."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from dapt_contract.pod.progress import Progress
from dapt_contract.stages.common import Member, ModelReference
from dapt_contract.stages.pretrain import CheckpointFacts, MixturePhase, PretrainConfig, PretrainReport
from dapt_operator.cluster.progress_reading import MAX_READING_BYTES
from dapt_trainer.context import SilentProgress, StageContext
from dapt_trainer.stages import pretrain
from dapt_trainer.training.training_rows import open_rows
from support.toy_gang import wait_for_saves
from support.toy_training import FILTERS, make_context, make_work_volume, one_rank, pretrain_config
from support.written import load_recipe

pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]
FIRST = "stages/pretrain-a1/try-1/checkpoint"
SECOND = "stages/pretrain-a2/try-1/checkpoint"


class Recorder(SilentProgress):
    """Keeps what was told; a test may let it die, or have saves completed before the measuring ends."""

    def __init__(self, die_at_step: int = 0, saves: Path | None = None) -> None:
        self.rows: list[tuple[int, ...]] = []
        self._die_at_step = die_at_step
        self._saves = saves

    def update(self, **fields: Any) -> None:
        if self._saves is not None and str(fields.get("activity")).startswith("evaluating general"):
            wait_for_saves(self._saves)
        if "checkpoints" in fields:
            self.rows.append(tuple(row.step for row in fields["checkpoints"]))
        if fields.get("activity") == "training" and fields.get("step") == self._die_at_step:
            raise Killed


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def attempt(
    work: Path, number: int, config: PretrainConfig, progress: Any = None, **options: Any
) -> PretrainReport:
    context = make_context(work, work / "scratch", config, progress=progress, **options)
    run = context.stage.run.model_copy(update={"attempt": number})
    return pretrain.run(
        config,
        StageContext(
            stage=context.stage.model_copy(update={"run": run}),
            work=work,
            scratch=context.scratch,
            progress=context.progress,
            signing_key=context.signing_key,
        ),
    )


def second_config(**changes: Any) -> PretrainConfig:
    """From step 4 of the first attempt, with more replay and a lower rate."""
    return pretrain_config(
        **{
            "model": ModelReference(weights="model", adapters=(f"{FIRST}-4",)),
            "replay_fraction": 0.5,
            "total_steps": 4,
            "checkpoint_steps": (2, 4),
            "earlier_phases": (MixturePhase(steps=4, replay_fraction=0.25),),
        }
        | changes
    )


@pytest.fixture(scope="module")
def attempts(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, PretrainReport, PretrainReport, Recorder]:
    """Two attempts with LoRA; the live readings of the second."""
    work = make_work_volume(tmp_path_factory.mktemp("work"), sequences=20)
    first = attempt(work, 1, pretrain_config())
    told = Recorder()
    second = attempt(work, 2, second_config(), told)
    return work, first, second, told


def perplexity_loss(work: Path, reference: ModelReference) -> float:
    """Domain half a, by this test's own code: no packing, one document after the other."""
    from dapt_trainer.data.packing.held_out import read_held_out

    model = load_recipe(work, reference, precision="fp32")
    total, count = 0.0, 0
    for document in read_held_out(work, "domain", "a"):
        ids = torch.tensor([[0, *document.ids]])
        with torch.no_grad():
            scores = torch.log_softmax(model(ids).logits[0, :-1], -1)
        total -= float(scores.gather(1, ids[0, 1:, None]).sum())
        count += len(document.ids)
    return total / count


def test_checkpoints_of_a_second_attempt_are_its_adapter_on_top_of_the_first(
    attempts: tuple[Path, PretrainReport, PretrainReport, Recorder],
) -> None:
    work, first, second, _ = attempts
    start = ModelReference(weights="model", adapters=(f"{FIRST}-4",))
    chain = start.model_copy(update={"adapters": (*start.adapters, f"{SECOND}-4")})
    assert second.facts.checkpoints[1].domain_a_nats == pytest.approx(perplexity_loss(work, chain), abs=1e-5)
    assert first.facts.checkpoints[1].domain_a_nats == pytest.approx(perplexity_loss(work, start), abs=1e-5)
    alone = perplexity_loss(work, ModelReference(weights="model", adapters=(f"{SECOND}-4",)))
    assert abs(alone - second.facts.checkpoints[1].domain_a_nats) > 1e-3


def test_a_second_attempt_continues_reading_after_the_checkpoint(
    attempts: tuple[Path, PretrainReport, PretrainReport, Recorder],
) -> None:
    work, _, second, _ = attempts
    before = open_rows(work, pretrain_config(), one_rank())
    after = open_rows(work, second_config(), one_rank())
    read = Counter(row for step in range(4) for row in before.mixture.rows(step))
    own = Counter(row for step in range(4) for row in after.mixture.rows(step))
    assert not read & own  # 20 rows a source, so neither is through with its first epoch
    assert second.realised_replay_fraction == pytest.approx(0.5, abs=0.02)
    counts = Counter(source for source, _ in own.elements())
    assert second.epochs_by_source == (("domain-0", counts[0] / 20), ("general-0", counts[1] / 20))
    assert sum(tokens for _, tokens in second.tokens_by_source) == second.facts.tokens


def test_the_first_loss_of_a_second_attempt_is_that_of_its_start_on_its_own_rows(
    attempts: tuple[Path, PretrainReport, PretrainReport, Recorder],
) -> None:
    work, _, second, _ = attempts
    model = load_recipe(work, second_config().model, precision="fp32")
    model.config.use_cache = False  # with a cache, documents of a row would see one another
    rows = open_rows(work, second_config(), one_rank())
    losses, labels = 0.0, 0
    for place in range(4):
        row = rows.dataset[place]
        with torch.no_grad():
            logits = model(input_ids=row["input_ids"][None], position_ids=row["position_ids"][None]).logits[
                0, :-1
            ]
        wanted = row["labels"][1:]
        losses += float(torch.nn.functional.cross_entropy(logits, wanted, ignore_index=-100, reduction="sum"))
        labels += int((wanted != -100).sum())
    assert second.curve[0].loss_nats == pytest.approx(losses / labels, abs=1e-4)


def test_live_readings_name_the_measured_checkpoints_also_after_a_resume(tmp_path: Path) -> None:
    work = make_work_volume(tmp_path / "work", sequences=20)
    folder = work / "stages/pretrain-a1"
    told = Recorder(die_at_step=5, saves=folder / "try-1")
    with pytest.raises(Killed):
        attempt(work, 1, pretrain_config(), told)
    assert told.rows == [(), (2,), (2, 4)]
    again = Recorder(saves=folder / "try-2")
    report = attempt(work, 1, pretrain_config(), again, try_number=2)
    assert again.rows == [(2, 4), (2, 4, 6)]
    assert report.stall_seconds > 0


def test_all_weights_may_start_from_a_recipe(tmp_path: Path) -> None:
    """A full-parameter attempt from the mean of two adapters, half of the way from the base."""
    work = make_work_volume(tmp_path / "work", sequences=20)
    attempt(work, 1, pretrain_config())
    start = ModelReference(
        weights="model",
        adapters=(f"{FIRST}-6",),
        averaged_with=(Member(weights="model", adapters=(f"{FIRST}-4",)),),
        interpolation=0.5,
    )
    frozen = second_config(model=start, lora=None).optimizer.model_copy(update={"learning_rate": 0.0})
    report = attempt(work, 2, second_config(model=start, lora=None, optimizer=frozen, checkpoint_steps=(4,)))
    assert report.facts.checkpoints[0].domain_a_nats == pytest.approx(perplexity_loss(work, start), abs=1e-6)
    saved = load_recipe(work, ModelReference(weights=f"{SECOND}-4"), precision="fp32")
    recipe = load_recipe(work, start, precision="fp32")
    for (name, value), (_, wanted) in zip(saved.named_parameters(), recipe.named_parameters(), strict=True):
        assert torch.equal(value, wanted), name


def test_the_largest_live_reading_fits_into_what_the_operator_reads() -> None:
    rows = tuple(
        CheckpointFacts(
            step=10**9 + number,
            try_number=10**4,
            domain_a_nats=1.2345678901234567e-300,
            domain_b_nats=1.2345678901234567e-300,
            general_a_nats=1.2345678901234567e-300,
            general_b_nats=1.2345678901234567e-300,
            weights_digest="a" * 12,
        )
        for number in range(50)
    )
    reading = Progress(run_key="k" * 64, stage="pretrain", activity="x" * 200, checkpoints=rows)
    content = reading.model_dump_json(exclude_none=True).encode()
    assert len(content) < MAX_READING_BYTES / 3
    assert Progress.model_validate_json(content) == reading
