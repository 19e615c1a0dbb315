"""Tests that measured results on the work volume count only with the signature of the adaptation's key."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dapt_contract.envelope import SignatureError, read_envelope, write_envelope
from dapt_contract.measure import Measure, Perplexity, SidePerplexity
from dapt_contract.run_identity import RunIdentity
from dapt_contract.stage_file import StageFile, find_report, finished_report, write_report
from dapt_contract.stages.baseline import BaselineConfig, BaselineFacts, BaselineReport
from dapt_contract.stages.common import EvaluationConfig, ModelReference
from dapt_contract.stages.evaluate import EvaluateFacts
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.earlier_results import base_items, kept_results, measured_before
from dapt_trainer.evaluation.items import Item, items_digest, write_items
from dapt_trainer.training.regularization.fisher_store import FisherKey, find_fisher, save_fisher
from support.toy_training import KEY

pytestmark = pytest.mark.torch
OTHER_KEY = b"a key of somebody else, long enough"
LINEAGE = "stages/baseline-a1"
REPORT = f"{LINEAGE}/try-1/report.json"
ITEMS = (Item(task="codes", id="1", value=1.0), Item(task="codes", id="2", value=0.0))


def measure(nats: float) -> Measure:
    half = Perplexity(nll_nats=nats, tokens=100, bytes=400)
    return Measure(digest="d", domain=SidePerplexity(a=half, b=half), general=SidePerplexity(a=half, b=half))


def stage() -> StageFile:
    identity = RunIdentity(
        namespace="n", name="x", uid="u", stage="baseline", attempt=1, try_number=1, fence=1
    )
    config = BaselineConfig(
        model=ModelReference(weights="model"), evaluation=EvaluationConfig(context_length_tokens=32)
    )
    return StageFile(run=identity, kind="baseline", config=config)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A volume with a signed report of the baseline and its items."""
    write_items(tmp_path / LINEAGE / "try-1/items.jsonl", ITEMS)
    report = BaselineReport(
        facts=BaselineFacts(measure=measure(300.0)),
        items_path=f"{LINEAGE}/try-1/items.jsonl",
        items_digest=items_digest(ITEMS),
        key="k",
    )
    write_report(tmp_path, stage(), report, key=KEY)
    return tmp_path


def better(work: Path) -> None:
    path = work / REPORT
    path.write_text(path.read_text().replace("300.0", "100.0"))


def unsigned(work: Path) -> None:
    envelope = json.loads((work / REPORT).read_text())
    (work / REPORT).write_text(json.dumps(envelope | {"signature": ""}))


def of_somebody_else(work: Path) -> None:
    report = find_report(work, LINEAGE, "baseline")
    assert report is not None
    write_report(work, stage(), report, key=OTHER_KEY)


def of_another_run(work: Path) -> None:
    envelope = json.loads((work / REPORT).read_text())
    (work / REPORT).write_text(json.dumps(envelope | {"run_key": "another"}))


CHANGES: tuple[Callable[[Path], None], ...] = (better, unsigned, of_somebody_else, of_another_run)


def test_signed_results_are_read(work: Path) -> None:
    assert finished_report(work, stage(), key=KEY) == find_report(work, LINEAGE, "baseline")
    assert measured_before(work, [LINEAGE], KEY) == {"d": measure(300.0)}
    found = kept_results(work, "k", KEY)
    assert found is not None
    assert found[1] == ITEMS


@pytest.mark.parametrize("change", CHANGES)
def test_changed_results_are_refused_in_one_sentence(
    work: Path, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    change(work)
    with caplog.at_level(logging.WARNING):
        assert finished_report(work, stage(), key=KEY) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"{work}/{REPORT}: its signature does not match this adaptation's key: it was altered, was written by another"
        " adaptation or by a version that did not sign it, or the key was lost and made again since; it is not used"
    ]
    assert measured_before(work, [LINEAGE], KEY) == {}
    assert kept_results(work, "k", KEY) is None


def test_results_without_a_key_are_read_as_they_are(work: Path) -> None:
    better(work)
    assert measured_before(work, [LINEAGE]) == {"d": measure(100.0)}


@pytest.mark.parametrize("nats", [float("inf"), float("nan"), 1e300, 0.1 + 0.2, -0.0, 1e22])
def test_signature_covers_a_number_as_it_is_written(tmp_path: Path, nats: float) -> None:
    facts = EvaluateFacts(candidate="é\u2028", measure=measure(nats))
    write_envelope(tmp_path / "e.json", "dapt.test", facts, key=KEY)
    _, found = read_envelope(tmp_path / "e.json", "dapt.test", EvaluateFacts, key=KEY)
    assert repr(found) == repr(facts)
    with pytest.raises(SignatureError):
        read_envelope(tmp_path / "e.json", "dapt.test", EvaluateFacts, key=OTHER_KEY)


