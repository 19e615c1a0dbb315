"""Tests align: the loss is that of the paper, the reference is the start model, the result is a loadable recipe."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.measure import Side
from dapt_contract.stage_file import write_report
from dapt_contract.stages.align import AlignConfig, AlignReport
from dapt_contract.stages.baseline import BaselineConfig
from dapt_contract.stages.common import (
    DistributionConfig,
    EvaluationConfig,
    LoraConfig,
    ModelReference,
    OptimizerConfig,
    ScheduleConfig,
)
from dapt_contract.stages.finetune import FinetuneConfig
from dapt_contract.stages.tuning_data import SHOWN_DIGITS
from dapt_contract.stages.verify import NamedModel, VerifyConfig
from dapt_trainer.context import ReadingValue, SilentProgress
from dapt_trainer.data.chat.tokens import Pair
from dapt_trainer.data.packing.held_out import HALVES, read_held_out
from dapt_trainer.digests import sha256_of_file, weights_digest
from dapt_trainer.errors import DivergedError, InputError, StopRequested
from dapt_trainer.stages import align, baseline, finetune, verify
from dapt_trainer.training.tuning.preference_pairs import ShuffledPairs, tokenize_pairs
from support.toy_learning import learn_rows
from support.toy_training import END_OF_TEXT, FILTERS, make_context, make_tokenizer, make_work_volume
from support.tuning_texts import write_instructions, write_pairs
from support.written import load_recipe

pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]
BETA = 0.3


def config(**changes: Any) -> AlignConfig:
    defaults: dict[str, Any] = {
        "model": ModelReference(weights="model"),
        "beta": BETA,
        "lora": LoraConfig(rank=4, alpha=8),
        "epochs": 2.0,
        "sequence_length_tokens": 64,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "optimizer": OptimizerConfig(learning_rate=5e-3, weight_decay=0.0, gradient_clip=1000.0),
        "schedule": ScheduleConfig(warmup_fraction=0.0, minimum_ratio=1.0),
        "distribution": DistributionConfig(zero_stage=2, precision="fp32"),
    }
    return AlignConfig(**(defaults | changes))


def aligned(work: Path, settings: AlignConfig, **options: Any) -> AlignReport:
    return align.run(settings, make_context(work, work / "scratch", settings, kind="align", **options))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    make_work_volume(tmp_path)
    write_pairs(
        tmp_path, [(f"q{n}" * (1 + n % 3), f"yes {n}" * (1 + n % 2), "no" * n + "!") for n in range(9)]
    )
    return tmp_path


def pairs_of(work: Path, length: int = 64) -> tuple[Pair, ...]:
    return tokenize_pairs(make_tokenizer(), work / "preferences", sequence_length_tokens=length).kept


def log_probability(model: Any, example: Any) -> Any:
    """Sum over the answer's tokens, one text at a time, nothing padded."""
    import torch

    ids = torch.tensor(list(example.input_ids))
    logits = model(input_ids=ids[None]).logits[0, :-1].float()
    found = logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return found[torch.tensor([label != -100 for label in example.labels[1:]])].sum()


def test_two_steps_equal_the_papers_loss_computed_by_hand(work: Path) -> None:
    """Equation 7 of Rafailov et al. 2023, pair by pair; AdamW by torch."""
    import torch

    settings = config(lora=None, epochs=0.8)
    report = aligned(work, settings)
    pairs = pairs_of(work)
    rows = ShuffledPairs(pairs, rows=8, seed=0)
    policy, reference = (load_recipe(work, settings.model, precision="fp32") for _ in range(2))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-3, betas=(0.9, 0.95), weight_decay=0.0)
    assert report.facts.steps == 2
    for step in range(2):
        margins = []
        for row in range(4 * step, 4 * step + 4):
            pair = pairs[rows.number(row)]
            with torch.no_grad():
                held = log_probability(reference, pair.chosen) - log_probability(reference, pair.rejected)
            wanted = log_probability(policy, pair.chosen) - log_probability(policy, pair.rejected)
            margins.append(BETA * (wanted - held))
        loss = -torch.stack(margins).sigmoid().log().mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1000.0)
        point = report.curve[step]
        assert point.loss_nats == pytest.approx(float(loss.detach()), abs=1e-5)
        assert point.gradient_norm == pytest.approx(float(norm), rel=1e-4)
        optimizer.step()
    assert report.facts.first_loss_nats == pytest.approx(math.log(2), abs=1e-6)
    rewards = torch.stack(margins).detach()
    assert report.facts.reward_accuracy == float((rewards > 0).float().mean())
    assert report.facts.reward_margin == pytest.approx(float(rewards.mean()), abs=1e-5)


