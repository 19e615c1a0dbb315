"""The version stands in dapt_contract/version.py; everything else reads it from there or must equal it."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

from packaging.version import Version

from dapt_contract.version import PRODUCT_VERSION

ROOT = Path(__file__).parents[2]
SHOWN = re.compile(r"dapt-(?:operator|trainer)(?::|==)(\d+\.\d+\.\d+[\w.+-]*)")
"""An image's tag or a pinned requirement."""


def shown_versions() -> dict[str, str]:
    """Return `file:line` -> the version that stands there, in all that users read, copy or build."""
    paths = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/**/*.yaml"),
        *ROOT.glob("charts/**/*.yaml"),
        *ROOT.glob("*/Dockerfile"),
    ]
    return {
        f"{path.relative_to(ROOT)}:{number}": version
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for version in SHOWN.findall(line)
    }


def test_the_version_is_one_that_packages_and_helm_both_accept() -> None:
    assert str(Version(PRODUCT_VERSION)) == PRODUCT_VERSION
    assert re.fullmatch(r"\d+\.\d+\.\d+", PRODUCT_VERSION)  # Helm wants three numbers


def test_the_distribution_reads_its_version_from_the_contract() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert (ROOT / project["tool"]["hatch"]["version"]["path"]).is_file()
    assert importlib.metadata.version("dapt-operator") == PRODUCT_VERSION


def test_documents_and_examples_show_this_version() -> None:
    shown = shown_versions()
    assert len(shown) > 8
    assert {place: version for place, version in shown.items() if version != PRODUCT_VERSION} == {}