def test_folder_that_is_no_runs_hides_no_report(work: Path) -> None:
    for name in ("try-x", "try-²", "try-99999999999999999999"):
        (work / LINEAGE / name).mkdir()
        (work / LINEAGE / name / "report.json").write_bytes((work / REPORT).read_bytes())
    assert finished_report(work, stage(), key=KEY) is not None


def test_base_items_that_the_baseline_did_not_report_are_refused(work: Path) -> None:
    assert base_items(work, LINEAGE, items_digest(ITEMS)) == ITEMS
    forged = (ITEMS[0].model_copy(update={"value": 0.0}), ITEMS[1])
    write_items(work / LINEAGE / "try-1/items.jsonl", forged)
    # With a report to match, which whoever changes the items can write too.
    path = work / REPORT
    path.write_text(path.read_text().replace(items_digest(ITEMS), items_digest(forged)))
    assert base_items(work, LINEAGE) == forged
    with pytest.raises(InputError, match=r"items\.jsonl: has the SHA-256 .* was written there"):
        base_items(work, LINEAGE, items_digest(ITEMS))


@pytest.mark.parametrize("change", CHANGES)
def test_base_items_of_a_report_without_the_signature_are_refused(
    work: Path, change: Callable[[Path], None]
) -> None:
    assert base_items(work, LINEAGE, signing_key=KEY) == ITEMS
    change(work)
    with pytest.raises(InputError, match="no finished baseline to compare with; run baseline first"):
        base_items(work, LINEAGE, signing_key=KEY)
    assert base_items(work, LINEAGE, items_digest(ITEMS), KEY) == ITEMS


@pytest.mark.parametrize("kind", ["link", "folder that is a link", "pipe", "folder", "endless"])
def test_base_items_are_read_from_a_regular_file_alone(work: Path, kind: str) -> None:
    path = work / LINEAGE / "try-1/items.jsonl"
    moved = path.rename(work / "moved.jsonl")
    if kind == "link":
        path.symlink_to(moved)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "endless":
        with path.open("wb") as file:
            file.truncate(2**41)
    else:
        named = f"{LINEAGE}/other/moved.jsonl"
        (work / LINEAGE / "other").symlink_to(work)
        report = work / REPORT
        report.write_text(report.read_text().replace(f"{LINEAGE}/try-1/items.jsonl", named))
    with pytest.raises(InputError, match=r"items cannot be read \(IrregularFileError\); run baseline again"):
        base_items(work, LINEAGE, items_digest(ITEMS))


@pytest.fixture
def fisher(tmp_path: Path) -> tuple[FisherKey, Path]:
    """Stored Fisher information and its manifest."""
    key = FisherKey(
        weights_digest="w",
        general_digest="g",
        samples=2,
        seed=0,
        group="all",
        names_digest="n",
        precision="fp32",
        document_boundaries=True,
    )
    folder = tmp_path / "stages/pretrain-a1/try-1"
    folder.mkdir(parents=True)
    ranks = Ranks(0, 0, 1, torch.device("cpu"))
    save_fisher(folder, key, {"a": torch.ones(2)}, ranks, mean=1.0, run_key="r", signing_key=KEY)
    return key, folder / f"{key.name}.json"


def test_fisher_information_counts_only_with_its_signature(
    tmp_path: Path, fisher: tuple[FisherKey, Path], caplog: pytest.LogCaptureFixture
) -> None:
    key, path = fisher
    stored = find_fisher(tmp_path, key, KEY)
    assert stored is not None
    assert stored.tensor("a").tolist() == [1.0, 1.0]
    path.write_text(path.read_text().replace('"mean": 1.0', '"mean": 2.0'))
    assert find_fisher(tmp_path, key, KEY) is None
    assert caplog.records[-1].getMessage().endswith("; the Fisher information is measured again")


def test_fisher_file_that_is_a_link_is_not_opened(tmp_path: Path, fisher: tuple[FisherKey, Path]) -> None:
    key, path = fisher
    (part,) = path.with_suffix("").iterdir()
    part.symlink_to(part.rename(tmp_path / "moved.safetensors"))
    assert find_fisher(tmp_path, key, KEY) is None
