"""Every kind of source and file gives the same documents; every fault its sentence."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from dapt_contract.inputs.source_files import file_format
from dapt_trainer.data.reading.documents import BadFileError, BadRecord, Document, read_documents
from dapt_trainer.data.reading.sources import resolve
from dapt_trainer.errors import InputError

TEXTS = ["first text", "second, with ü and 漢字", "third"]


def lines(texts: list[str] = TEXTS) -> bytes:
    return "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts).encode()


def read(uri: str, field: str = "text") -> list[str]:
    return [item.text for item in read_documents(resolve(uri, "f"), field) if isinstance(item, Document)]


def test_jsonl_plain_and_packed_and_parquet_give_the_same_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines())
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines()))
    packed = zstandard.ZstdCompressor()
    (tmp_path / "c.jsonl.zst").write_bytes(packed.compress(lines()[:40]) + packed.compress(lines()[40:]))
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "n": [1, 2, 3]}), tmp_path / "d.parquet")
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet"):
        assert read(f"file://{tmp_path}/{name}") == TEXTS, name


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("line one\nline two\n")
    (tmp_path / "b.md.gz").write_bytes(gzip.compress("# ü\n".encode()))
    assert read(f"file://{tmp_path}") == ["line one\nline two\n", "# ü\n"]


def test_wildcards_and_folders_read_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "a/1.jsonl", "b/[x].jsonl", "b/notes.csv", "b/.hidden.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(lines([name]))
    assert read(f"file://{tmp_path}/*/[12].jsonl") == ["a/1.jsonl", "b/2.jsonl"]
    assert read(f"file://{tmp_path}/b/") == ["b/2.jsonl", "b/[x].jsonl"]
    assert read(f"file://{tmp_path}/**/[12].jsonl") == ["a/1.jsonl", "b/2.jsonl"]


def test_a_claim_is_read_where_the_pod_mounts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAPT_CLAIMS", str(tmp_path))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_bytes(lines())
    assert read("pvc://texts/a.jsonl") == TEXTS
    with pytest.raises(InputError) as caught:
        resolve("pvc://other/a.jsonl", "spec.corpus.domain[0].source")
    assert str(caught.value) == (
        f"spec.corpus.domain[0].source: pvc://other/a.jsonl: claim 'other' is not mounted at {tmp_path}/other; "
        "check that the claim exists in the namespace"
    )


def test_links_of_a_claim_stay_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAPT_CLAIMS", str(tmp_path))
    (tmp_path / "texts/blobs").mkdir(parents=True)
    (tmp_path / "texts/blobs/ab").write_bytes(lines())
    (tmp_path / "texts/snap").mkdir()
    (tmp_path / "texts/snap/a.jsonl").symlink_to("../blobs/ab")
    assert read("pvc://texts/snap") == TEXTS
    (tmp_path / "other").write_bytes(lines())
    (tmp_path / "texts/snap/b.jsonl").symlink_to(tmp_path / "other")
    with pytest.raises(InputError) as caught:
        resolve("pvc://texts/snap/*.jsonl", "f")
    assert str(caught.value) == (
        f"f: {tmp_path}/texts/snap/b.jsonl: leads to {tmp_path}/other, outside of {tmp_path}/texts; "
        "copy what it leads to into the claim"
    )


def test_a_second_name_of_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines())
    (tmp_path / "b.jsonl").symlink_to("a.jsonl")
    source = resolve(f"file://{tmp_path}", "f")
    assert [file.path for file in source.files] == [f"{tmp_path}/a.jsonl"]
    assert source.resolved.endswith(f"is {tmp_path}/a.jsonl)")
    assert len(source.notes) == 1


def test_a_name_that_is_not_unicode_can_be_read_and_reported(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl")
    Path(path).write_bytes(lines() + b"broken\n")
    source = resolve(f"file://{tmp_path}", "f")
    *_, bad = read_documents(source, "text")
    assert bad.location == f"{tmp_path}/caf\\udce9.jsonl:4"
    assert source.resolved.encode()


@pytest.mark.parametrize(
    ("path", "revision", "rest"),
    [
        ("o/n@main/a.jsonl", "main", "a.jsonl"),
        ("o/n@main", "main", ""),
        ("o/n/data/*.jsonl", None, "data/*.jsonl"),
        ("o/n@feature/x/data/a.jsonl", "feature/x", "data/a.jsonl"),
        ("o/n@feature%2Fx/data/a.jsonl", "feature/x", "data/a.jsonl"),
        ("o/n@user/a/b/c.jsonl", "user/a/b", "c.jsonl"),
        ("o/n@refs/pr/1/a.jsonl", "refs/pr/1", "a.jsonl"),
        ("o/n@refs/convert/parquet/default/0.parquet", "refs/convert/parquet", "default/0.parquet"),
    ],
)
def test_a_revision_may_have_slashes(
    monkeypatch: pytest.MonkeyPatch, path: str, revision: str | None, rest: str
) -> None:
    """The hub's client is replaced by one that knows these revisions."""
    import huggingface_hub
    from huggingface_hub.errors import RevisionNotFoundError

    from dapt_trainer.data.reading.sources import filesystem_of

    class Hub:
        def dataset_info(self, repository: str, revision: str | None) -> SimpleNamespace:
            if revision not in (None, "main", "feature/x", "user/a/b", "refs/pr/1", "refs/convert/parquet"):
                raise RevisionNotFoundError("404", response=SimpleNamespace(headers={}, request=None))
            return SimpleNamespace(sha=f"sha-of-{revision}")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    _, pinned, resolved = filesystem_of(f"hf://datasets/{path}", "f")
    assert pinned == "/".join([f"datasets/o/n@sha-of-{revision}", *([rest] if rest else [])])
    assert resolved == f"hf://{pinned}"
    with pytest.raises(InputError, match=r"^f: hf://datasets/o/n@none/x/a cannot be reached"):
        filesystem_of("hf://datasets/o/n@none/x/a", "f")