@pytest.mark.parametrize(("precision", "tolerance_nats"), [("fp32", 1e-6), ("bf16", 1e-6)])
def test_at_the_start_model_and_reference_are_equal(
    work: Path, precision: str, tolerance_nats: float
) -> None:
    settings = config(distribution=DistributionConfig(zero_stage=2, precision=precision))
    facts = aligned(work, settings).facts
    assert facts.first_loss_nats == pytest.approx(math.log(2), abs=tolerance_nats)
    assert facts.last_loss_nats < 0.68
    assert facts.reward_accuracy > 0.5
    assert facts.reward_margin > 0.0


def test_adapters_are_appended_to_a_recipe_and_a_repeated_run_has_the_same_weights(work: Path) -> None:
    write_instructions(work, [(f"what is {number}", f"it is {number}") for number in range(4)])
    tuning = FinetuneConfig(
        **config(global_batch_size=2, micro_batch_size=1).model_dump(
            exclude={"beta", "epochs", "data_folder"}
        ),
        total_steps=1,
    )
    start = finetune.run(tuning, make_context(work, work / "scratch", tuning, kind="finetune")).facts.model
    settings = config(model=start)
    first, again = aligned(work, settings), aligned(work, settings, try_number=2)
    folder = "stages/align-a1/try-1/model"
    assert first.facts.model == ModelReference(
        weights="model", tuned=("stages/finetune-a1/try-1/model", folder)
    )
    assert first.facts.weights_digest == again.facts.weights_digest == weights_digest(work / folder)
    assert first.facts.first_loss_nats == pytest.approx(math.log(2), abs=1e-6)
    assert (first.facts.steps, first.facts.pairs) == (5, 9)
    tensors = load_recipe(work, first.facts.model, precision="fp32").state_dict()
    before = load_recipe(work, start, precision="fp32").state_dict()
    assert any(not tensors[name].equal(before[name]) for name in before)


def test_all_weights_give_a_model_folder(work: Path) -> None:
    report = aligned(work, config(lora=None, optimizer=OptimizerConfig(learning_rate=1e-3)))
    assert report.facts.model == ModelReference(weights="stages/align-a1/try-1/model")
    load_recipe(work, report.facts.model, precision="bf16")


def test_pairs_that_do_not_fit_are_counted_and_refused_when_none_is_left(work: Path) -> None:
    write_pairs(work, [("q", "yes", "no"), ("q" * 40, "yes", "no"), ("q", "y" * 40, "no")])
    found = tokenize_pairs(make_tokenizer(), work / "preferences", sequence_length_tokens=30)
    assert (len(found.kept), found.cut, found.dropped, found.equal) == (2, 1, 1, 0)
    write_pairs(work, [("q" * 40, "yes", "no")])
    with pytest.raises(InputError) as caught:
        aligned(work, config(sequence_length_tokens=30))
    assert str(caught.value) == (
        f"{work}/preferences: none of 1 pairs has a prompt and two different answers begun within 30 tokens; raise "
        "finetuning.sequenceLength or corpus.sequenceLength, or shorten the prompts"
    )


def test_pairs_that_changed_since_they_were_prepared_are_not_learned_from(work: Path) -> None:
    path = work / "preferences/train.jsonl"
    settings = config(data_digest=sha256_of_file(path)[:SHOWN_DIGITS])
    path.write_text(path.read_text().rpartition('{"chosen"')[0])
    with pytest.raises(InputError, match=f"{path}: has the SHA-256 .* was written there"):
        aligned(work, settings)


def test_a_pair_that_is_equal_after_the_cut_is_dropped_and_counted(work: Path) -> None:
    write_pairs(work, [("q", "y" * 30 + "A", "y" * 30 + "B"), ("q", "yes", "no")])
    found = tokenize_pairs(make_tokenizer(), work / "preferences", sequence_length_tokens=40)
    assert (len(found.kept), found.cut, found.dropped, found.equal) == (1, 0, 0, 1)
    facts = aligned(work, config(sequence_length_tokens=40)).facts
    assert (facts.pairs, facts.equal_pairs) == (1, 1)


