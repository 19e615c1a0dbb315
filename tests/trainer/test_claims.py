"""Tests that a claim on a lineage counts only where this adaptation's key signed it for this lineage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dapt_contract.envelope import write_envelope
from dapt_contract.run_identity import RunIdentity
from dapt_trainer.checkpoints.fence import (
    CLAIM_FILE,
    CLAIM_SCHEMA,
    Claim,
    read_claim,
    require_not_superseded,
    write_claim,
)
from dapt_trainer.errors import InfrastructureError

KEY, OTHER_KEY = b"k" * 32, b"o" * 32


def identity(fence: int, attempt: int = 1) -> RunIdentity:
    return RunIdentity(
        namespace="tests", name="a", uid="0", stage="pretrain", attempt=attempt, try_number=fence, fence=fence
    )


@pytest.fixture
def lineage(tmp_path: Path) -> Path:
    folder = tmp_path / "pretrain-a1"
    write_claim(folder, identity(2), ("stages/pretrain-a1/try-1/checkpoint-2",), KEY)
    return folder


def with_higher_fence(path: Path) -> None:
    envelope = json.loads(path.read_text())
    envelope["body"]["fence"] = 99
    path.write_text(json.dumps(envelope))


def with_one_more_adopted(path: Path) -> None:
    envelope = json.loads(path.read_text())
    envelope["body"]["adopted"].append("stages/pretrain-a1/try-1/checkpoint-9")
    path.write_text(json.dumps(envelope))


def without_a_signature(path: Path) -> None:
    write_envelope(path, CLAIM_SCHEMA, Claim(fence=99, try_number=1, lineage="pretrain-a1"))


def with_another_key(path: Path) -> None:
    claim = Claim(fence=99, try_number=1, lineage="pretrain-a1")
    write_envelope(path, CLAIM_SCHEMA, claim, key=OTHER_KEY)


def from_another_lineage(path: Path) -> None:
    write_claim(path.parents[1] / "pretrain-a2", identity(99, attempt=2), (), KEY)
    shutil.copy(path.parents[1] / "pretrain-a2" / CLAIM_FILE, path)


def test_claim_of_the_key_is_read_and_stops_older_runs(lineage: Path) -> None:
    claim = read_claim(lineage, KEY)
    assert claim is not None
    assert (claim.fence, claim.lineage, len(claim.adopted)) == (2, "pretrain-a1", 1)
    require_not_superseded(lineage, identity(2), KEY)
    with pytest.raises(InfrastructureError, match=r"run 2 \(fence 2\) has taken over pretrain-a1"):
        require_not_superseded(lineage, identity(1), KEY)


@pytest.mark.parametrize(
    "change",
    [with_higher_fence, with_one_more_adopted, without_a_signature, with_another_key, from_another_lineage],
)
def test_claim_of_others_stops_no_run_and_is_named_in_the_log(
    lineage: Path, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    change(lineage / CLAIM_FILE)
    assert read_claim(lineage, KEY) is None
    require_not_superseded(lineage, identity(3), KEY)
    assert all(record.getMessage().endswith("; it is not used") for record in caplog.records)
    assert caplog.records
