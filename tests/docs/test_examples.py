"""Every example manifest is valid, planned, and within the profile it names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from dapt_client.documents import check_file
from dapt_operator.cli.commands.lint import lint
from dapt_operator.cli.commands.plan import plan
from dapt_operator.cli.inputs.manifests import read_request
from support.model_headers import CONFIG, write_model

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
MANIFESTS = [path for path in EXAMPLES if not path.name.startswith("profile-")]
LOCAL = {"laptop.yaml", "forgetting.yaml"}
ON_CLUSTERS = [path for path in MANIFESTS if path.name not in LOCAL]


def test_there_are_enough_examples() -> None:
    assert {path.name for path in MANIFESTS} >= {"clinical.yaml", "legal.yaml", "finance.yaml", "laptop.yaml"}
    assert {path.name for path in EXAMPLES} >= {"profile-h100.yaml", "profile-cpu.yaml"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_valid(path: Path) -> None:
    checked = check_file(path)
    assert [problem for document in checked for problem in document.problems] == []
    assert [warning for document in checked for warning in document.warnings] == []
    assert len(checked) == (2 if path.name == "forgetting.yaml" else 1)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_lack_nothing_but_the_users_files(path: Path) -> None:
    assert besides_missing_files(lint([path])[0]) == []


def besides_missing_files(problems: Iterable[str]) -> list[str]:
    """Leave out the files that a clean checkout does not have: the users' own, and what `make demo` writes."""
    missing = ("no file matches", "no such model")
    return [problem for problem in problems if not any(text in problem for text in missing)]


@pytest.mark.parametrize("path", ON_CLUSTERS, ids=lambda path: path.name)
def test_examples_for_clusters_read_no_local_file(path: Path) -> None:
    assert lint([path], cluster=True)[0] == []


@pytest.mark.parametrize("path", ON_CLUSTERS, ids=lambda path: path.name)
def test_examples_for_clusters_are_planned_in_full(path: Path) -> None:
    page = plan(read_request(path, str(ROOT / "examples" / "profile-h100.yaml")))
    assert page.problems == ()
    text = "\n".join(page.lines)
    for part in ("steps          ", "Memory of one GPU: ", "GPU-hours: ", "How it was counted"):
        assert part in text
    assert "GPU-hours: unknown" not in text
    assert "Memory of one GPU: unknown" not in text


@pytest.mark.parametrize("profile", ["local", str(ROOT / "examples" / "profile-cpu.yaml")])
def test_the_laptop_example_is_planned_with_its_files(
    tmp_path: Path, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    manifest = tmp_path / "laptop.yaml"
    manifest.write_text((ROOT / "examples" / "laptop.yaml").read_text())
    for name in ("texts/handbook/one.txt", "texts/general/one.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("a line of text\n" * 20_000)
    model = tmp_path / "models" / "small-base"
    write_model(model, CONFIG | {"max_position_embeddings": 1024})
    page = plan(read_request(manifest, profile))
    assert page.problems == ()
    assert any(line.startswith("Memory of one process: ") for line in page.lines)


@pytest.mark.parametrize("name", ["quickstart/quickstart.yaml", "forgetting.yaml"])
def test_examples_with_demo_data_are_valid_and_planned(name: str) -> None:
    path = ROOT / "examples" / name
    assert besides_missing_files(lint([path])[0]) == []
    page = plan(read_request(path, None), parameters=135e6)
    assert besides_missing_files(page.problems) == []
    assert any(line.startswith("Memory of one process: ") for line in page.lines)


def test_the_smallest_example_has_25_lines() -> None:
    assert len((ROOT / "examples" / "finance.yaml").read_text().splitlines()) <= 25
