"""`dapt lint` and the other commands that only read: exact messages, exit codes, no traceback."""

from __future__ import annotations

from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from dapt_contract.version import PRODUCT_VERSION
from dapt_operator.cli import main
from support.model_headers import write_model

GOOD = """\
apiVersion: dapt.dev/v1alpha1
kind: DomainAdaptation
metadata: {name: tiny}
spec:
  model: {source: "file://base"}
  corpus:
    domain: [{source: "file://domain.jsonl"}]
    general: [{source: "file://general.jsonl"}]
  output: {destination: "file://out"}
  resources: {nodes: 1}
"""


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one call of the command line."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    code = end.value.code
    assert code is None or isinstance(code, int)
    return code or 0, captured.out, captured.err


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    write_model(tmp_path / "base")
    for name in ("domain.jsonl", "general.jsonl"):
        (tmp_path / name).write_text('{"text": "something"}\n')
    return path


def test_a_good_manifest_is_named_ok(capsys: pytest.CaptureFixture[str], good: Path) -> None:
    assert call(capsys, "lint", good) == (0, f"{good}: ok (DomainAdaptation tiny)\n", "")


def test_all_problems_of_all_files_come_at_once(
    capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(GOOD.replace("resources: {nodes: 1}", "resources: {nodes: 0, gpuPerNode: 2}\n  sed: 3"))
    code, out, err = call(capsys, "lint", bad, good, tmp_path / "none.yaml")
    assert code == 1
    assert out == f"{good}: ok (DomainAdaptation tiny)\n"
    assert err.splitlines() == [
        f"dapt: {bad}: spec.resources.gpuPerNode (line 10): unknown field; nearest known name is 'gpusPerNode';"
        " rename or remove it",
        f"dapt: {bad}: spec.resources.nodes (line 10): 0 is not accepted; write a whole number from 1 to 10000,"
        " or leave the field out for 1",
        f"dapt: {bad}: spec.sed (line 11): unknown field; nearest known name is 'seed'; rename or remove it",
        f"dapt: {tmp_path}/none.yaml: no such file; give the path of a manifest",
    ]


def test_the_cluster_refuses_files_of_this_machine(capsys: pytest.CaptureFixture[str], good: Path) -> None:
    code, out, err = call(capsys, "lint", "--cluster", good)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 4
    assert err.splitlines()[0] == (
        f"dapt: {good}: spec.model.source (line 5): 'file://base' is not accepted; the cluster's pods"
        " cannot read a file of your machine; use pvc://, s3://, gs:// or hf://, or run the manifest on this machine"
        " with `dapt run`"
    )


def test_what_is_not_a_manifest_gets_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    binary = tmp_path / "weights.bin"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    assert call(capsys, "lint", binary) == (
        1,
        "",
        f"dapt: {binary}: not UTF-8 text; a manifest is YAML, save it as UTF-8\n",
    )
    assert call(capsys, "plan", tmp_path)[2] == f"dapt: {tmp_path}: a folder; give the manifest itself\n"


def test_the_version_is_the_products(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version") == (0, f"dapt {PRODUCT_VERSION}\n", "")


def test_an_unknown_command_is_a_mistake_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "lnt")
    assert code == 2
    assert err == "dapt: no such command 'lnt'. Did you mean 'lint'? `dapt -h` says what is accepted\n"


def test_definitions_are_written_and_checked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "crds"
    names = ("dapt.dev_domainadaptations.yaml", "dapt.dev_adaptationprofiles.yaml")
    code, out, err = call(capsys, "crd", "--out", folder, "--check")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        f"dapt: {folder / name}: differs from the models; run `dapt crd --out {folder}`" for name in names
    ]
    assert call(capsys, "crd", "--out", folder) == (
        0,
        "".join(f"wrote {folder / name}\n" for name in names),
        "",
    )
    assert call(capsys, "crd", "--out", folder, "--check") == (0, f"{folder}: up to date\n", "")


