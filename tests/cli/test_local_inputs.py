"""`dapt lint` names every local file that is missing, and a local destination that cannot take the model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dapt_client.documents import check_file, read_documents
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.cli.commands.lint import lint
from dapt_operator.cli.inputs.local_inputs import local_problems, not_looked_at
from dapt_operator.plan.stages.publish import run_digest
from support.model_headers import write_model, write_safetensors

MANIFEST = """\
apiVersion: dapt.dev/v1alpha1
kind: DomainAdaptation
metadata: {name: tiny}
spec:
  model:
    source: file://base
  corpus:
    domain:
    - source: file://text/domain.jsonl
    general:
    - source: file://text/general.jsonl
  evaluation:
    domain: {tasks: [{name: own, source: "file://items/own.jsonl"}]}
    probes: {general: [{source: "file://items/probes.jsonl"}]}
  finetuning:
    data: [{source: "file://tuning/*.jsonl"}]
  preference:
    data: [{source: "file://tuning/pairs.jsonl"}]
  output:
    destination: file://out
  resources: {nodes: 1}
"""
FILES = (
    "text/domain.jsonl",
    "text/general.jsonl",
    "items/own.jsonl",
    "items/probes.jsonl",
    "tuning/pairs.jsonl",
)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Return a manifest all of whose files are there."""
    write_model(tmp_path / "base")
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"text": "something"}\n')
    (tmp_path / "m.yaml").write_text(MANIFEST)
    return tmp_path / "m.yaml"


def problems_of(manifest: Path) -> list[str]:
    return [problem.removeprefix(f"{manifest}: ") for problem in lint([manifest])[0]]


def fields(problems: list[str]) -> list[str]:
    return [problem.split(": ")[0] for problem in problems]


def test_a_manifest_with_all_its_files_is_ok(manifest: Path) -> None:
    assert lint([manifest]) == ([], [f"{manifest}: ok (DomainAdaptation tiny)"])


def test_everything_that_is_missing_is_named_with_field_and_line(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(MANIFEST)
    assert fields(problems_of(path)) == [
        "spec.model.source (line 6)",
        "spec.corpus.domain[0].source (line 9)",
        "spec.corpus.general[0].source (line 11)",
        "spec.evaluation.domain.tasks[0].source (line 13)",
        "spec.evaluation.probes.general[0].source (line 14)",
        "spec.finetuning.data[0].source (line 16)",
        "spec.preference.data[0].source (line 18)",
    ]


def test_missing_files_come_together_with_other_mistakes(manifest: Path) -> None:
    (manifest.parent / "text" / "domain.jsonl").unlink()
    manifest.write_text(MANIFEST + "  sed: 4\n")
    assert fields(problems_of(manifest)) == ["spec.sed (line 22)", "spec.corpus.domain[0].source (line 9)"]


def test_the_cluster_does_not_look_at_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(MANIFEST.replace("file://", "pvc://claim/"))
    assert lint([path], cluster=True)[0] == []
    assert lint([path])[0] == []


def _dead_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("gone")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n")


def _folder_without_data(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "notes.docx").write_text("x")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("text/domain.jsonl", _dead_link, "a link to gone, which does not exist"),
        ("text/general.jsonl", _pipe, "a named pipe"),
        (
            "tuning/pairs.jsonl",
            _pointer,
            "a pointer of git-lfs, not the content; fetch it with `git lfs pull`",
        ),
        ("items/own.jsonl", lambda path: path.write_text(""), "is empty; fill it, or remove the source"),
        ("items/probes.jsonl", Path.unlink, "no file matches"),
        ("text/domain.jsonl", _folder_without_data, "a folder without any file of a known type"),
    ],
)
def test_source_that_cannot_be_read_is_named(
    manifest: Path, name: str, change: Callable[[Path], object], message: str
) -> None:
    change(manifest.parent / name)
    problems = problems_of(manifest)
    assert problems
    assert all(message in problem for problem in problems)


