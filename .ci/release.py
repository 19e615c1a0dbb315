"""The steps of a release that need no network, for .github/workflows/release.yaml and for a dry run on any machine.

Nothing but the standard library: it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
LEAST_PACKAGES = 40
"""An SBOM with fewer did not look into the image."""


class ReleaseError(Exception):
    """What keeps this from being released, in one sentence."""


def version(tag: str = "") -> str:
    """Return the product's version, once everything that shows it agrees.

    Raises:
        ReleaseError: the chart, or the tag if one is given, has another one.
    """
    source = (ROOT / "operator" / "src" / "dapt_contract" / "version.py").read_text()
    found = re.findall(r'^PRODUCT_VERSION = "(\d+\.\d+\.\d+)"$', source, flags=re.MULTILINE)
    if len(found) != 1:
        raise ReleaseError("version.py has no PRODUCT_VERSION of three numbers")
    chart = (ROOT / "charts" / "dapt" / "Chart.yaml").read_text()
    for name in ("version", "appVersion"):
        if not re.search(rf"^{name}: {re.escape(found[0])}$", chart, flags=re.MULTILINE):
            raise ReleaseError(f"{name} in Chart.yaml is not {found[0]}, the version of version.py")
    if tag and tag != f"v{found[0]}":
        raise ReleaseError(f"the tag is {tag!r}, and version.py says {found[0]}: tag v{found[0]}")
    return found[0]


def notes() -> str:
    """Return the section of the changelog about this version.

    Raises:
        ReleaseError: there is none.
    """
    name = version()
    text = (ROOT / "CHANGELOG.md").read_text()
    section = re.search(rf"^## \[{re.escape(name)}\][^\n]*\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if section is None or not section[1].strip():
        raise ReleaseError(
            f"CHANGELOG.md has no section [{name}]: move what [Unreleased] has there before the tag is made"
        )
    return section[1].strip() + "\n"


def base(dockerfile: Path) -> str:
    """Return the name and tag of the image that a Dockerfile builds on.

    Raises:
        ReleaseError: the file does not name one.
    """
    found = re.findall(r"^ARG BASE=([a-z0-9./_-]+:[\w.-]+)$", dockerfile.read_text(), flags=re.MULTILINE)
    if len(found) != 1:
        raise ReleaseError(f"{dockerfile}: one line ARG BASE=NAME:TAG is needed")
    return found[0]


def digest(document: Path) -> str:
    """Return the digest in the manifest, or the metadata of a build, that buildx wrote.

    Raises:
        ReleaseError: there is none.
    """
    content = _read(document)
    found = content.get("containerimage.digest", content.get("digest", ""))
    if not isinstance(found, str) or not DIGEST.fullmatch(found):
        raise ReleaseError(f"{document}: no digest of the form sha256:...")
    return found


def check_attestations(provenance: Path, sbom: Path, base_digest: str) -> None:
    """Check that the provenance of an image names its base by digest, and that its SBOM lists packages.

    Raises:
        ReleaseError: not so.
    """
    if not DIGEST.fullmatch(base_digest):
        raise ReleaseError(f"{base_digest!r} is no digest of the form sha256:...")
    # By its hexadecimal part, and as a value of its own: materials have it as {"sha256": "..."}.
    if base_digest.removeprefix("sha256:") not in set(_texts(_read(provenance))):
        raise ReleaseError(f"{provenance}: the base {base_digest} is not among the materials")
    packages = _read(sbom).get("packages")
    number = len(packages) if isinstance(packages, list) else 0
    if number <= LEAST_PACKAGES:
        raise ReleaseError(f"{sbom}: {number} packages, and an image has more than {LEAST_PACKAGES}")


def sums(folder: Path) -> str:
    """Return a line for each file of a folder, as `sha256sum --check` reads it.

    Raises:
        ReleaseError: a wheel or the sources are missing.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "SHA256SUMS")
    endings = sorted(path.name[-7:] for path in files)
    if endings != [".tar.gz", "any.whl"]:
        raise ReleaseError(
            f"{folder} must hold one wheel and the sources, and has {[path.name for path in files]}"
        )
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)


def _read(document: Path) -> dict[str, Any]:
    try:
        content = json.loads(document.read_text())
    except ValueError as error:
        raise ReleaseError(f"{document} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ReleaseError(f"{document} is no object of JSON, as of an image without attestations")
    return content


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(item)


def main(arguments: list[str]) -> int:
    """Run one step; print its result, or one sentence about what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("version").add_argument("--tag", default="")
    steps.add_parser("notes")
    steps.add_parser("base").add_argument("dockerfile", type=Path)
    steps.add_parser("digest").add_argument("document", type=Path)
    attestations = steps.add_parser("attestations")
    attestations.add_argument("provenance", type=Path)
    attestations.add_argument("sbom", type=Path)
    attestations.add_argument("base_digest")
    steps.add_parser("sums").add_argument("folder", type=Path)
    given = vars(parser.parse_args(arguments))
    step = given.pop("step")
    functions = {
        "version": version, "notes": notes, "base": base, "digest": digest, "attestations": check_attestations,
        "sums": sums,
    }  # fmt: skip
    try:
        result = functions[step](**given)
    except (ReleaseError, OSError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    if result:
        print(result.rstrip("\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