class Stopping(SilentProgress):
    """Requests a stop once it has seen a step, and counts the heartbeats."""

    def __init__(self) -> None:
        self.activities: list[str] = []
        self.beats = 0
        self.step = 0

    def update(self, **fields: ReadingValue) -> None:
        if "activity" in fields:
            self.activities.append(str(fields["activity"]))
        step = fields.get("step")
        if step:
            assert isinstance(step, int)
            self.step = step

    def heartbeat(self) -> None:
        self.beats += 1

    def stop_requested(self) -> bool:
        return self.step > 0


def test_a_stopped_run_resumes_and_ends_as_an_unbroken_one(work: Path) -> None:
    settings, progress = config(), Stopping()
    with pytest.raises(StopRequested) as caught:
        aligned(work, settings, progress=progress)
    assert str(caught.value) == "preference tuning: stop requested at step 2 of 5; its checkpoint is complete"
    assert progress.activities == [
        "tokenizing preference pairs", "looking for checkpoints", "loading the model", "the reference reads the pairs",
        "training", "training", "saving checkpoint 2",
    ]  # fmt: skip
    assert progress.beats >= 6 + 4  # micro-batches of the reference, and of two steps
    resumed = aligned(work, settings, try_number=2)
    shutil.rmtree(work / "stages" / "align-a1")
    whole = aligned(work, settings)
    assert resumed.facts.weights_digest == whole.facts.weights_digest
    assert [point.loss_nats for point in resumed.curve] == [point.loss_nats for point in whole.curve]
    assert resumed.facts.reward_margin == whole.facts.reward_margin
    assert [path.name for path in (work / "stages" / "align-a1" / "try-1").glob("checkpoint*")] == []


def test_a_loss_that_stays_no_number_ends_the_run(work: Path) -> None:
    settings = config(lora=None, optimizer=OptimizerConfig(learning_rate=1e30))
    with pytest.raises(DivergedError) as caught:
        aligned(work, settings)
    assert str(caught.value) == (
        "preference tuning stopped at step 4 of 5: 3 steps in a row had a loss or gradient that is not a number; lower "
        "preference.optimizer.learningRate"
    )


def teach_base_model(work: Path) -> None:
    """Let the base model learn the held-out texts a little: the baseline refuses one that predicts by chance."""
    model = load_recipe(work, ModelReference(weights="model"), precision="fp32")
    sides: tuple[Side, ...] = ("domain", "general")
    documents = [
        document for side in sides for half in HALVES for document in read_held_out(work, side, half)
    ]
    learn_rows(model, [document.ids for document in documents], end_id=END_OF_TEXT)
    model.save_pretrained(work / "model")


def test_four_models_of_a_chain_are_compared_and_each_answers(work: Path) -> None:
    teach_base_model(work)
    write_instructions(work, [(f"what is {number}", f"it is {number}") for number in range(4)])
    evaluation = EvaluationConfig(context_length_tokens=32)
    base = ModelReference(weights="model")

    def stage(program: Any, kind: str, settings: Any) -> Any:
        context = make_context(work, work / "scratch", settings, kind=kind)
        report = program.run(settings, context)
        write_report(work, context.stage, report, key=context.signing_key)
        return report

    measured = stage(baseline, "baseline", BaselineConfig(model=base, evaluation=evaluation))
    tuning = FinetuneConfig(**config().model_dump(exclude={"beta", "epochs", "data_folder"}), epochs=1.0)
    tuned = stage(finetune, "finetune", tuning)
    aligned_model = stage(align, "align", config(model=tuned.facts.model)).facts.model
    assert aligned_model.tuned == ("stages/finetune-a1/try-1/model", "stages/align-a1/try-1/model")
    models = {"base": base, "chosen": base, "finetuned": tuned.facts.model, "final": aligned_model}
    compared = stage(
        verify,
        "verify",
        VerifyConfig(
            models=tuple(NamedModel(name=name, model=model) for name, model in models.items()),
            evaluation=evaluation,
            base_items_path="stages/baseline-a1",
            reuse_paths=(("base", "stages/baseline-a1"),),
            sample_prompts=1,
            sample_new_tokens=4,
        ),
    )
    assert [named.name for named in compared.measures] == list(models)
    perplexities = [named.measure.general.both.perplexity for named in compared.measures]
    assert perplexities[0] == perplexities[1] == measured.facts.measure.general.both.perplexity
    assert len(set(perplexities)) == 3
    assert [name for name, _ in compared.samples[0].answers] == list(models)
    assert compared.facts.final == compared.measures[3].measure
