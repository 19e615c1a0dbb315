"""docs/laptop-cluster.md names files, images and claims that fit together; tests/cluster/test_whole_node.py runs it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml

from dapt_operator.cli.commands.lint import lint

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "laptop-cluster.md").read_text()
EXAMPLE = ROOT / "examples" / "laptop-cluster"
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
]


def test_the_manifest_is_valid_on_a_cluster() -> None:
    problems, good = lint([EXAMPLE / "adaptation.yaml"], cluster=True)
    assert problems == []
    assert len(good) == 2


def test_files_of_the_commands_exist() -> None:
    files = [
        word
        for command in COMMANDS
        for word in command
        if re.match(r"(examples|operator|trainer-image)/", word)
    ]
    assert len(files) == 6
    assert [name for name in files if not (ROOT / name).is_file()] == []


def test_images_are_built_loaded_and_used_by_one_name() -> None:
    built = {command[5] for command in COMMANDS if command[:2] == ["docker", "build"]}
    loaded = {
        word for command in COMMANDS if command[:2] == ["kind", "load"] for word in command if ":" in word
    }
    (helm,) = (command for command in COMMANDS if command[0] == "helm")
    installed = {word for word in helm if word.startswith("image.")}
    profile = yaml.safe_load((EXAMPLE / "adaptation.yaml").read_text().split("---")[0])
    assert built == loaded == {"dapt-operator:laptop", "dapt-trainer:laptop"}
    assert installed == {"image.repository=dapt-operator", "image.tag=laptop"}
    assert profile["spec"]["trainerImage"] == "dapt-trainer:laptop"


def test_claims_and_folders_are_those_of_the_volumes() -> None:
    objects = list(yaml.safe_load_all((EXAMPLE / "volumes.yaml").read_text()))
    claims = {item["metadata"]["name"] for item in objects if item["kind"] == "PersistentVolumeClaim"}
    folders = {item["spec"]["hostPath"]["path"] for item in objects if item["kind"] == "PersistentVolume"}
    used = set(re.findall(r"pvc://([a-z]+)/", (EXAMPLE / "adaptation.yaml").read_text()))
    (mount,) = yaml.safe_load((EXAMPLE / "kind.yaml").read_text())["nodes"][0]["extraMounts"]
    assert claims == used
    assert {Path(mount["hostPath"]) / Path(folder).name for folder in folders} == {
        Path("runs/laptop-cluster") / name for name in ("data", "models", "work")
    }
    assert {str(Path(folder).parent) for folder in folders} == {mount["containerPath"]}
