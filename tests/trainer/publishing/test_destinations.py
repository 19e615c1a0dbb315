"""Each kind of destination is tried as publishing will write it; each fault has its sentence; nothing is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dapt_contract.run_identity import RunIdentity
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.destination import DestinationConfig
from dapt_trainer.context import SilentProgress, StageContext
from dapt_trainer.errors import InfrastructureError, InputError
from dapt_trainer.publishing.destinations import PROBE, ObjectStore, open_destination
from dapt_trainer.publishing.published_files import ModelManifest, manifest_bytes
from dapt_trainer.stages.destination import run

DIGEST, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
SUFFIX = "; check that the place exists and that the credentials of use `write` may write there"


def manifest(digest: str = DIGEST) -> bytes:
    return manifest_bytes(
        ModelManifest(run_digest=digest, adaptation="toy", candidate="a1-s2", digest="sha256:0", files=())
    )


def tried(uri: str, tmp_path: Path) -> str:
    """Return what the stage finds there."""
    config = DestinationConfig(destination=uri, run_digest=DIGEST)
    identity = RunIdentity(
        namespace="default", name="toy", uid="u", stage="destination", attempt=1, try_number=1, fence=1
    )
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    context = StageContext(
        stage=StageFile(run=identity, kind="destination", config=config),
        work=work,
        scratch=tmp_path,
        progress=SilentProgress(),
    )
    report = run(config, context)
    assert report.facts.destination == uri
    return report.facts.found


def refused(uri: str, tmp_path: Path) -> str:
    with pytest.raises(InputError) as caught:
        tried(uri, tmp_path)
    return str(caught.value)


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# Folders


def test_a_folder_is_tried_and_nothing_is_left(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    assert tried(f"file://{place}/models/new/clinical", tmp_path) == "empty"
    assert everything(place) == []
    (place / "out").mkdir()
    assert tried(f"file://{place}/out", tmp_path) == "empty"
    (place / "out/dapt.json").write_bytes(manifest())
    (place / "out/model.safetensors").touch()
    assert tried(f"file://{place}/out", tmp_path) == "ours"
    assert everything(place) == ["out", "out/dapt.json", "out/model.safetensors"]


def test_a_folder_of_another_run_or_of_unknown_files_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").touch()
    start = f"output.destination file://{out}: "
    assert refused(f"file://{out}", tmp_path) == (
        f"{start}not empty, and no dapt.json says that this run wrote it; empty it, or choose another place"
    )
    (out / "dapt.json").write_bytes(manifest(OTHER))
    assert refused(f"file://{out}", tmp_path) == (
        f"{start}holds the model of another run (sha256:222222222222..., this one is sha256:111111111111...); "
        "empty it, or choose another place"
    )
    (out / "dapt.json").write_text('{"kind": "of something else"}')
    assert refused(f"file://{out}", tmp_path) == (
        f"{start}not empty, and its dapt.json is none that dapt wrote; empty it, or choose another place"
    )


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert refused(f"file://{tmp_path}/a", tmp_path) == (
        f"output.destination file://{tmp_path}/a: it is a file; a folder is needed"
    )
    assert refused(f"file://{tmp_path}/a/b/c", tmp_path) == (
        f"output.destination file://{tmp_path}/a/b/c: {tmp_path}/a is a file; a folder is needed"
    )


def test_a_volume_that_is_read_only_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mkdir(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", f"{tmp_path}/out")

    (tmp_path / "work").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", mkdir)
        with pytest.raises(InputError) as caught:
            open_destination(f"file://{tmp_path}/out", work=tmp_path / "work").probe()
    assert str(caught.value) == (
        f"output.destination file://{tmp_path}/out cannot be written (OSError: [Errno 30] Read-only file system: "
        f"'{tmp_path}/out'){SUFFIX}"
    )


def test_a_full_disk_is_not_the_users_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_bytes(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(InfrastructureError, match="No space left on device"):
        tried(f"file://{tmp_path}/out", tmp_path)
    assert everything(tmp_path) == ["work"]


def test_a_name_that_the_file_system_cannot_hold_is_refused(tmp_path: Path) -> None:
    assert "File name too long" in refused(f"file://{tmp_path}/{'x' * 300}", tmp_path)
    assert "File name too long" in refused(
        f"file://{tmp_path}/{'x' * 250}", tmp_path
    )  # as it is being written


def test_where_a_volume_is_mounted_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "mounted")
    (tmp_path / "mounted").mkdir()
    assert refused(f"file://{tmp_path}/mounted", tmp_path) == (
        f"output.destination file://{tmp_path}/mounted: is where a volume is mounted, which cannot be replaced as a "
        "whole; name a folder on it"
    )
    assert tried(f"file://{tmp_path}/mounted/out", tmp_path) == "empty"


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    large = tmp_path / "large-disk"
    large.mkdir()
    (tmp_path / "out").symlink_to(large)
    model = tmp_path / "model"
    model.mkdir()
    (model / "dapt.json").write_bytes(manifest())
    open_destination(f"file://{tmp_path}/out", work=tmp_path / "work").write(model, heartbeat=lambda: None)
    assert (tmp_path / "out").is_symlink()
    assert everything(large) == ["dapt.json"]
    assert tried(f"file://{tmp_path}/out", tmp_path) == "ours"


def test_model_that_is_assembled_beside_the_destination_is_renamed(tmp_path: Path) -> None:
    destination = open_destination(f"file://{tmp_path}/team/out", work=tmp_path / "work")
    staging = destination.staging(tmp_path / "work/stages/publish")
    assert staging.parent == tmp_path / "team"
    staging.mkdir()
    (staging / "model.safetensors").write_bytes(b"weights")
    (staging / "dapt.json").write_bytes(manifest())
    inode = (staging / "model.safetensors").stat().st_ino
    destination.write(staging, heartbeat=lambda: None)
    assert everything(tmp_path / "team") == ["out", "out/dapt.json", "out/model.safetensors"]
    # The very file: no byte of it was written a second time.
    assert (tmp_path / "team/out/model.safetensors").stat().st_ino == inode
    assert tried(f"file://{tmp_path}/team/out", tmp_path) == "ours"


def test_model_that_a_killed_run_assembled_is_removed(tmp_path: Path) -> None:
    destination = open_destination(f"file://{tmp_path}/out", work=tmp_path / "work")
    left = destination.staging(tmp_path / "own")
    left.mkdir()
    (left / "half").write_bytes(b"")
    assert not destination.staging(tmp_path / "own").exists()


def test_a_claim_is_tried_where_the_pod_mounts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAPT_CLAIMS", str(tmp_path / "claims"))
    (tmp_path / "claims/models").mkdir(parents=True)
    assert tried("pvc://models/team/clinical", tmp_path) == "empty"
    assert everything(tmp_path / "claims") == ["models"]
    assert refused("pvc://models", tmp_path) == (
        "output.destination 'pvc://models': the claim itself cannot be replaced as a whole; write pvc://CLAIM/FOLDER"
    )
    assert "claim 'other' is not mounted" in refused("pvc://other/x", tmp_path)


# Object stores


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 server in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def store(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The client of a server with the bucket `models`."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem(client_kwargs={"endpoint_url": os.environ["AWS_ENDPOINT_URL"]})
    if store.exists("models"):
        store.rm("models", recursive=True)
    store.mkdir("models")
    yield store
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket_is_tried_and_nothing_is_left(store: Any, tmp_path: Path) -> None:
    assert tried("s3://models/team/clinical", tmp_path) == "empty"
    assert store.find("models") == []
    store.pipe_file("models/team/clinical/dapt.json", manifest())
    assert tried("s3://models/team/clinical", tmp_path) == "ours"
    store.pipe_file("models/team/clinical/dapt.json", manifest(OTHER))
    assert "holds the model of another run" in refused("s3://models/team/clinical", tmp_path)
    store.invalidate_cache()
    assert store.find("models") == ["models/team/clinical/dapt.json"]


def test_a_bucket_that_does_not_exist_is_named(store: Any, tmp_path: Path) -> None:
    sentence = refused("s3://no-such-bucket/clinical", tmp_path)
    assert sentence.startswith(
        "output.destination s3://no-such-bucket/clinical cannot be written (FileNotFoundError: "
    )
    assert sentence.endswith(SUFFIX)


def test_credentials_that_may_not_write_are_refused(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(store, "pipe_file", denied)
    assert refused("s3://models/clinical", tmp_path) == (
        f"output.destination s3://models/clinical cannot be written (PermissionError: Access Denied){SUFFIX}"
    )


def test_credentials_that_may_only_add_objects_are_enough(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError("Access Denied")

    with monkeypatch.context() as patch:
        patch.setattr(store, "rm_file", denied)
        assert tried("s3://models/clinical", tmp_path) == "empty"
    assert store.find("models") == [f"models/clinical/{PROBE}"]
    assert tried("s3://models/clinical", tmp_path) == "empty"  # what was left counts as nothing


def model_folder(folder: Path, card: bytes = b"card") -> Path:
    """Four files of a model, and their manifest."""
    folder.mkdir()
    for number in range(3):
        (folder / f"model-{number}.safetensors").write_bytes(bytes([number]) * 1000)
    (folder / "README.md").write_bytes(card)
    (folder / "dapt.json").write_bytes(manifest().replace(b"sha256:0", b"sha256:" + card))
    return folder


NOTE = ".dapt-writing-0123456789ab"
IS_NONE = "its dapt.json is none that dapt wrote"
OF_UNKNOWN = "no dapt.json says that this run wrote it"
NOTES: dict[str, tuple[dict[str, bytes], str]] = {
    "of another run": ({NOTE: manifest(OTHER)}, "holds the model of another run"),
    "beside an own one": (
        {NOTE: manifest(), ".dapt-writing-ffffffffffff": manifest(OTHER)},
        "holds the model of another run",
    ),
    "empty": ({NOTE: b"", "a": b""}, IS_NONE),
    "no text": ({NOTE: b"\xff\xfe" * 9, "a": b""}, IS_NONE),
    "a list": ({NOTE: b"[]", "a": b""}, IS_NONE),
    "deep": ({NOTE: b"[" * 10**6, "a": b""}, IS_NONE),
    "deep below": ({NOTE: manifest()[:-3] + b',"x":' + b'{"x":' * 10**5, "a": b""}, IS_NONE),
    "a number without end": ({NOTE: b"9" * 10**6, "a": b""}, IS_NONE),
    "larger than a manifest": ({NOTE: manifest() + b" " * 2**24, "a": b""}, IS_NONE),
    "a manifest of that size": ({"dapt.json": manifest() + b" " * 2**24}, IS_NONE),
    "33 own ones": ({f".dapt-writing-{i:012x}": manifest() for i in range(33)}, "has 33 notes of uploads"),
    "below another folder": ({f"theirs/{NOTE}": manifest()}, OF_UNKNOWN),
    "with a path": ({f"../{NOTE}": manifest()}, OF_UNKNOWN),
    "with another name": ({".dapt-writing-precious": manifest()}, OF_UNKNOWN),
    "with a longer name": ({f"{NOTE}.txt": manifest()}, OF_UNKNOWN),
}


class Bucket:
    """Objects in memory, with what a destination calls; keys are no paths, as in a store."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = {f"models/x/{name}": content for name, content in objects.items()}

    def invalidate_cache(self) -> None:
        pass

    def find(self, root: str, *, detail: bool) -> dict[str, dict[str, int]]:
        assert detail
        return {
            path: {"size": len(content)} for path, content in self.objects.items() if path.startswith(root)
        }

    def cat_file(self, path: str) -> bytes:
        return self.objects[path]

    def pipe_file(self, path: str, content: bytes) -> None:
        self.objects[path] = content

    def put_file(self, source: str, path: str) -> None:
        self.objects[path] = Path(source).read_bytes()

    def rm_file(self, path: str) -> None:
        del self.objects[path]


