"""Tests that the recorded digest of prepared data covers whatever later stages read of its manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.layout import DATA
from dapt_contract.stages.prepare import PrepareReport
from dapt_trainer.data.packing.data_manifest import (
    MANIFEST,
    DataManifest,
    ShardFile,
    ShardManifest,
    manifest_digest,
    read_manifest,
    write_manifest,
)
from dapt_trainer.data.packing.recorded_data import content_digest, is_as_reported, require_recorded_data
from dapt_trainer.errors import InputError
from support.builders import prepare_facts


def manifest() -> DataManifest:
    shards = tuple(
        ShardManifest(
            name=f"{side}-0", side=side, index=0, source="s", weight=1.0, sequences=1, tokens=8, positions=8,
            filled_positions=8, documents=1, cut_documents=0,
            files=(ShardFile(name="tokens.bin", size_bytes=16, sha256="1" * 64),),
        )
        for side in ("domain", "general")
    )  # fmt: skip
    return DataManifest(
        config_digest="sha256:1", inputs_digest="sha256:2", data_digest="", sequence_length_tokens=8,
        token_type="uint16", end_of_text_id=0, document_boundaries=True, shards=shards,
        files=(("held-out/domain-a.jsonl", "2" * 64),),
        report=PrepareReport(facts=prepare_facts(), seconds_by_step=(("packing", 1.0),)),
    ).with_digest()  # fmt: skip


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / DATA).mkdir()
    write_manifest(tmp_path / DATA, manifest(), run_key="d/n/prepare-a1/try-1")
    return tmp_path


def rewrite(work: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = work / DATA / MANIFEST
    envelope = json.loads(path.read_text())
    change(envelope["body"])
    path.write_text(json.dumps(envelope))


def set_to(value: object, *path: str | int) -> Callable[[dict[str, Any]], object]:
    def change(body: Any) -> None:
        for name in path[:-1]:
            body = body[name]
        body[path[-1]] = value

    return change


def test_manifest_that_prepare_reported_is_read(work: Path) -> None:
    digest = read_manifest(work).report.facts.data_digest
    assert digest == read_manifest(work).data_digest == manifest().data_digest
    assert digest.startswith("manifest-sha256:")
    assert require_recorded_data(work, digest) == read_manifest(work)
    rewrite(work, set_to([["packing", 2.0]], "report", "seconds_by_step"))
    rewrite(work, set_to(["Disk space is low."], "report", "facts", "warnings"))
    assert require_recorded_data(work, digest) is not None


@pytest.mark.parametrize(
    "change",
    [
        set_to(9.0, "shards", 0, "weight"),
        set_to("general", "shards", 0, "side"),
        set_to(1, "shards", 1, "index"),
        set_to("domain-1", "shards", 0, "name"),
        set_to(2, "shards", 0, "sequences"),
        set_to("3" * 64, "shards", 0, "files", 0, "sha256"),
        set_to("uint32", "token_type"),
        set_to(7, "end_of_text_id"),
        set_to(7, "begin_of_text_id"),
        set_to(False, "document_boundaries"),
        set_to(16, "sequence_length_tokens"),
        set_to([], "files"),
        set_to("sha256:9", "config_digest"),
        set_to("sha256:9", "inputs_digest"),
        set_to(9, "report", "facts", "domain_tokens"),
        set_to([["instructions", "a", 1, "4" * 64]], "report", "facts", "tuning_data"),
        lambda body: body["shards"].reverse(),
    ],
)
def test_manifest_that_says_something_else_of_the_data_is_refused(
    work: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    recorded = manifest().data_digest
    rewrite(work, change)
    with pytest.raises(InputError) as caught:
        require_recorded_data(work, recorded)
    shown = recorded.rpartition(":")[2][:12]
    assert str(caught.value).startswith(f"{work}/data/manifest.json: lists data with the digest ")
    assert str(caught.value).endswith(
        f", and {shown} is what prepare reported: the work volume changed since, so the data is not used; restore it, "
        "or create a new DomainAdaptation, which prepares it again"
    )


def test_manifest_of_an_earlier_version_is_compared_by_its_rule(work: Path) -> None:
    recorded = content_digest(work, manifest())
    assert recorded.startswith("sha256:")
    rewrite(work, set_to(9.0, "shards", 0, "weight"))
    require_recorded_data(work, recorded)
    rewrite(work, set_to("3" * 64, "shards", 0, "files", 0, "sha256"))
    with pytest.raises(InputError, match="lists data with the digest"):
        require_recorded_data(work, recorded)


def test_manifest_without_the_fields_of_a_later_version_keeps_its_digest(work: Path) -> None:
    rewrite(work, lambda body: body.pop("begin_of_text_id"))
    body = json.loads((work / DATA / MANIFEST).read_text())["body"]
    require_recorded_data(work, manifest_digest(body))


def test_rerun_believes_the_reported_manifest_alone(work: Path) -> None:
    honest = manifest()
    forged = honest.model_copy(update={"end_of_text_id": 7})
    assert is_as_reported(work, honest, honest.data_digest)
    assert not is_as_reported(work, honest, "manifest-sha256:1")
    write_manifest(work / DATA, forged, run_key="")
    assert not is_as_reported(work, forged, honest.data_digest)
    coherent = forged.with_digest()
    write_manifest(work / DATA, coherent, run_key="")
    assert not is_as_reported(work, coherent, honest.data_digest)
