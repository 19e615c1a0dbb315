"""Images for a node that can pull none: one layer, written as a docker-archive that `ctr images import` reads."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Image:
    """What is in an image; everything belongs to root and may be read by all."""

    reference: str
    folders: tuple[str, ...] = ()
    """Empty folders, without a leading slash; parents first."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Content by path, executable."""
    command: tuple[str, ...] = ()


def write_archive(image: Image, path: Path) -> None:
    """Write the image to `path`; equal images give equal bytes."""
    layer = _tar([(name, None) for name in image.folders] + sorted(image.files.items()))
    config = json.dumps(
        {
            "architecture": ARCHITECTURES[platform.machine()],
            "os": "linux",
            "config": {"Cmd": list(image.command), "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_digest(layer)}"]},
        }
    ).encode()
    index = json.dumps(
        [
            {
                "Config": f"{_digest(config)}.json",
                "RepoTags": [image.reference],
                "Layers": [f"{_digest(layer)}/layer.tar"],
            }
        ]
    ).encode()
    path.write_bytes(
        _tar(
            [
                (f"{_digest(layer)}/layer.tar", layer),
                (f"{_digest(config)}.json", config),
                ("manifest.json", index),
            ]
        )
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _tar(entries: Sequence[tuple[str, bytes | None]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755
            if content is None:
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