def test_records_that_are_no_documents_are_named_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "ok"}\n\n{"text": 3}\n{"body": "x", "id": 1}\n[1]\n{"text": \n'
        b'{"text": "\\ud800"}\n{"text": "\xff"}\n'
    )
    records = [
        (item.location.removeprefix(f"{path}:"), item.reason)
        for item in read_documents(resolve(f"file://{path}", "f"), "text")
        if isinstance(item, BadRecord)
    ]
    assert records == [
        ("3", "field 'text' is not a string but a number"),
        ("4", "no field 'text'"),
        ("5", "not a JSON object but a list"),
        ("6", "not JSON (Expecting value: line 2 column 1 (char 10))"),
        ("7", "not Unicode text (half of a surrogate pair)"),
        ("8", "not UTF-8 text (byte 0xff at byte 11)"),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", gzip.compress(lines(TEXTS * 500), mtime=0)[:-200]),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress(lines(TEXTS * 500))[:-10]),
        ("a.jsonl.gz", b"not gzip at all"),
        ("a.jsonl.zst", b"not zstandard at all"),
    ],
)
def test_a_damaged_file_is_reported(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        BadFileError, match=rf"^{tmp_path}/{name}: breaks off or is damaged \(.*\); copy it again$"
    ):
        read(f"file://{tmp_path}/{name}")


def test_a_damaged_parquet_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    with pytest.raises(
        BadFileError, match=r"a\.parquet: not a readable Parquet file \(.*\); write it again$"
    ):
        read(f"file://{tmp_path}/a.parquet")


