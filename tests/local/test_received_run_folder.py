"""A run folder that somebody sent is continued only when nothing in it leads out, and its objects are as dapt's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dapt_operator.cluster.local import LocalCluster, LocalRunError
from support.launch_builders import resource

NAME = resource()["metadata"]["name"]
Change = Callable[[Path, Path], object]


def link(name: str, target: str = "victim/file") -> Change:
    """Place a link in the run folder, to something beside it."""

    def change(folder: Path, home: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            path.rename(home / "moved")
        path.unlink(missing_ok=True)
        path.symlink_to(home / target)

    return change


def stored(kind: str, name: str, file: str = "", **fields: Any) -> Change:
    """Place an object among those of the run."""

    def change(folder: Path, _: Path) -> None:
        path = folder / "objects" / (file or f"{kind.lower()}-{name}.json")
        path.write_text(json.dumps({"kind": kind, "metadata": {"name": name}} | fields))

    return change


def edited(**fields: Any) -> Change:
    """Change the stored resource."""

    def change(folder: Path, _: Path) -> None:
        (path,) = (folder / "objects").glob("domainadaptation-*.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def pipe(name: str) -> Change:
    def change(folder: Path, _: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).parent.mkdir(exist_ok=True)
        os.mkfifo(folder / name)

    return change


def several(*changes: Change) -> Change:
    def change(folder: Path, home: Path) -> None:
        for one in changes:
            one(folder, home)

    return change


def of_container(**fields: Any) -> dict[str, Any]:
    return {"template": {"spec": {"containers": [{"name": "trainer"} | fields]}}}


POD: dict[str, Any] = {"spec": {"template": {"spec": {"containers": [{"name": "trainer"}]}}}}
HOSTILE: dict[str, Change] = {
    "lock leads out": link(".lock"),
    "lock is a pipe": pipe(".lock"),
    "events lead out": link("events.jsonl"),
    "reserve leads to nothing": link("objects/.reserve", "victim/new"),
    "log leads out": link("logs/baseline-0.log"),
    "log is a pipe": pipe("logs/baseline-0.log"),
    "logs lead out": link("logs", "victim"),
    "objects lead out": link("objects", "victim"),
    "pods lead out": link("pods", "victim"),
    "pod leads out": link("pods/a-0", "victim/pod"),
    "file of a pod leads out": link("pods/a-0/stage/stage.json"),
    "volume leads out": link("work", "victim"),
    "stages lead out": link("work/stages", "victim"),
    "model leads out": link("work/model/config.json"),
    "link by way of a link": several(link("work/a", ""), link("b", "run/work/a/victim")),
    "name leads out": stored("Job", "x/../../../victim/evil", "job-x.json", **POD),
    "kind leads out": stored("../../victim/evil", "x", "pod-x.json"),
    "name of another file": stored("Pod", "other", "pod-x.json"),
    "name is a number": stored("Pod", 5, "pod-5.json"),  # type: ignore[arg-type]
    "kind is a list": stored([], "x", "pod-x.json"),  # type: ignore[arg-type]
    "pods without end": stored("Job", "x", spec=POD["spec"] | {"completions": 10**12}),
    "no number of pods": stored("Job", "x", spec=POD["spec"] | {"completions": "2"}),
    "fewer pods than none": stored("Job", "x", spec=POD["spec"] | {"completions": -1}),
    "job without a spec": stored("Job", "x"),
    "job whose spec is a list": stored("Job", "x", spec=[1]),
    "job whose status is a text": stored("Job", "x", **POD, status="text"),
    "job whose conditions are numbers": stored("Job", "x", **POD, status={"conditions": [1, 2]}),
    "job without containers": stored("Job", "x", spec={"template": {"spec": {}}}),
    "pod whose status is a list": several(stored("Job", "x", **POD), stored("Pod", "x-0", status=[1])),
    "variable is a text": stored("Job", "x", spec=of_container(env=["A"])),
    "limits are a text": stored("Job", "x", spec=of_container(resources={"limits": "8"})),
    "end of a container is a list": stored("Pod", "x", status={"containerStatuses": [{"state": [1]}]}),
    "version has thousands of digits": edited(
        metadata={"name": NAME, "generation": 1, "resourceVersion": "9" * 5000}, spec={}
    ),
    "resource without a spec": edited(spec=None),
    "version is a text": edited(metadata={"name": NAME, "generation": 1, "resourceVersion": "x"}, spec={}),
    "generation is a text": edited(metadata={"name": NAME, "generation": "x", "resourceVersion": "1"}, spec={}),
    "conditions are a number": edited(status={"conditions": 5}),
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with something to lose beside the run's."""
    victim = tmp_path / "victim"
    for name in ("file", "pod/scratch/notes"):
        (victim / name).parent.mkdir(parents=True, exist_ok=True)
        (victim / name).write_text("mine")
    LocalCluster(tmp_path / "run", resource(), None).close()
    return tmp_path


@pytest.mark.parametrize("name", HOSTILE)
def test_a_run_folder_that_means_harm_is_refused_and_nothing_outside_is_written(
    home: Path, name: str
) -> None:
    HOSTILE[name](home / "run", home)
    with pytest.raises(LocalRunError) as refused:
        LocalCluster(home / "run", resource(), None)
    (sentence,) = refused.value.problems
    assert "start over with --fresh" in sentence or "holds the run of" in sentence
    files = {
        path.relative_to(home / "victim"): path.read_text()
        for path in (home / "victim").rglob("*")
        if path.is_file()
    }
    assert files == {Path("file"): "mine", Path("pod/scratch/notes"): "mine"}
    assert not list(home.glob("*.json"))


@pytest.mark.parametrize(
    "name",
    ["work/hub/snapshots/a", "pods/a-0/scratch/cache", "work/stages/prepare/try-1/spool/gguf/model.gguf"],
)
def test_links_that_a_run_leaves_are_no_reason_to_refuse_it(home: Path, name: str) -> None:
    path = home / "run" / name
    path.parent.mkdir(parents=True)
    if name.startswith("work/hub"):
        (home / "run/work/hub/blobs").mkdir()
        path.symlink_to("../blobs")
    else:
        path.symlink_to(home / "victim")
    LocalCluster(home / "run", resource(), None).close()
    assert (home / "victim/file").read_text() == "mine"
