"""baseline, evaluate and verify on a toy volume: what they measure, pair, reuse and leave behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.base import Contract
from dapt_contract.run_identity import RunIdentity
from dapt_contract.stage_file import StageFile, write_report
from dapt_contract.stages.baseline import BaselineConfig
from dapt_contract.stages.common import EvaluationConfig, ModelReference, ProbeConfig, TaskConfig
from dapt_contract.stages.evaluate import EvaluateConfig
from dapt_contract.stages.verify import NamedModel, VerifyConfig
from dapt_trainer.context import SilentProgress, StageContext
from dapt_trainer.data.packing import data_manifest
from dapt_trainer.data.packing.data_manifest import read_manifest, write_manifest
from dapt_trainer.data.packing.prepared_files import digests_of_files
from dapt_trainer.errors import InputError, StopRequested
from dapt_trainer.evaluation import measure
from dapt_trainer.evaluation.base_model.document_losses import read_losses
from dapt_trainer.evaluation.items import read_items
from dapt_trainer.modeling.loading import spread_model
from dapt_trainer.stages import baseline, evaluate, verify

pytestmark = pytest.mark.torch
EVALUATION = EvaluationConfig(
    tasks=(
        TaskConfig(name="animals", side="domain", source="file://animals.jsonl"),
        TaskConfig(name="colours", side="general", source="file://colours.jsonl", few_shot=1),
    ),
    probes=(ProbeConfig(name="facts", side="domain", source="file://facts.jsonl"),),
    context_length_tokens=32,
)
BASE, TUNED = ModelReference(weights="model"), ModelReference(weights="tuned")
BASELINE_LINEAGE, CANDIDATE_LINEAGE = "stages/baseline-a1", "stages/evaluate-a1-a1-s8"


class Recorder(SilentProgress):
    def __init__(self, stop_at: str = "") -> None:
        self.readings: list[dict[str, Any]] = []
        self._stop_at = stop_at

    def update(self, **fields: Any) -> None:
        self.readings.append(fields)

    def stop_requested(self) -> bool:
        return bool(self._stop_at) and any(r.get("activity") == self._stop_at for r in self.readings)

    def activities(self) -> list[Any]:
        return [reading["activity"] for reading in self.readings if "activity" in reading]


def context(
    work: Path, stage: str, config: Contract, *, candidate: str | None = None, stop_at: str = ""
) -> StageContext:
    identity = RunIdentity(
        namespace="n", name="x", uid="u", stage=stage, attempt=1, candidate=candidate, try_number=1, fence=1
    )
    file = StageFile(run=identity, kind=stage, config=config)
    return StageContext(stage=file, work=work, scratch=work / "scratch" / stage, progress=Recorder(stop_at))


def run(work: Path, stage: Any, kind: str, config: Any, candidate: str | None = None) -> tuple[Any, Recorder]:
    its = context(work, kind, config, candidate=candidate)
    report = stage.run(config, its)
    write_report(work, its.stage, report)
    assert isinstance(its.progress, Recorder)
    return report, its.progress


@pytest.fixture(scope="module")
def measured(toy_work: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any, Recorder]:
    """A volume with a finished baseline and one evaluated candidate."""
    work = tmp_path_factory.mktemp("measured") / "work"
    shutil.copytree(toy_work, work)
    base, board = run(work, baseline, "baseline", BaselineConfig(model=BASE, evaluation=EVALUATION))
    config = EvaluateConfig(
        candidate="a1-s8", model=TUNED, evaluation=EVALUATION, base_items_path=BASELINE_LINEAGE,
        base_losses_digest=base.facts.losses_digest,
    )  # fmt: skip
    candidate, _ = run(work, evaluate, "evaluate", config, "a1-s8")
    return work, base, candidate, board


def verify_config(**changes: Any) -> VerifyConfig:
    return VerifyConfig(
        models=(
            NamedModel(name="base", model=BASE),
            NamedModel(name="chosen", model=TUNED),
            NamedModel(name="final", model=TUNED),
        ),
        evaluation=EVALUATION,
        base_items_path=BASELINE_LINEAGE,
        reuse_paths=(("base", BASELINE_LINEAGE), ("chosen", CANDIDATE_LINEAGE)),
        sample_prompts=2,
        sample_new_tokens=4,
    ).model_copy(update=changes)


def test_the_baseline_measures_everything_and_keeps_its_items(
    measured: tuple[Path, Any, Any, Recorder],
) -> None:
    work, report, _, board = measured
    base = report.facts.measure
    assert [(score.name, score.side, score.kind, score.items) for score in base.scores] == [
        ("animals", "domain", "task", 240),
        ("colours", "general", "task", 12),
        ("facts", "domain", "probe", 10),
    ]
    assert all(score.difference is None for score in base.scores)
    assert report.items_path == "stages/baseline-a1/try-1/items.jsonl"
    assert len(read_items(work, report.items_path)) == 262
    assert base.domain.a.tokens != base.domain.b.tokens
    assert board.activities() == [
        "loading model",
        "base: domain held-out text",
        "base: general held-out text",
        "base: task animals",
        "base: task colours",
        "base: facts",
    ]
    shown = [reading["domain_perplexity"] for reading in board.readings if "domain_perplexity" in reading]
    assert [value is None for value in shown] == [True, False]  # none until the model's own is measured
    fractions = [reading["fraction"] for reading in board.readings if "fraction" in reading]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_a_candidate_is_paired_with_the_base_items(measured: tuple[Path, Any, Any, Recorder]) -> None:
    work, base_report, report, _ = measured
    base_values = {(item.task, item.id): item.value for item in read_items(work, base_report.items_path)}
    items = [item for item in read_items(work, report.items_path) if item.task == "animals"]
    differences = [item.value - base_values[item.task, item.id] for item in items]
    score = report.facts.measure.scores[0]
    assert score.difference == pytest.approx(sum(differences) / 240)
    assert score.difference_standard_error > 0
    assert score.score_a is not None
    assert score.difference_b is not None
    assert report.facts.measure.scores[1].score_a is None
    assert report.facts.measure.digest != base_report.facts.measure.digest


def test_a_candidates_losses_are_paired_with_the_base_models_by_document(
    measured: tuple[Path, Any, Any, Recorder],
) -> None:
    work, base_report, report, _ = measured
    losses = read_losses(work, base_report.losses_path, base_report.facts.losses_digest)
    base, found = base_report.facts.measure, report.facts.measure
    for side, half in ((side, half) for side in ("domain", "general") for half in ("a", "b")):
        part = getattr(getattr(base, side), half)
        of_half = [loss for loss in losses if (loss.side, loss.half) == (side, half)]
        assert sum(loss.nats for loss in of_half) == pytest.approx(part.nll_nats)
        assert sum(loss.tokens for loss in of_half) == part.tokens
        assert part.difference_standard_error_nats is None
        assert getattr(getattr(found, side), half).difference_standard_error_nats > 0


def test_the_base_model_against_itself_differs_by_nothing(measured: tuple[Path, Any, Any, Recorder]) -> None:
    work, base_report, _, _ = measured
    config = EvaluateConfig(
        candidate="a1-s1", model=BASE, evaluation=EVALUATION, base_items_path=BASELINE_LINEAGE,
        base_losses_digest=base_report.facts.losses_digest,
    )  # fmt: skip
    report = evaluate.run(config, context(work, "evaluate", config, candidate="a1-s1"))
    domain, base_domain = report.facts.measure.domain, base_report.facts.measure.domain
    assert domain.b.loss_nats == base_domain.b.loss_nats
    assert domain.a.difference_standard_error_nats == 0.0
    assert [score.difference for score in report.facts.measure.scores] == [0.0, 0.0, 0.0]


def test_the_data_manifest_is_read_once(
    measured: tuple[Path, Any, Any, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, base, candidate, _ = measured
    schemas: list[str] = []
    read_envelope = data_manifest.read_envelope

    def noted(path: Path, schema: str, *arguments: Any, **options: Any) -> Any:
        schemas.append(schema)
        return read_envelope(path, schema, *arguments, **options)

    monkeypatch.setattr(data_manifest, "read_envelope", noted)
    config = EvaluateConfig(
        candidate="a1-s8",
        model=TUNED,
        evaluation=EVALUATION,
        base_items_path=BASELINE_LINEAGE,
        base_losses_digest=base.facts.losses_digest,
    )
    report = evaluate.run(config, context(work, "evaluate", config, candidate="a1-s8"))
    assert schemas == [data_manifest.DATA_SCHEMA]
    assert report.facts == candidate.facts


def test_verify_scores_nothing_twice(
    measured: tuple[Path, Any, Any, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, base, candidate, _ = measured

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(measure.Bench, "measure", never)
    report = verify.run(verify_config(), context(work, "verify", verify_config()))
    assert report.facts.final == candidate.facts.measure
    assert dict(report.facts.digests)["base"] == base.facts.measure.digest
    assert [(named.name, named.measure.digest) for named in report.measures] == list(report.facts.digests)
    assert [name for name, _ in report.samples[0].answers] == ["base", "chosen", "final"]
    assert len(report.samples) == 2
    assert report.samples[0].prompt.startswith("item 0: ")
    answers = dict(report.samples[0].answers)
    assert answers["chosen"] == answers["final"] != answers["base"]


def test_verify_measures_only_models_without_earlier_measures(
    measured: tuple[Path, Any, Any, Recorder],
) -> None:
    work, base, candidate, _ = measured
    digest = base.facts.losses_digest
    config = verify_config(reuse_paths=(), sample_prompts=0, base_losses_digest=digest)
    its = context(work, "verify", config)
    report = verify.run(config, its)
    assert report.facts.final == candidate.facts.measure
    assert report.measures[0].measure == base.facts.measure
    assert report.samples == ()
    assert isinstance(its.progress, Recorder)
    assert [name for name in its.progress.activities() if "task" in name] == [
        "base: task animals",
        "base: task colours",
        "chosen: task animals",
        "chosen: task colours",
    ]


@pytest.mark.parametrize("name", ["tasks/animals.jsonl", "held-out/general-b.jsonl"])
def test_nothing_is_measured_with_a_file_that_changed_since_it_was_prepared(
    toy_work: Path, tmp_path: Path, name: str
) -> None:
    work = tmp_path / "work"
    shutil.copytree(toy_work, work)
    files = tuple(digests_of_files(work).items())
    write_manifest(work / "data", read_manifest(work).model_copy(update={"files": files}), run_key="")
    lines = (work / name).read_bytes().splitlines(keepends=True)
    (work / name).write_bytes(b"".join(lines[:-1]))
    config = BaselineConfig(model=BASE, evaluation=EVALUATION)
    with pytest.raises(InputError, match=f"{name}: has the SHA-256 .* was written there"):
        baseline.run(config, context(work, "baseline", config))


def test_scores_are_not_paired_with_items_that_changed_since_the_baseline(
    measured: tuple[Path, Any, Any, Recorder], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    shutil.copytree(measured[0], work)
    items = work / measured[1].items_path
    items.write_bytes(items.read_bytes().replace(b'"value":0.0', b'"value":1.0', 1))
    config = EvaluateConfig(
        candidate="a1-s9", model=TUNED, evaluation=EVALUATION, base_items_path=BASELINE_LINEAGE
    )
    with pytest.raises(InputError, match=f"{items}: has the SHA-256 .* was written there"):
        evaluate.run(config, context(work, "evaluate", config, candidate="a1-s9"))


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer.json"])
def test_verify_asks_equal_weights_with_another_tokenizer_themselves(
    measured: tuple[Path, Any, Any, Recorder], file: str
) -> None:
    work = measured[0]
    other = work / f"with-{file}"
    shutil.copytree(work / "tuned", other)
    if file == "tokenizer.json":
        tokenizer = json.loads((other / file).read_text())
        tokenizer["model"]["merges"] = []  # letters alone
        (other / file).write_text(json.dumps(tokenizer))
    else:
        (other / file).write_text("{% for m in messages %}{{ m.content }} the bird{% endfor %}")
    final = NamedModel(name="final", model=ModelReference(weights=other.name))
    config = verify_config(
        models=(*verify_config().models[:2], final),
        evaluation=EvaluationConfig(context_length_tokens=32),
        reuse_paths=(),
    )
    report = verify.run(config, context(work, "verify", config))
    digests = dict(report.facts.digests)
    assert digests["final"] != digests["chosen"]
    assert any(answers["final"] != answers["chosen"] for answers in (dict(s.answers) for s in report.samples))


def test_a_stop_ends_the_stage_between_batches(toy_work: Path, tmp_path: Path) -> None:
    config = BaselineConfig(model=BASE, evaluation=EVALUATION)
    work = tmp_path / "work"
    shutil.copytree(toy_work, work)
    with pytest.raises(StopRequested) as caught:
        baseline.run(config, context(work, "baseline", config, stop_at="base: task animals"))
    assert str(caught.value) == "stopped during base: task animals; the next run measures again"
    assert not (work / "stages").exists()


def test_without_a_baseline_a_candidate_cannot_be_judged(toy_work: Path) -> None:
    config = EvaluateConfig(
        candidate="a1-s8", model=TUNED, evaluation=EVALUATION, base_items_path="stages/none"
    )
    with pytest.raises(InputError) as caught:
        evaluate.run(config, context(toy_work, "evaluate", config))
    assert (
        str(caught.value)
        == f"{toy_work}/stages/none: no finished baseline to compare with; run baseline first"
    )


def expecting(work: Path, digest: str, **model: Any) -> EvaluateConfig:
    return EvaluateConfig(
        candidate="a1-s8",
        model=ModelReference(**({"weights": "tuned"} | model)),
        evaluation=EVALUATION,
        base_items_path=BASELINE_LINEAGE,
        expected_digest=digest,
    )


def test_weights_with_another_digest_are_not_scored(
    measured: tuple[Path, Any, Any, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, _, candidate, _ = measured
    digest = candidate.facts.measure.digest
    monkeypatch.setattr(spread_model, "load_model", None)
    config = expecting(work, "0123456789ab")
    with pytest.raises(InputError) as caught:
        evaluate.run(config, context(work, "evaluate", config))
    assert str(caught.value) == (
        f"a1-s8: the weights at tuned have the digest {digest[:12]}, and 0123456789ab is the one that was chosen for "
        "evaluation: the files changed since they were written, so nothing is scored; restore them, or train again"
    )


def test_the_expected_digest_is_the_recipes_or_its_newest_parts(
    measured: tuple[Path, Any, Any, Recorder],
) -> None:
    work, base, candidate, _ = measured
    own, first = candidate.facts.measure.digest, base.facts.measure.digest
    assert evaluate.checked_digest(expecting(work, own[:12]), work) == own
    chain = {"weights": "model", "adapters": ("tuned",)}
    whole = evaluate.checked_digest(expecting(work, own[:12], **chain), work)
    assert whole not in (own, first)
    assert evaluate.checked_digest(expecting(work, whole[:12], **chain), work) == whole
    with pytest.raises(InputError):
        evaluate.checked_digest(expecting(work, first[:12], **chain), work)
    blend = {"interpolation": 0.5}
    mixed = evaluate.checked_digest(expecting(work, "", **blend), work)
    assert evaluate.checked_digest(expecting(work, mixed[:12], **blend), work) == mixed
    with pytest.raises(InputError, match=mixed[:12]):
        evaluate.checked_digest(expecting(work, own[:12], **blend), work)


def test_all_bad_files_are_named_before_a_model_is_loaded(
    toy_work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = EvaluationConfig(
        tasks=(TaskConfig(name="none", side="domain", source="file://x"),),
        probes=(ProbeConfig(name="nothing", side="domain", source="file://x"),),
        context_length_tokens=32,
    )
    config = BaselineConfig(model=BASE, evaluation=bad)
    monkeypatch.setattr(spread_model, "load_model", None)
    with pytest.raises(InputError) as caught:
        baseline.run(config, context(toy_work, "baseline", config))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        f"{toy_work}/probes/nothing.jsonl",
        f"{toy_work}/tasks/none.jsonl",
    ]


def test_a_baseline_of_equal_model_data_and_settings_is_read_again(
    measured: tuple[Path, Any, Any, Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    shutil.copytree(measured[0], work)
    loads: list[str] = []
    load_model = spread_model.load_model

    def counted(*arguments: Any, **options: Any) -> Any:
        loads.append(str(arguments[1].weights))
        return load_model(*arguments, **options)

    monkeypatch.setattr(spread_model, "load_model", counted)

    def again(attempt: int, evaluation: EvaluationConfig = EVALUATION) -> Any:
        config = BaselineConfig(model=BASE, evaluation=evaluation)
        identity = RunIdentity(
            namespace="n", name="other", uid="v", stage="baseline", attempt=attempt, try_number=1, fence=1
        )
        file = StageFile(run=identity, kind="baseline", config=config)
        its = StageContext(stage=file, work=work, scratch=work / "scratch", progress=SilentProgress())
        report = baseline.run(config, its)
        write_report(work, file, report)
        return report

    first = measured[1]
    second = again(2)
    assert loads == []
    assert (second.facts, second.key, second.reused_from) == (first.facts, first.key, BASELINE_LINEAGE)
    assert second.items_path == "stages/baseline-a2/try-1/items.jsonl"
    assert read_items(work, second.items_path) == read_items(work, first.items_path)
    assert second.losses_path == "stages/baseline-a2/try-1/losses.jsonl"
    assert read_losses(work, second.losses_path, first.facts.losses_digest)
    moved = tuple(task.model_copy(update={"source": "file://elsewhere.jsonl"}) for task in EVALUATION.tasks)
    assert (
        again(3, EVALUATION.model_copy(update={"tasks": moved})).key == first.key
    )  # only the content counts
    limited = again(4, EVALUATION.model_copy(update={"limit": 5}))
    assert loads == ["model"]
    assert limited.reused_from == ""
    file = work / "tasks" / "colours.jsonl"
    file.write_text(file.read_text().replace("item 3", "thing 3"))
    assert again(5).key not in (first.key, limited.key)
    assert loads == ["model", "model"]