def test_a_column_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": TEXTS, "n": [1, 2, 3]}), tmp_path / "d.parquet")
    with pytest.raises(BadFileError) as caught:
        read(f"file://{tmp_path}/d.parquet")
    assert str(caught.value) == (
        f"{tmp_path}/d.parquet: no column 'text', its columns are body, n; name the one that holds the text as "
        "textField, or remove the file"
    )


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        (
            "file://{}/none-*.jsonl",
            "f: no file matches file://{}/none-*.jsonl; check the path and its wildcards",
        ),
        ("file://{}/none.jsonl", "f: no file matches file://{}/none.jsonl; check the path and its wildcards"),
        (
            "file://{}/empty.jsonl",
            "f: file://{}/empty.jsonl is empty: 1 file(s) of 0 bytes; fill it or remove the source",
        ),
        (
            "file://{}/table.csv",
            "f: file://{}/table.csv has no file of a known type (the first is {}/table.csv); accepted are .jsonl, "
            ".ndjson or .json (one record a line; .json also one array), .parquet, .txt, .md, each but .parquet also "
            ".gz or .zst",
        ),
        ("ftp://x/y", "f: ftp://x/y: scheme not known; accepted are hf://, s3://, gs://, pvc:// and file://"),
        ("hf://org/name", "f: hf://org/name: text on the hub is hf://datasets/ORG/NAME@REVISION/FILES"),
        (
            "gs://bucket/x.jsonl",
            "f: gs://bucket/x.jsonl: this image cannot read gs:// (Please install gcsfs to access Google Storage); "
            "copy the files to s3:// or hf://",
        ),
    ],
)
def test_a_source_without_text_is_refused_in_one_sentence(tmp_path: Path, uri: str, sentence: str) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "table.csv").write_text("a,b\n")
    with pytest.raises(InputError) as caught:
        resolve(uri.replace("{}", str(tmp_path)), "f")
    assert str(caught.value) == sentence.replace("{}", str(tmp_path))


def test_an_unreachable_hub_is_reported_in_one_sentence() -> None:
    """The tests' environment is offline: the real client says so."""
    with pytest.raises(
        InputError, match=r"^f: hf://datasets/org/name@abc/x\.jsonl cannot be reached \(\w+: .*\); check"
    ):
        resolve("hf://datasets/org/name@abc/x.jsonl", "f")


def test_of_a_hub_repository_only_the_data_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's file system, replaced by a folder that looks like a repository."""
    import fsspec

    from dapt_trainer.data.reading import sources

    for name, content in {"README.md": b"# Data", "dataset_infos.json": b"{", "data/0.parquet": b""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "data/0.parquet")
    local = (fsspec.filesystem("file"), str(tmp_path), "hf://datasets/org/name@abc")
    monkeypatch.setattr(sources, "filesystem_of", lambda uri, field: local)
    source = resolve("hf://datasets/org/name", "f")
    assert [file.format for file in source.files] == ["parquet"]
    assert source.resolved.startswith("hf://datasets/org/name@abc (1 files, ")
    assert read("hf://datasets/org/name") == TEXTS


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x/a.JSONL", ("jsonl", "")),
        ("a.json.gz", ("jsonl", ".gz")),
        ("a.txt.zst", ("text", ".zst")),
        ("a.parquet", ("parquet", "")),
        ("a.parquet.gz", None),
        ("a.csv", None),
        ("README", None),
    ],
)
def test_the_format_follows_from_the_name(name: str, expected: tuple[str, str] | None) -> None:
    assert file_format(name) == expected


