"""Tests what a pod reads besides its environment."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from dapt_contract.pod.environment import SIGNING_KEY_DIGESTS, SIGNING_KEY_FILE, SIGNING_SECRET, WORK_DIR
from dapt_contract.pod.failure import FOREIGN_KEY
from dapt_trainer.errors import InputError
from dapt_trainer.pod.launch import set_allocator
from dapt_trainer.pod.settings import PodSettings


def settings(key_file: Path | None = None) -> PodSettings:
    return PodSettings.read(
        {WORK_DIR: "/work"} | ({SIGNING_KEY_FILE: str(key_file)} if key_file is not None else {})
    )


def test_signing_key_is_read_from_the_mounted_secret(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"s" * 32)
    assert settings(tmp_path / "key").read_signing_key() == b"s" * 32
    assert settings().read_signing_key() == b""


@pytest.mark.parametrize("content", [None, b""], ids=["no entry", "an empty entry"])
def test_secret_of_somebody_else_is_refused_with_what_to_do(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(InputError) as raised:
        settings(tmp_path / "key").read_signing_key()
    assert str(raised.value) == (
        f"the Secret mounted at {tmp_path} has no entry 'key' with a key, so it is not the one that the operator"
        " creates for the signatures of checkpoints: delete it, then the operator makes it again"
    )


def test_key_that_could_be_guessed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"s" * 31)
    with pytest.raises(InputError) as raised:
        settings(tmp_path / "key").read_signing_key()
    assert str(raised.value) == (
        f"{tmp_path}/key: the key for the signatures of checkpoints has 31 bytes, and a key of less than 32 could be"
        " guessed, so it is not used: delete the Secret, then the operator makes it again"
    )


def test_key_that_the_operator_did_not_make_is_refused_with_the_name_of_its_secret(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"f" * 32)
    ours = ",".join(hashlib.sha256(key * 32).hexdigest() for key in (b"a", b"b"))
    environment = {
        WORK_DIR: "/work",
        SIGNING_KEY_FILE: str(tmp_path / "key"),
        SIGNING_KEY_DIGESTS: ours,
        SIGNING_SECRET: "dapt-clinical-00000001-signing",
    }
    with pytest.raises(InputError) as raised:
        PodSettings.read(environment).read_signing_key()
    digest = hashlib.sha256(b"f" * 32).hexdigest()[:12]
    assert str(raised.value) == (
        f"Secret dapt-clinical-00000001-signing {FOREIGN_KEY} (SHA-256 {digest}...): whoever made it could forge"
        " checkpoints and results, so it is not used: delete the Secret, and the operator makes its own again"
    )
    (tmp_path / "key").write_bytes(b"b" * 32)
    assert PodSettings.read(environment).read_signing_key() == b"b" * 32


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ({"PYTORCH_ALLOC_CONF": "garbage_collection_threshold:0.8"},) * 2,
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:256"},) * 2,
    ],
    ids=["nothing", "torch's name", "its older name"],
)
def test_allocator_grows_in_place_unless_the_template_says_otherwise(
    template: dict[str, str], expected: dict[str, str]
) -> None:
    environment = dict(template)
    set_allocator(environment)
    assert environment == expected
