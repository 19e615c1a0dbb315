"""Folders that others may have filled are removed and listed, however they are made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dapt_contract.untrusted.folders import DEEPEST, copy_folder, paths_below, remove_folder, run_folders
from dapt_contract.untrusted.regular_files import IrregularFileError
from support.deep_folders import make_deep


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that no removal may touch."""
    (tmp_path / "outside/inner").mkdir(parents=True)
    (tmp_path / "outside/inner/kept").write_text("kept")
    return tmp_path / "outside"


def test_folder_is_removed_with_all_that_is_in_it(tmp_path: Path) -> None:
    for name in ("a/b/c/file", "a/b/d/file", "a/e/file", "a/file"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    os.mkfifo(tmp_path / "a/b/pipe")
    (tmp_path / "a/empty").mkdir()
    assert remove_folder(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_folders_thousands_deep_are_removed(tmp_path: Path) -> None:
    make_deep(tmp_path / "a/deep")
    make_deep(tmp_path / "a/other/deep")
    assert remove_folder(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_link_is_removed_and_what_it_leads_to_stays(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/folder").symlink_to(outside)
    (tmp_path / "a/b/file").symlink_to(outside / "inner/kept")
    (tmp_path / "a/b/dead").symlink_to("nowhere")
    assert remove_folder(tmp_path / "a")
    (tmp_path / "a").symlink_to(outside)
    assert remove_folder(tmp_path / "a")
    assert not os.path.lexists(tmp_path / "a")
    assert (outside / "inner/kept").read_text() == "kept"


def test_file_in_the_place_of_the_folder_is_removed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    assert remove_folder(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_files_and_folders_without_rights_are_removed(tmp_path: Path) -> None:
    (tmp_path / "a/b/c/d").mkdir(parents=True)
    (tmp_path / "a/b/c/d/file").write_text("x")
    for name, mode in (("a/b/c/d/file", 0), ("a/b/c/d", 0), ("a/b/c", 0o500), ("a/b", 0), ("a", 0o500)):
        (tmp_path / name).chmod(mode)
    assert remove_folder(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_missing_folder_is_no_error(tmp_path: Path) -> None:
    assert remove_folder(tmp_path / "a")
    assert remove_folder(tmp_path / "a/b/c")


def test_what_cannot_be_removed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_text("x")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "unlink", refuse)
    assert not remove_folder(tmp_path / "a")


def test_paths_below_are_sorted_and_links_are_not_entered(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_text("x")
    (tmp_path / "a/link").symlink_to(outside)
    found = [path.relative_to(tmp_path).as_posix() for path in paths_below(tmp_path / "a")]
    assert found == ["a/b", "a/b/file", "a/link"]
    assert paths_below(tmp_path / "missing") == []


def test_paths_below_refuse_folders_deeper_than_any_of_dapt(tmp_path: Path) -> None:
    make_deep(tmp_path / "a", DEEPEST)
    assert len(paths_below(tmp_path / "a")) == DEEPEST + 1
    make_deep(tmp_path / "b")
    with pytest.raises(IrregularFileError, match="folders within each other, over 64 deep"):
        paths_below(tmp_path / "b")
    remove_folder(tmp_path / "b")


def test_copy_has_the_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/b/file").write_text("x")
    copy_folder(tmp_path / "a", tmp_path / "copy")
    assert [path.name for path in paths_below(tmp_path / "copy")] == ["b", "c", "file"]
    assert (tmp_path / "copy/b/file").read_text() == "x"


@pytest.mark.parametrize("target", ["inner", "inner/kept"])
def test_copy_follows_no_link(tmp_path: Path, outside: Path, target: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/link").symlink_to(outside / target)
    with pytest.raises(IrregularFileError, match="not a regular file"):
        copy_folder(tmp_path / "a", tmp_path / "copy")


def test_folders_of_runs_are_in_the_order_of_their_numbers_and_no_links(
    tmp_path: Path, outside: Path
) -> None:
    for name in ("try-10", "try-2", "try-x", "try-0", "try-", "other"):
        (tmp_path / "lineage" / name).mkdir(parents=True)
    (tmp_path / "lineage/try-1").symlink_to(outside)
    (tmp_path / "lineage/try-3").write_text("x")
    assert [(number, path.name) for number, path in run_folders(tmp_path / "lineage")] == [
        (2, "try-2"),
        (10, "try-10"),
    ]
    assert run_folders(tmp_path / "missing") == []
