"""The plugin for krew: the manifest is what krew accepts, the archive what it names, and the script starts dapt."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from dapt_contract.version import PRODUCT_VERSION

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the archive and the manifest."""
    out = tmp_path_factory.mktemp("krew")
    subprocess.run([sys.executable, ROOT / ".ci" / "krew.py", out], check=True)
    return out


def test_the_stored_manifest_is_the_one_that_is_written(written: Path) -> None:
    assert (ROOT / "deploy/krew/dapt.yaml").read_text() == (written / "dapt.yaml").read_text()


def test_the_manifest_has_what_krew_wants(written: Path) -> None:
    plugin = YAML(typ="safe", pure=True).load((written / "dapt.yaml").read_text())
    assert (plugin["apiVersion"], plugin["kind"]) == (
        "krew.googlecontainertools.github.com/v1alpha2",
        "Plugin",
    )
    spec = plugin["spec"]
    assert re.fullmatch(r"[\w-]+", plugin["metadata"]["name"])
    assert spec["version"] == f"v{PRODUCT_VERSION}"
    assert "\n" not in spec["shortDescription"]
    assert len(spec["shortDescription"]) <= 50
    assert spec["description"]
    [platform] = spec["platforms"]
    assert platform["sha256"] == hashlib.sha256((written / "kubectl-dapt.zip").read_bytes()).hexdigest()
    assert platform["uri"].startswith("https://")
    assert platform["uri"].endswith(".zip")
    [terms] = platform["selector"].values()
    assert {(term["key"], term["operator"]) for term in terms} == {("os", "In")}
    names = zipfile.ZipFile(written / "kubectl-dapt.zip").namelist()
    assert [move["from"] for move in platform["files"]] == names
    assert platform["bin"] in names


def call(script: Path, *folders: Path | str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (*folders, "/usr/bin", "/bin")))
    command = ["/bin/sh", str(script), "status", "a b"]
    return subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=False, cwd=cwd)


def program(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\necho {path.parent.name}/{path.name} "$#" "$@"\n')
    path.chmod(0o755)


def test_the_script_starts_the_installed_dapt_else_one_of_its_version(tmp_path: Path, written: Path) -> None:
    own = tmp_path / "krew"
    with zipfile.ZipFile(written / "kubectl-dapt.zip") as archive:
        archive.extractall(own)
    script = own / "kubectl-dapt"
    script.chmod(0o755)
    missing = call(script, own)
    assert (missing.returncode, missing.stdout) == (127, "")
    assert missing.stderr.endswith(f"run: pip install 'dapt-operator[operator]=={PRODUCT_VERSION}'\n")
    program(tmp_path / "tools" / "pipx")
    assert call(script, own, tmp_path / "tools").stdout == (
        f"tools/pipx 7 run --quiet --spec dapt-operator[operator]=={PRODUCT_VERSION} kubectl-dapt status a b\n"
    )
    for name in ("dapt", "kubectl-dapt"):
        program(tmp_path / "installed" / name)
    assert call(script, own, tmp_path / "tools", tmp_path / "installed").stdout == (
        "installed/kubectl-dapt 2 status a b\n"
    )


def test_nothing_of_the_folder_that_one_is_in_is_started(tmp_path: Path, written: Path) -> None:
    own, theirs = tmp_path / "krew", tmp_path / "theirs"
    with zipfile.ZipFile(written / "kubectl-dapt.zip") as archive:
        archive.extractall(own)
    script = own / "kubectl-dapt"
    for name in ("dapt", "kubectl-dapt"):
        program(theirs / name)
        program(theirs / "bin" / name)
    for folder in (".", "bin", "./bin", "../theirs", "~", "*"):
        assert call(script, folder, cwd=theirs).returncode == 127, folder
    program(tmp_path / "tools" / "pipx")
    assert call(script, tmp_path / "tools", cwd=theirs).stdout.startswith("tools/pipx")
    # pipx prefers a program that lies there, also to one that --spec names.
    (theirs / "__pypackages__").symlink_to("nowhere")
    refused = call(script, tmp_path / "tools", cwd=theirs)
    assert (refused.returncode, refused.stdout) == (127, "")
    assert "call it from another folder" in refused.stderr
