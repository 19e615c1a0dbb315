"""Which files a path names: links, special files, wildcards and names as people have them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from dapt_contract.inputs.source_files import escaped, local_files, names_match


def make(folder: Path, *names: str) -> None:
    """Files of one byte; `a -> b` is a link with the text b."""
    for name in names:
        link, _, target = name.partition(" -> ")
        (folder / link).parent.mkdir(parents=True, exist_ok=True)
        if target:
            (folder / link).symlink_to(target)
        else:
            (folder / link).write_text("x")


def names(folder: Path, pattern: str) -> list[str]:
    found = local_files(f"{folder}/{pattern}")
    assert found.problems == ()
    return [os.path.relpath(file.path, folder) for file in found.files]


HUB_BLOB, HUB_FILE = "hub/blobs/ab", "hub/snapshots/1/a.jsonl"


@pytest.mark.parametrize(
    ("files", "pattern", "expected"),
    [
        # as the hub's cache, DVC and git-annex lay data out, and as people do
        (["blobs/ab", "snap/a.jsonl -> ../blobs/ab"], "snap", ["snap/a.jsonl"]),
        (["blobs/ab", "snap/a.jsonl -> ../blobs/ab"], "snap/*.jsonl", ["snap/a.jsonl"]),
        (["blobs/ab", "snap/a.jsonl -> ../blobs/ab"], "snap/a.jsonl", ["snap/a.jsonl"]),
        ([HUB_BLOB, f"{HUB_FILE} -> ../../blobs/ab"], "hub/snapshots/1", [HUB_FILE]),
        ([HUB_BLOB, f"{HUB_FILE} -> ../../blobs/ab"], "hub/snapshots/1/*.jsonl", [HUB_FILE]),
        ([HUB_BLOB, f"{HUB_FILE} -> ../../blobs/ab"], HUB_FILE, [HUB_FILE]),
        ([HUB_BLOB, f"{HUB_FILE} -> ../../blobs/ab"], "hub", [HUB_FILE]),
        ([".git/annex/objects/k", "sub/a.txt -> ../.git/annex/objects/k"], "sub/*", ["sub/a.txt"]),
        ([".dvc/cache/files/md5/k", "sub/a.txt -> ../.dvc/cache/files/md5/k"], "sub", ["sub/a.txt"]),
        (["store/a.md", "data -> store"], "data", ["data/a.md"]),
        (["store/a.md", "data -> store"], "da*/*.md", ["data/a.md"]),
        (["top/store/x/a.md", "top/data -> store"], "top", ["top/data/x/a.md"]),
        (["store/x/a.md", "top/data -> ../store"], "**/*.md", ["store/x/a.md"]),
        (["b", "c -> b", "a.txt -> c"], "a.txt", ["a.txt"]),
        # names that look like patterns or addresses
        (["proj[v2]/a.txt", "projv/b.txt"], "proj[v2]", ["proj[v2]/a.txt"]),
        (["proj[v2]/a.txt", "projv/b.txt"], "proj[v2]/*.txt", ["proj[v2]/a.txt"]),
        (["proj[v2]/x/a.txt", "projv/b.txt"], "proj[v2]/**/*.txt", ["proj[v2]/x/a.txt"]),
        (["projv/a.txt", "proj2/b.txt", "projx/c.txt"], "proj[v2]/*", ["proj2/b.txt", "projv/a.txt"]),
        (["a[1].txt", "a1.txt"], "a[1].txt", ["a[1].txt"]),
        (["a[1].txt", "a1.txt"], "a[[]1].txt", ["a[1].txt"]),
        (["what?/a.txt", "whatx/b.txt"], escaped("what?") + "/*.txt", ["what?/a.txt"]),
        (["my text/a b.txt"], "my text/*.txt", ["my text/a b.txt"]),
        (["50%/a%20b#c.txt", "50%/a b#c.txt"], "50%/a%20b#c.txt", ["50%/a%20b#c.txt"]),
        (["ü/漢字.jsonl"], "ü/*.jsonl", ["ü/漢字.jsonl"]),
        (["{a,b}/x.txt", "a/x.txt"], "{a,b}/x.txt", ["{a,b}/x.txt"]),
        # folders
        (["t.parquet/part-0.parquet", "u.parquet"], "*.parquet", ["t.parquet/part-0.parquet", "u.parquet"]),
        (["sub/a.txt", "b.txt"], "*", ["b.txt"]),
        (["sub/a.txt", "b.csv", ".h/c.txt", ".d.txt"], "", ["sub/a.txt"]),
        (["a/b/c.txt", "c.txt"], "**/c.txt", ["a/b/c.txt", "c.txt"]),
        (["a/b/c.txt", "a/d.txt"], "a/**", ["a/b/c.txt", "a/d.txt"]),
        ([".d.txt", "e.txt"], ".*.txt", [".d.txt"]),
        (["none"], "nothing/*.txt", []),
        (["file.txt"], "file.txt/a.txt", []),
    ],
)  # fmt: skip
def test_a_path_names_files(tmp_path: Path, files: list[str], pattern: str, expected: list[str]) -> None:
    make(tmp_path, *files)
    assert names(tmp_path, pattern) == expected


@pytest.mark.parametrize(
    ("files", "pattern", "problem"),
    [
        (["a.txt", "b.txt -> gone"], "", "b.txt: a link to gone, which does not exist"),
        (["a.txt", "b.txt -> gone"], "*.txt", "b.txt: a link to gone, which does not exist"),
        (["b.txt -> gone"], "b.txt", "b.txt: a link to gone, which does not exist"),
        (["train -> ../gone"], "", "train: a link to ../gone, which does not exist"),
        (["train -> ../gone"], "train/*.txt", "train: a link to ../gone, which does not exist"),
        (["a.txt -> b.txt", "b.txt -> a.txt"], "a.txt", "a.txt: a link that leads back to itself"),
        (["x.jsonl/notes.csv"], "*.jsonl", "x.jsonl: a folder without any file of a known type"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path: Path, files: list[str], pattern: str, problem: str) -> None:
    make(tmp_path, *files)
    found = local_files(f"{tmp_path}/{pattern}")
    assert found.problems[0].startswith(f"{tmp_path}/{problem}; ")


def test_special_files_are_named_and_never_opened(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "e.jsonl -> /dev/null")
    os.mkfifo(tmp_path / "b.jsonl")
    os.mkfifo(tmp_path / "queue")
    with socket.socket(socket.AF_UNIX) as listener:
        # A relative name: an address of a socket has at most 108 bytes.
        before = Path.cwd()
        os.chdir(tmp_path)
        listener.bind("c.jsonl")
        os.chdir(before)
    kinds = {"b": "named pipe", "c": "socket", "e": "device"}
    expected = [
        f"{tmp_path}/{name}.jsonl: a {kind}, not a file; give a file, or remove it"
        for name, kind in kinds.items()
    ]
    for pattern in ("", "*.jsonl"):
        assert sorted(local_files(f"{tmp_path}/{pattern}").problems) == expected


def test_a_file_with_two_names_is_read_once_and_noted(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "b.txt -> a.txt", "sub/c.txt", "zub -> sub")
    found = local_files(str(tmp_path))
    assert [file.path for file in found.files] == [f"{tmp_path}/a.txt", f"{tmp_path}/sub/c.txt"]
    assert found.notes == (
        f"2 file(s) have a second name through links and are read once; {tmp_path}/b.txt is {tmp_path}/a.txt",
    )


def test_a_folder_that_leads_back_to_itself_is_read_once_and_noted(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "sub/b.txt", "sub/up -> ..")
    for pattern in ("", "**/*.txt"):
        found = local_files(f"{tmp_path}/{pattern}".rstrip("/"))
        assert [file.path for file in found.files] == [f"{tmp_path}/a.txt", f"{tmp_path}/sub/b.txt"]
        assert found.notes == (
            f"{tmp_path}/sub/up leads back to a folder that it lies in and is not read again",
        )


@pytest.mark.parametrize(
    ("link", "pattern"),
    [
        ("got/own/a.txt -> ../../secret.txt", "got/own"),
        ("got/own/a.txt -> ../../secret.txt", "got/own/*.txt"),
        ("got/own/a.txt -> ../../secret.txt", "got/own/a.txt"),
        ("got/own/a.txt -> ../../secret.txt", "got/own/**/*.txt"),
        ("got/own/a.txt -> b/../../../secret.txt", "got/own"),
        ("got/own/notes -> ../../private", "got/own"),
        ("got/own/snapshots -> ../../private", "got/own"),
        ("got/own/.git/annex/objects -> ../../../../private", "got/own/**/*.txt"),
    ],
)
def test_a_link_may_not_leave_the_folder_that_holds_what_the_address_names(
    tmp_path: Path, link: str, pattern: str
) -> None:
    make(tmp_path, "secret.txt", "private/p.txt", "got/own/b/c.txt", link)
    if ".git" in link:
        make(tmp_path, "got/own/a.txt -> .git/annex/objects/p.txt")
    found = local_files(f"{tmp_path}/{pattern}")
    (problem,) = found.problems
    assert f"leads to {tmp_path}/" in problem
    assert problem.endswith(
        f"outside of {tmp_path}/got; write that address yourself if it is what you want to read, or copy it there"
    )
    assert [file.path for file in found.files] in ([], [f"{tmp_path}/got/own/b/c.txt"])


@pytest.mark.parametrize("pattern", ["", "*.txt", "a.txt", "**/*.txt"])
def test_a_link_may_not_leave_the_root(tmp_path: Path, pattern: str) -> None:
    make(tmp_path, "secret", "claim/blobs/b", "claim/a.txt -> ../secret", "claim/c.txt -> blobs/b")
    found = local_files(f"{tmp_path}/claim/{pattern}", root=f"{tmp_path}/claim")
    assert found.problems == (
        f"{tmp_path}/claim/a.txt: leads to {tmp_path}/secret, outside of {tmp_path}/claim; "
        "copy what it leads to into the claim",
    )
    assert [file.path for file in found.files] == ([] if pattern == "a.txt" else [f"{tmp_path}/claim/c.txt"])


def test_a_linked_folder_may_not_leave_the_root(tmp_path: Path) -> None:
    make(tmp_path, "other/a.txt", "claim/data -> ../other")
    for pattern in ("claim", "claim/data", "claim/data/*.txt", "claim/**/*.txt", "claim/data/a.txt"):
        found = local_files(f"{tmp_path}/{pattern}", root=f"{tmp_path}/claim")
        assert found.files == ()
        assert f"outside of {tmp_path}/claim" in found.problems[0]


def test_many_problems_are_cut_with_their_number(tmp_path: Path) -> None:
    make(tmp_path, *(f"{number}.txt -> gone" for number in range(8)))
    problems = local_files(str(tmp_path)).problems
    assert len(problems) == 6
    assert problems[-1] == "and 3 more files and links that cannot be read"


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("a/b.x", "**/*.x", True),
        ("b.x", "**/*.x", True),
        ("a/b/c.x", "a/**", True),
        ("a/b/c.x", "*/*.x", False),
        (".a/b.x", "**/*.x", False),
        ("a/.b.x", "**", False),
        ("a b/c.x", "a b/?.x", True),
    ],
)
def test_keys_of_a_store_fit_the_same_patterns(name: str, pattern: str, expected: bool) -> None:
    assert names_match(name.split("/"), pattern.split("/")) is expected