def test_links_to_files_are_followed(manifest: Path) -> None:
    path = manifest.parent / "text" / "domain.jsonl"
    store = manifest.parent / "store"
    store.mkdir()
    path.rename(store / "3f2a")
    path.symlink_to(store / "3f2a")
    base = manifest.parent / "base"
    base.rename(store / "model")
    base.symlink_to(store / "model")
    assert problems_of(manifest) == []


def test_links_out_of_the_manifests_folder_are_refused(
    manifest: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "text"
    (manifest.parent / "text").rename(elsewhere)
    (manifest.parent / "text").symlink_to(elsewhere)
    remedy = "write that address yourself if it is what you want to read, or copy it there"
    assert problems_of(manifest)[0].endswith(
        f"{manifest.parent}/text: leads to {elsewhere}, outside of the manifest's folder; {remedy}"
    )
    manifest.write_text(manifest.read_text().replace("file://text/", f"file://{elsewhere}/"))
    assert problems_of(manifest) == []
    private = tmp_path_factory.mktemp("private") / "notes.jsonl"
    (elsewhere / "domain.jsonl").rename(private)
    (elsewhere / "domain.jsonl").symlink_to(private)
    assert problems_of(manifest)[0].endswith(
        f"{elsewhere}/domain.jsonl: leads to {private}, outside of {elsewhere.parent}; {remedy}"
    )


def test_a_file_beside_the_manifest_may_not_be_a_link_out_of_its_folder(manifest: Path) -> None:
    private = manifest.parent.parent / "private.jsonl"
    (manifest.parent / "text" / "domain.jsonl").rename(private)
    (manifest.parent / "here.jsonl").symlink_to(private)
    manifest.write_text(manifest.read_text().replace("file://text/domain.jsonl", "file://here.jsonl"))
    assert (
        f"{manifest.parent}/here.jsonl: leads to {private}, outside of the manifest's folder"
        in problems_of(manifest)[0]
    )


def _no_weights(base: Path) -> None:
    (base / "model.safetensors").unlink()


def _pickled(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")


def _missing_shard(base: Path) -> None:
    (base / "model.safetensors").unlink()
    write_safetensors(base / "model-00001-of-00003.safetensors", a=[100, 8])
    shards = {f"layer.{number}": f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def _dead_weights(base: Path) -> None:
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").symlink_to("../blobs/gone")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _no_weights,
            "has neither model.safetensors nor model.safetensors.index.json, by which weights are found; download the"
            " model again",
        ),
        (_pickled, "has pickled weights only, which are never opened; convert them to safetensors"),
        (
            _missing_shard,
            "model-00002-of-00003.safetensors and 1 more is missing, which model.safetensors.index.json names; download"
            " the model again",
        ),
        (_dead_weights, "model.safetensors is a link to nothing; download the model again"),
        (
            lambda base: (base / "config.json").unlink(),
            "no config.json; give the folder of a Hugging Face model, or a .gguf file",
        ),
        (
            lambda base: (base / "model.safetensors").write_bytes(b"\xff" * 16),
            "not a safetensors file (its header is too long); download the model again",
        ),
    ],
)
def test_model_that_is_not_complete_is_named(
    manifest: Path, change: Callable[[Path], object], message: str
) -> None:
    change(manifest.parent / "base")
    (problem,) = problems_of(manifest)
    assert problem.startswith("spec.model.source (line 6): ")
    assert problem.endswith(message)


def test_model_whose_weights_are_a_pointer_is_named(manifest: Path) -> None:
    _pointer(manifest.parent / "base" / "model.safetensors")
    (problem,) = problems_of(manifest)
    assert problem.endswith("a pointer of git-lfs, not the content; fetch it with `git lfs pull`")


def published_by(manifest: Path, digest: str | None = None) -> None:
    """Write a published model to the destination: with the digest of the manifest's own run, or another one."""
    if digest is None:
        (checked,) = check_file(manifest)
        assert isinstance(checked.model, DomainAdaptation)
        digest = run_digest(checked.model.spec)
    out = manifest.parent / "out"
    out.mkdir()
    (out / "dapt.json").write_text(json.dumps({"body": {"run_digest": digest}}))


