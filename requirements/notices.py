"""Writes docs/third-party.md: what the images contain beside dapt, with the licence of each package.

make notices

The packages and versions are those of the locks on Linux; the licences are what the installed packages say.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "third-party.md"
IMAGES = {"dapt-operator": ("operator",), "dapt-trainer": ("trainer", "gpu")}
NOT_INSTALLED = {"liger-kernel": "BSD-2-Clause"}
"""Licences of packages that are in an image and not in .venv, since they need a GPU: from their own metadata."""
LINUX = {
    **default_environment(),
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "python_version": "3.11",
    "python_full_version": "3.11.9",
}
UNCHANGED = "Its files are unchanged; their source is on the Python package index."
CONDITIONS = {
    "Lesser General Public License": "It is a package of its own in `/opt/dapt`, which anybody may replace.",
    "Mozilla Public License": UNCHANGED,
    "MPL": UNCHANGED,
    "NVIDIA": "It may be passed on, unchanged, with an application that uses it.",
}
"""Words in a licence -> what they ask of somebody who passes the image on."""


def pins(lock: str) -> list[tuple[str, str]]:
    """Return names and versions that a lock installs on Linux, in the order of the names."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    lines = re.findall(r"^([A-Za-z0-9][^\\\n]*?)\s*\\?$", text, flags=re.MULTILINE)
    found = [Requirement(line) for line in lines]
    return sorted(
        (canonicalize_name(item.name), next(iter(item.specifier)).version)
        for item in found
        if item.marker is None or item.marker.evaluate(LINUX)
    )


def licence(name: str) -> str:
    """Return the licence that an installed package names: an SPDX expression, classifiers, or its own words."""
    if name in NOT_INSTALLED:
        return NOT_INSTALLED[name]
    metadata = importlib.metadata.metadata(name)
    if expression := metadata.get("License-Expression"):
        return expression
    classifiers = [
        line.split("::")[-1].strip()
        for line in metadata.get_all("Classifier") or []
        if line.startswith("License ::") and line.count("::") > 1
    ]
    text = (metadata.get("License") or "").strip().splitlines()
    if classifiers:
        return "; ".join(classifiers)
    return (
        text[0]
        if text
        else "NVIDIA's licence of the CUDA Toolkit"
        if name.startswith("cuda-")
        else "not stated"
    )


def page() -> str:
    """Return the whole page."""
    lines = [
        "# What the images contain beside dapt",
        "",
        "Written by `make notices` from the locks in `requirements/` and from what each package says of its licence.",
        "The full texts are in the images, in the `*.dist-info` folders below `/opt/dapt/lib`. The base image is",
        "Debian's with Python; a release names it by digest, and its SBOM lists Debian's packages too.",
    ]
    for image, locks in IMAGES.items():
        pinned = sorted({pin for lock in locks for pin in pins(lock)})
        rows = [(name, version, licence(name)) for name, version in pinned]
        lines += ["", f"## {image}", "", f"{len(rows)} Python packages.", ""]
        marked: dict[str, list[str]] = {}
        for name, _, words in rows:
            for mark, asks in CONDITIONS.items():
                if mark in words:
                    marked.setdefault(f"{words}. {asks}", []).append(name)
                    break
        if marked:
            lines += ["Licences that ask something of whoever passes the image on:", ""]
            lines += [f"- {', '.join(names)}: {text}" for text, names in marked.items()]
            lines += [""]
        lines += ["| package | version | licence |", "| --- | --- | --- |"]
        lines += [f"| {name} | {version} | {words} |" for name, version, words in rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