def test_the_same_cause_is_named_once_with_its_lines(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "m.yaml"
    sources = "\n".join(f"      - {{source: 's3://c/{number}.jsonl', wieght: 2}}" for number in range(9))
    path.write_text(GOOD.replace('[{source: "file://domain.jsonl"}]', f"\n{sources}"))
    _, _, err = call(capsys, "lint", "--cluster", path)
    (line,) = [line for line in err.splitlines() if "wieght" in line]
    assert line == (
        f"dapt: {path}: spec.corpus.domain[0].wieght (line 8): unknown field; nearest known name is 'weight'; rename or"
        " remove it (and 8 more like it, lines 9, 10, 11, 12, 13, ...)"
    )


def test_stdin_is_checked_from_the_current_folder(
    capsys: pytest.CaptureFixture[str], good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(good.parent)
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(good.read_bytes())))
    assert call(capsys, "lint", "-") == (0, "<stdin>: ok (DomainAdaptation tiny)\n", "")
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(GOOD.replace("nodes: 1", "nodes: 0").encode())))
    code, _, err = call(capsys, "lint", "-")
    assert code == 1
    assert err.startswith("dapt: <stdin>: spec.resources.nodes (line 10): ")


def test_items_of_a_list_are_checked_with_their_lines(
    capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path
) -> None:
    items = [GOOD, GOOD.replace("tiny", "second").replace("nodes: 1", "nodes: 0")]
    text = "apiVersion: v1\nkind: List\nitems:\n"
    text += "".join(f"- {item.strip().replace(chr(10), chr(10) + '  ')}\n" for item in items)
    path = tmp_path / "list.yaml"
    path.write_text(text)
    code, out, err = call(capsys, "lint", path)
    assert code == 1
    assert out == f"{path}: ok (DomainAdaptation tiny)\n"
    assert err.startswith(f"dapt: {path}: spec.resources.nodes (line 23): ")


@pytest.mark.parametrize("text", ["kind: List\n", "apiVersion: v1\nkind: DomainAdaptationList\nitems: []\n"])
def test_list_without_items_is_no_manifest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str
) -> None:
    path = tmp_path / "list.yaml"
    path.write_text(text)
    sentence = f"dapt: {path}: a List without items, so it has no DomainAdaptation; give one that has\n"
    assert call(capsys, "lint", path) == (1, "", sentence)
    assert call(capsys, "plan", path) == (1, "", sentence)


def test_two_documents_of_one_name_are_refused_with_both_lines(
    capsys: pytest.CaptureFixture[str], good: Path
) -> None:
    other = GOOD.replace("{name: tiny}", "{name: tiny, namespace: health}")
    good.write_text("---\n".join([GOOD, other, GOOD]))
    code, out, err = call(capsys, "lint", good)
    assert (code, out.count("ok (DomainAdaptation tiny)")) == (1, 2)
    assert err == (
        f"dapt: {good}: metadata.name (line 25): 'tiny' is the name of the DomainAdaptation in line 3 too, and a"
        " cluster would keep one of them; remove one, or give it another name\n"
    )


def test_a_folder_is_checked_as_far_as_it_is_ours(
    capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "apps"
    (tree / "team").mkdir(parents=True)
    (tree / "chart.yaml").write_text("kind: {{ .Values.kind }}\n")
    (tree / "deployment.yaml").write_text("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n")
    text = GOOD.replace("file://", "file://../../")
    (tree / "team" / "tiny.yml").write_text(
        f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: a}}\n---\n{text}"
    )
    assert call(capsys, "lint", tree) == (0, f"{tree}/team/tiny.yml: ok (DomainAdaptation tiny)\n", "")
    (tree / "team" / "tiny.yml").unlink()
    assert call(capsys, "lint", tree)[2] == (
        f"dapt: {tree}: no .yaml or .yml file with apiVersion dapt.dev/v1alpha1 in this folder or below it\n"
    )
