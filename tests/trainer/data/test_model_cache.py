"""A base model of the hub is downloaded once for all adaptations that share a model cache.

The hub is one of this machine that speaks as much of the protocol as a download takes; the client is the real one, in
processes of its own, since it reads the hub's address when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "c" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights of the base model",
}
FETCH = """
import sys
from pathlib import Path
from dapt_trainer.data.base_model.fetch import import_model
print(import_model("hf://org/base@main", Path(sys.argv[1]) / "model", Path(sys.argv[1]) / "scratch"))
"""


@dataclass
class Hub:
    """A hub with one repository, and what was downloaded from it."""

    url: str = ""
    downloads: list[str] = field(default_factory=list)


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/org/base/tree/"):
                listed = [
                    {"type": "file", "path": name, "size": len(text), "oid": hashlib.sha1(text).hexdigest()}
                    for name, text in FILES.items()
                ]
                self._answer(json.dumps(listed).encode())
            elif path.startswith("/api/models/org/base"):
                siblings = [{"rfilename": name, "size": len(text)} for name, text in FILES.items()]
                self._answer(json.dumps({"id": "org/base", "sha": COMMIT, "siblings": siblings}).encode())
            else:
                self._file(path, is_download=True)

        def do_HEAD(self) -> None:
            self._file(self.path.partition("?")[0], is_download=False)

        def _file(self, path: str, *, is_download: bool) -> None:
            name = path.rpartition("/")[2]
            if name not in FILES:
                self.send_error(404)
                return
            if is_download:
                hub.downloads.append(name)
            self._answer(FILES[name])

        def _answer(self, body: bytes) -> None:
            etag = hashlib.sha256(body).hexdigest()
            self.send_response(200)
            for header, value in (
                ("ETag", f'"{etag}"'),
                ("X-Repo-Commit", COMMIT),
                ("Content-Length", len(body)),
            ):
                self.send_header(header, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(hub: Hub, work: Path, cache: Path | None) -> str:
    """What prepare does with the base model, with or without a cache; the resolved source."""
    (work / "scratch").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "DAPT_"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(work / "home"), "NO_PROXY": "127.0.0.1"}
    if cache is not None:
        environment["DAPT_MODEL_CACHE"] = str(cache)
    done = subprocess.run(
        [sys.executable, "-c", FETCH, str(work)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def contents(folder: Path) -> dict[str, bytes]:
    assert not any(path.is_symlink() for path in folder.iterdir())
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_second_adaptation_downloads_nothing(hub: Hub, tmp_path: Path) -> None:
    for name in ("first", "second"):
        assert fetch(hub, tmp_path / name, tmp_path / "cache") == f"hf://org/base@{COMMIT}"
        assert contents(tmp_path / name / "model") == FILES
        assert sorted(hub.downloads) == sorted(FILES)


def test_a_model_of_the_cache_is_a_copy(hub: Hub, tmp_path: Path) -> None:
    """What a stage does to its own model reaches nobody else's."""
    fetch(hub, tmp_path / "first", tmp_path / "cache")
    with (tmp_path / "first/model/model.safetensors").open("wb") as file:
        file.write(b"changed")
    fetch(hub, tmp_path / "second", tmp_path / "cache")
    assert contents(tmp_path / "second/model") == FILES


def test_without_a_cache_each_adaptation_downloads_its_own(hub: Hub, tmp_path: Path) -> None:
    for name in ("first", "second"):
        fetch(hub, tmp_path / name, None)
    assert sorted(hub.downloads) == sorted([*FILES, *FILES])
