"""Only what prepare takes of a base model is published: whoever writes to the work volume may have added files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dapt_trainer.errors import InputError
from dapt_trainer.publishing.base_files import Changes, write_base_files

pytestmark = pytest.mark.torch
TAKEN = ("LICENSE", "NOTICE.txt", "additional_chat_templates/rag.jinja", "vocab.txt")
ADDED = (
    "modeling.py",
    "pytorch_model.bin",
    "model.gguf",
    "adapter_config.json",
    "custom_generate/generate.py",
    "additional_chat_templates/x.py",
    "additional_chat_templates/deep/x.jinja",
    ".gitattributes",
)


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """Return a base model's folder on the work volume."""
    folder = tmp_path / "model"
    for name in TAKEN:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("terms")
    (folder / "config.json").write_text("{}")
    return folder


def published(origin: Path) -> dict[str, str]:
    """Publish the files of a base model, and return them."""
    folder = origin.parent / "out"
    folder.mkdir()
    write_base_files(origin, folder, Changes())
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() or path.is_symlink()
    }


def test_files_that_prepare_takes_are_published(origin: Path) -> None:
    assert published(origin) == {"config.json": "{}"} | dict.fromkeys(TAKEN, "terms")


@pytest.mark.parametrize("name", ADDED)
def test_a_file_that_prepare_would_not_take_is_not_published(origin: Path, name: str) -> None:
    path = origin / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("import os")
    assert "import os" not in published(origin).values()


@pytest.mark.parametrize("kind", ["link out", "link inside", "pipe", "folder of templates is a link"])
def test_what_is_no_regular_file_of_the_folder_is_refused(origin: Path, kind: str) -> None:
    (origin.parent / "secret").write_text("AWS_SECRET_ACCESS_KEY=canary")
    path = origin / "COPYING"
    if kind == "link out":
        path.symlink_to("../secret")
    elif kind == "link inside":
        path.symlink_to("vocab.txt")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path = origin / "additional_chat_templates"
        path.rename(origin.parent / "templates")
        path.symlink_to(origin.parent / "templates")
        path /= "rag.jinja"
    with pytest.raises(InputError) as refused:
        published(origin)
    (sentence,) = refused.value.problems
    assert sentence == (
        f"{path}: not a regular file, so it is not published: the work volume changed since prepare wrote it; restore"
        " the file, or remove it"
    )