def test_destination_of_the_same_run_may_be_replaced(manifest: Path) -> None:
    published_by(manifest)
    assert problems_of(manifest) == []


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda out: out.write_text("x"), "a file; give a folder, which need not exist"),
        (
            lambda out: (out.mkdir(), (out / "thesis.txt").write_text("x")),
            "not empty, and no dapt.json says that this run wrote it; choose another folder, or empty this one",
        ),
        (
            lambda out: (out.mkdir(), (out / "dapt.json").write_text("{}")),
            "its dapt.json cannot be read; choose another folder, or empty this one",
        ),
        (
            lambda out: (out.mkdir(), (out / "dapt.json").write_text("[" * 100_000)),
            "its dapt.json cannot be read; choose another folder, or empty this one",
        ),
        (lambda out: out.symlink_to("gone"), "a link to gone, which is not there; restore or remove it"),
    ],
)
def test_destination_that_is_taken_is_named(
    manifest: Path, prepare: Callable[[Path], object], message: str
) -> None:
    out = manifest.parent / "out"
    prepare(out)
    assert problems_of(manifest) == [f"spec.output.destination (line 20): {out}: {message}"]


def test_destination_with_another_runs_model_is_named(manifest: Path) -> None:
    published_by(manifest, "sha256:other")
    out = manifest.parent / "out"
    assert problems_of(manifest) == [
        f"spec.output.destination (line 20): {out}: holds the model of another run; choose another folder, or"
        " remove that model"
    ]


def test_destination_below_a_file_is_named(manifest: Path) -> None:
    manifest.write_text(MANIFEST.replace("file://out", "file://m.yaml/deep/out"))
    (problem,) = problems_of(manifest)
    assert problem.endswith(f"{manifest} is a file, so no folder can be made in it; choose another place")


def test_destination_that_cannot_be_written_is_named(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever runs the tests as root may write everywhere, so the answer of the system is replaced.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (problem,) = problems_of(manifest)
    assert problem == (
        f"spec.output.destination (line 20): {manifest.parent}/out: {manifest.parent} cannot be written; change its"
        " permissions, or choose another place"
    )


def test_empty_folder_is_a_good_destination(manifest: Path) -> None:
    (manifest.parent / "out").mkdir()
    assert problems_of(manifest) == []


def test_what_is_elsewhere_is_listed_by_place(manifest: Path) -> None:
    text = MANIFEST.replace("file://base", "hf://org/base").replace("file://out", "s3://models/out")
    manifest.write_text(text.replace("file://tuning/*.jsonl", "pvc://claim/tuning/*.jsonl"))
    (document,) = read_documents(manifest)
    assert not_looked_at(document) == (
        "on the hub (needs the network): spec.model.source",
        "on a claim (needs the cluster): spec.finetuning.data[0].source",
        "in an object store (needs the network and credentials): spec.output.destination",
    )


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("  corpus:\n    sequenceLength: 512\n", "spec.corpus.sequenceLength (line 8)"),
        ("  finetuning:\n    sequenceLength: 512\n", "spec.finetuning.sequenceLength (line 16)"),
    ],
)
def test_sequences_longer_than_the_model_reads_are_named(manifest: Path, field: str, line: str) -> None:
    manifest.write_text(MANIFEST.replace(field.split("\n")[0] + "\n", field))
    assert problems_of(manifest) == [
        f"{line}: 512 is longer than the model's 128 positions; write at most 128"
    ]


@pytest.mark.parametrize("is_cluster", [False, True])
def test_destination_in_a_bucket_that_cannot_exist_is_named(tmp_path: Path, is_cluster: bool) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(
        MANIFEST.replace("file://base", "s3://models/base")
        .replace("file://", "s3://texts/")
        .replace("s3://texts/out", "s3://My_Models/out")
    )
    assert lint([path], cluster=is_cluster)[0] == [
        f"{path}: spec.output.destination (line 20): 'My_Models' is no name of a bucket: 3 characters or more of"
        " lower-case letters, digits, '.' and '-', a letter or digit first and last; write the bucket's name"
    ]


