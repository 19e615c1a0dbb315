"""Writes the plugin `kubectl dapt` for krew: its archive, and the manifest with the archive's address and checksum.

Nothing but the standard library. The archive is the same bytes wherever it is written, so the manifest can be checked.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ARCHIVE = "kubectl-dapt.zip"
MANIFEST = "dapt.yaml"
EXAMPLE_ADDRESS = "https://downloads.example/dapt"
_FIRST_DATE = (1980, 1, 1, 0, 0, 0)


def product_version() -> str:
    """Return the version of the product."""
    names: dict[str, str] = {}
    exec((ROOT / "operator" / "src" / "dapt_contract" / "version.py").read_text(), names)
    return names["PRODUCT_VERSION"]


def archive() -> bytes:
    """Return the archive: the script that starts the plugin, and the licence."""
    script = (ROOT / "deploy" / "krew" / "kubectl-dapt").read_text().replace("VERSION", product_version())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, mode, text in (
            ("kubectl-dapt", 0o755, script),
            ("LICENSE", 0o644, (ROOT / "LICENSE").read_text()),
        ):
            entry = zipfile.ZipInfo(name, _FIRST_DATE)
            entry.create_system = 3  # Unix, whose modes the next line has
            entry.external_attr = (0o100000 | mode) << 16
            file.writestr(entry, text)
    return buffer.getvalue()


def manifest(address: str) -> str:
    """Return the manifest for an archive at `ADDRESS/vVERSION/kubectl-dapt.zip`."""
    return f"""\
# Written by .ci/krew.py; the address of a release is its --address.
apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata: {{name: dapt}}
spec:
  version: v{product_version()}
  homepage: {address}
  shortDescription: Submit, watch and explain model adaptations
  description: |
    Adapts language models to a domain, with forgetting measured, bounded and reported. The plugin submits adaptations,
    shows their stages, logs and results, and says why one waits and what to do, with the rights of its user.
  caveats: |
    The plugin is a Python program: that of the installed dapt, else one that uv or pipx bring in this version. The
    cluster needs dapt's operator.
  platforms:
    - selector:
        matchExpressions: [{{key: os, operator: In, values: [linux, darwin]}}]
      uri: {address}/v{product_version()}/{ARCHIVE}
      sha256: {hashlib.sha256(archive()).hexdigest()}
      files: [{{from: kubectl-dapt, to: .}}, {{from: LICENSE, to: .}}]
      bin: kubectl-dapt
"""


def main(arguments: list[str]) -> int:
    """Write both files into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--address", default=EXAMPLE_ADDRESS)
    given = parser.parse_args(arguments)
    if not given.address.startswith("https://"):
        parser.error(f"--address {given.address}: krew loads archives by https:// alone")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / ARCHIVE).write_bytes(archive())
    (given.out / MANIFEST).write_text(manifest(given.address.rstrip("/")))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
