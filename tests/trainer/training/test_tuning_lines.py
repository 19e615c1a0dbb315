"""The examples and pairs that a stage opens are those that were prepared for it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from dapt_contract.stages.tuning_data import SHOWN_DIGITS
from dapt_trainer.errors import InputError
from dapt_trainer.training.tuning.tuning_lines import read_tuning_lines

CONTENT = b'{"texts": [1]}\n{"texts": [2]}\n'
DIGEST = hashlib.sha256(CONTENT).hexdigest()[:SHOWN_DIGITS]


def test_the_prepared_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(CONTENT)
    for expected in (DIGEST, None):
        lines = read_tuning_lines(tmp_path, "spec.finetuning.data", expected)
        assert [record for _, record in lines] == [{"texts": [1]}, {"texts": [2]}]


@pytest.mark.parametrize("content", [CONTENT[:15], CONTENT + CONTENT[:15], CONTENT.replace(b"2", b"3"), b""])
def test_a_file_that_was_cut_or_altered_is_refused_before_its_first_line_is_used(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        next(read_tuning_lines(tmp_path, "spec.finetuning.data", DIGEST))
    found = hashlib.sha256(content).hexdigest()[:12]
    assert str(caught.value) == (
        f"{path}: has the SHA-256 {found}, and {DIGEST[:12]} was written there: the work volume changed since, so the"
        " file is not used; restore it, or create a new DomainAdaptation, which writes it again"
    )


@pytest.mark.parametrize("content", [b'{"texts": [1]}\n{"te\n', b"\xff\n"])
def test_a_damaged_file_without_a_digest_is_refused_with_its_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=r"train\.jsonl:\d: damaged; run tuning_data again"):
        list(read_tuning_lines(tmp_path, "spec.finetuning.data"))