@pytest.mark.parametrize("name", NOTES)
def test_a_note_of_somebody_else_is_refused_in_a_sentence(name: str) -> None:
    objects, reason = NOTES[name]
    bucket: Any = Bucket(objects)
    with pytest.raises(InputError, match=reason) as caught:
        ObjectStore("s3://models/x", bucket, "models/x").require_writable(DIGEST)
    assert "\n" not in str(caught.value)


def test_an_upload_removes_its_own_notes_alone(tmp_path: Path) -> None:
    kept = {f"theirs/{NOTE}": b"1", ".dapt-writing-precious": b"2", f"../{NOTE}": b"3", f"a{NOTE}": b"4"}
    bucket: Any = Bucket(kept | {NOTE: manifest()})
    ObjectStore("s3://models/x", bucket, "models/x").write(
        model_folder(tmp_path / "model"), heartbeat=lambda: None
    )
    assert {name: bucket.objects[f"models/x/{name}"] for name in kept} == kept
    assert len(bucket.objects) == len(kept) + 5


@pytest.mark.parametrize("kind", ["large", "pipe", "link to a device"])
def test_a_manifest_that_is_no_file_of_its_size_is_not_read(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if kind == "large":
        (out / "dapt.json").touch()
        os.truncate(out / "dapt.json", 2**40)
    elif kind == "pipe":
        os.mkfifo(out / "dapt.json")
    else:
        (out / "dapt.json").symlink_to("/dev/zero")
    assert "not empty, and " in refused(f"file://{out}", tmp_path)


class Cutting:
    """Cuts uploads off before one of their files, as often as there are numbers, and counts those that came through."""

    def __init__(self, store: Any, cuts: list[int]) -> None:
        self._put, self.cuts, self.puts = store.put_file, cuts, list[str]()
        self._left = 0

    def begin(self) -> None:
        self._left = self.cuts.pop(0) if self.cuts else 99

    def put_file(self, source: str, target: str) -> None:
        if not self._left:
            raise ConnectionError("connection reset by peer")
        self._left -= 1
        self._put(source, target)
        self.puts.append(target.rpartition("/")[2])


def test_an_upload_that_is_cut_off_three_times_is_continued(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(tmp_path / "model")
    cutting = Cutting(store, [0, 2, 1])
    monkeypatch.setattr(store, "put_file", cutting.put_file)
    destination = open_destination("s3://models/clinical", work=tmp_path)
    for expected in ("empty", "ours", "ours"):
        cutting.begin()
        with pytest.raises(InfrastructureError, match="connection reset by peer"):
            destination.write(folder, heartbeat=lambda: None)
        assert destination.require_writable(DIGEST) == expected
        assert not store.exists("models/clinical/dapt.json")
    with pytest.raises(InputError, match="holds the model of another run"):
        destination.require_writable(OTHER)
    cutting.begin()
    destination.write(folder, heartbeat=lambda: None)
    assert cutting.puts == [
        "README.md",
        "model-0.safetensors",
        "model-1.safetensors",
        "model-2.safetensors",
        "dapt.json",
    ]
    store.invalidate_cache()
    assert {path: store.cat_file(path) for path in store.find("models")} == {
        f"models/clinical/{path.name}": path.read_bytes() for path in folder.iterdir()
    }


def test_files_of_an_upload_with_other_content_are_written_again(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cutting = Cutting(store, [2, 0])
    monkeypatch.setattr(store, "put_file", cutting.put_file)
    destination = open_destination("s3://models/clinical", work=tmp_path)
    edited = model_folder(tmp_path / "edited", b"edit")
    for folder in (model_folder(tmp_path / "model"), edited):
        cutting.begin()
        with pytest.raises(InfrastructureError):
            destination.write(folder, heartbeat=lambda: None)
    cutting.begin()
    destination.write(edited, heartbeat=lambda: None)
    store.invalidate_cache()
    assert store.cat_file("models/clinical/README.md") == b"edit"
    assert len(store.find("models")) == 5


def test_a_store_that_cannot_be_reached_is_tried_again(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EndpointConnectionError(Exception):
        pass

    def unreachable(*_: object, **__: object) -> None:
        raise EndpointConnectionError("Could not connect")

    monkeypatch.setattr(store, "find", unreachable)
    with pytest.raises(
        InfrastructureError, match="cannot be read \\(EndpointConnectionError: Could not connect"
    ):
        tried("s3://models/clinical", tmp_path)


def test_a_fault_of_ours_is_no_sentence(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise TypeError("ours")

    monkeypatch.setattr(store, "pipe_file", broken)
    with pytest.raises(TypeError):
        tried("s3://models/clinical", tmp_path)


@pytest.mark.parametrize(
    "uri",
    ["s3://Models/x", "s3://ab/x", "s3://my bucket/x", "s3://10.0.0.1/x", "s3://a..b/x", "gs://-models/x"],
)
def test_no_bucket_has_such_a_name(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dapt_trainer.publishing import destinations

    monkeypatch.setattr(destinations, "filesystem_of", lambda uri, field: (None, uri, uri))
    bucket = uri.split("/")[2]
    assert f"output.destination {uri!r}: {bucket!r} is no name of a bucket: " in refused(uri, tmp_path)


# The hub


class HubError(Exception):
    """An HTTP answer as the hub's client raises it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} Client Error")
        self.response = SimpleNamespace(status_code=status)


@dataclass
class Hub:
    """A hub with repositories, and what a token may do there."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    creates: bool = True
    removes: bool = True
    writes: bool = True
    status: int = 0
    """Answer to every question; 0: as it is."""

    def repo_exists(self, name: str) -> bool:
        if self.status:
            raise HubError(self.status)
        return name in self.repositories

    def list_repo_files(self, name: str) -> list[str]:
        return [".gitattributes", *self.repositories[name]]

    def auth_check(self, name: str, *, write: bool) -> None:
        if write and not self.writes:
            raise HubError(403)

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
        if not self.creates:
            raise HubError(403)
        assert (private, exist_ok) == (True, False)
        self.repositories[name] = {}

    def delete_repo(self, name: str) -> None:
        if not self.removes:
            raise HubError(403)
        del self.repositories[name]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    import huggingface_hub

    hub = Hub()

    def download(name: str, file: str) -> str:
        path = tmp_path / "downloaded"
        path.write_bytes(hub.repositories[name][file])
        return str(path)

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return hub


def test_a_repository_that_does_not_exist_is_made_and_removed(hub: Hub, tmp_path: Path) -> None:
    assert tried("hf://org/clinical", tmp_path) == "empty"
    assert hub.repositories == {}
    hub.removes = False
    assert tried("hf://org/clinical", tmp_path) == "empty"
    assert hub.repositories == {"org/clinical": {}}
    assert tried("hf://org/clinical", tmp_path) == "empty"


def test_a_repository_that_exists_is_not_changed(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["org/clinical"] = {"dapt.json": manifest(), "model.safetensors": b""}
    assert tried("hf://org/clinical", tmp_path) == "ours"
    assert hub.repositories["org/clinical"].keys() == {"dapt.json", "model.safetensors"}
    hub.repositories["org/other"] = {"README.md": b""}
    assert "not empty, and no dapt.json" in refused("hf://org/other", tmp_path)
    hub.writes = False
    assert refused("hf://org/clinical", tmp_path) == (
        f"output.destination hf://org/clinical cannot be written (HubError: 403 Client Error){SUFFIX}"
    )


def test_a_token_without_rights_is_refused_and_a_hub_in_trouble_is_asked_again(
    hub: Hub, tmp_path: Path
) -> None:
    hub.creates = False
    assert "cannot be written (HubError: 403" in refused("hf://org/clinical", tmp_path)
    for status, error in ((401, InputError), (429, InfrastructureError), (503, InfrastructureError)):
        hub.status = status
        with pytest.raises(error, match=f"cannot be read \\(HubError: {status}"):
            tried("hf://org/clinical", tmp_path)


@pytest.mark.parametrize("name", ["org/a--b", "org/.hidden", "org/" + "x" * 97, "org/ü", "org/model.git"])
def test_a_name_that_the_hub_does_not_accept_is_refused(name: str, hub: Hub, tmp_path: Path) -> None:
    assert f"output.destination 'hf://{name}': the hub does not accept {name!r}: " in refused(
        f"hf://{name}", tmp_path
    )


@pytest.mark.parametrize("name", ["clinical", "datasets/org/clinical", "org/clinical/v1"])
def test_a_model_on_the_hub_has_an_owner_and_a_name(name: str, hub: Hub, tmp_path: Path) -> None:
    assert refused(f"hf://{name}", tmp_path) == (
        f"output.destination 'hf://{name}': a model on the hub is hf://ORG/NAME, without revision or folder"
    )


def test_the_stage_starts_without_torch() -> None:
    import subprocess
    import sys

    program = (
        "import sys, dapt_trainer.stages.destination\n"
        "sys.exit(len({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