@pytest.fixture(scope="module")
def object_store() -> Iterator[str]:
    """The endpoint of an S3 server in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(object_store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket with two files of three lines."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": object_store,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem(client_kwargs={"endpoint_url": os.environ["AWS_ENDPOINT_URL"]})
    if not store.exists("texts"):
        store.mkdir("texts")
    with store.open("texts/clinical/a.jsonl", "wb") as file:
        file.write(lines())
    with store.open("texts/clinical/b.jsonl.zst", "wb") as file:
        file.write(zstandard.ZstdCompressor().compress(lines()))
    yield "texts"
    s3fs.S3FileSystem.clear_instance_cache()


def test_an_object_store_is_read_like_a_folder(bucket: str) -> None:
    assert read(f"s3://{bucket}/clinical/*.jsonl*") == TEXTS * 2
    assert read(f"s3://{bucket}/clinical") == TEXTS * 2
    assert read(f"s3://{bucket}/clinical/b.jsonl.zst") == TEXTS
    source = resolve(f"s3://{bucket}/clinical/*.zst", "f")
    assert [file.label for file in source.files] == ["s3://texts/clinical/b.jsonl.zst"]


def test_keys_are_taken_as_they_are_written(bucket: str) -> None:
    import s3fs

    store = s3fs.S3FileSystem(client_kwargs={"endpoint_url": os.environ["AWS_ENDPOINT_URL"]})
    keys = ("my notes/a b.jsonl", "v[2]/50%20#.jsonl", "v2/x.jsonl", "t.json/part-0.json")
    for key in keys:
        store.pipe_file(f"{bucket}/odd/{key}", lines([key]))
    store.invalidate_cache()
    for pattern, expected in {
        "my notes/a b.jsonl": [keys[0]],
        "my notes/*": [keys[0]],
        "v[2]/*.jsonl": [keys[1]],
        "v[2]": [keys[1]],
        "v[[]2]/50%20#.jsonl": [keys[1]],
        "*[2]/*.jsonl": [keys[2]],
        "**/*.jsonl": [keys[0], keys[2], keys[1]],
        "*.json": [keys[3]],
    }.items():
        assert sorted(read(f"s3://{bucket}/odd/{pattern}")) == sorted(expected), pattern


def test_a_missing_bucket_is_reported_in_one_sentence(bucket: str) -> None:
    with pytest.raises(
        InputError, match=r"^f: no file matches s3://none/a\.jsonl; check the path and its wildcards$"
    ):
        resolve("s3://none/a.jsonl", "f")
    with pytest.raises(
        InputError, match=r"^f: no file matches s3://texts/none/\*; check the path and its wildcards$"
    ):
        resolve(f"s3://{bucket}/none/*", "f")


@pytest.mark.parametrize(
    ("name", "leads", "problem"),
    [
        ("model.safetensors", "../gone", "a link to ../gone, which does not exist"),
        ("tokenizer_config.json", "../outside", "leads to {}/outside, outside of {}/claim"),
        ("config.json", "config.json", "a link that leads back to itself"),
        ("tokenizer.json", None, "a named pipe, not a file"),
    ],
)
def test_files_of_a_model_that_cannot_be_read_are_named(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, name: str, leads: str | None, problem: str
) -> None:
    from dapt_trainer.data.base_model.fetch import import_model

    monkeypatch.setenv("DAPT_CLAIMS", str(tmp_path))
    (tmp_path / "outside").write_text("{}")
    folder = model.rename(tmp_path / "claim")
    (folder / name).unlink()
    if leads is None:
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(leads)
    with pytest.raises(InputError) as caught:
        import_model("pvc://claim", tmp_path / "made", tmp_path / "scratch")
    sentence = f"spec.model.source: {folder / name}: {problem.replace('{}', str(tmp_path))}; "
    assert str(caught.value).startswith(sentence)


def test_a_model_is_fetched_from_an_object_store(bucket: str, tmp_path: Path, model: Path) -> None:
    import s3fs

    from dapt_trainer.data.base_model.fetch import import_model

    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem(client_kwargs={"endpoint_url": os.environ["AWS_ENDPOINT_URL"]})
    for path in model.iterdir():
        store.put_file(str(path), f"{bucket}/base/{path.name}")
    store.pipe_file(f"{bucket}/base/modeling.py", b"raise SystemExit")
    import_model(f"s3://{bucket}/base", tmp_path / "made", tmp_path / "scratch")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == sorted(
        p.name for p in model.iterdir()
    )