def test_destination_in_a_folder_that_is_removed_first_is_free(manifest: Path) -> None:
    published_by(manifest, "sha256:other")
    (document,) = read_documents(manifest)
    assert [problem.field for problem in local_problems(document, manifest, None)] == []
    (checked,) = check_file(manifest)
    assert isinstance(checked.model, DomainAdaptation)
    taken = local_problems(document, manifest, checked.model)
    assert [problem.field for problem in taken] == ["spec.output.destination"]
    for removed in (manifest.parent / "out", manifest.parent):
        assert local_problems(document, manifest, checked.model, removed=removed) == []
    elsewhere = manifest.parent / "runs"
    assert local_problems(document, manifest, checked.model, removed=elsewhere) == taken


@pytest.mark.parametrize("name", ["text/domain.jsonl", "text/domain.json"])
def test_a_first_record_without_the_text_field_is_named(manifest: Path, name: str) -> None:
    manifest.write_text(MANIFEST.replace("text/domain.jsonl", name))
    record = '{"id": 7, "body": "something"}'
    (manifest.parent / name).write_text(f"[{record}]" if name.endswith("json") else f"{record}\n")
    domain = manifest.parent / name
    assert problems_of(manifest) == [
        f"spec.corpus.domain[0].textField (line 9): {domain}:1 has no field 'text'; its fields are id, body:"
        " name the one that holds the text"
    ]


@pytest.mark.parametrize("content", ["not json\n", "[1, 2]\n", '{"text": 7}\n', '{"text": "cut', "\ufeff"])
def test_other_faults_of_records_are_left_to_prepare(manifest: Path, content: str) -> None:
    (manifest.parent / "text" / "domain.jsonl").write_text(content)
    assert problems_of(manifest) == []


@pytest.mark.parametrize(
    ("written", "advice"),
    [
        ("text/domian.jsonl", "the nearest name in {folder}/text is domain.jsonl"),
        ("txet/domain.jsonl", "the nearest name in {folder} is text"),
        ("text/*.txt", "{folder}/text has domain.jsonl and 1 more"),
        (
            "/text/domain.jsonl",
            "a path from the manifest's folder has two slashes: write file://text/domain.jsonl",
        ),
        ("elsewhere/domain.jsonl", "{folder} has no 'elsewhere'"),
        (
            "{inside}/text/domain.jsonl",
            "an absolute path has three slashes: write file://{folder}/text/domain.jsonl",
        ),
        ("C:\\text\\domain.jsonl", "a path of Windows: under WSL write file:///mnt/c/text/domain.jsonl"),
        ("/c:/text/*.jsonl", "a path of Windows: under WSL write file:///mnt/c/text/*.jsonl"),
    ],
)
def test_a_path_with_nothing_gets_the_nearest_one(manifest: Path, written: str, advice: str) -> None:
    folder = manifest.parent
    inside = str(folder).removeprefix("/")
    manifest.write_text(MANIFEST.replace("text/domain.jsonl", written.format(inside=inside)))
    (problem,) = problems_of(manifest)
    assert problem.endswith(
        f"; check the path, which starts at the manifest's folder; {advice.format(folder=folder)}"
    )


def test_a_dead_link_is_not_advised_as_the_nearest_name(manifest: Path) -> None:
    (manifest.parent / "text" / "link.jsonl").symlink_to("/nowhere/x")
    manifest.write_text(MANIFEST.replace("text/domain.jsonl", "text/link.jsonl"))
    (problem,) = problems_of(manifest)
    assert problem.endswith("or remove the link")


def test_a_wrong_path_of_the_model_gets_the_nearest_one(manifest: Path) -> None:
    manifest.write_text(MANIFEST.replace("file://base", "file://bsae"))
    (problem,) = problems_of(manifest)
    assert problem.endswith(f"or one .gguf file; the nearest name in {manifest.parent} is base")
