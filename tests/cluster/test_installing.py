"""docs/installing.md from top to bottom: every command for helm and kubectl is typed as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from testcluster import build
from testcluster.adaptations import healthy
from testcluster.control_plane import ROOT, ControlPlane, NoComponentsError
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.release import Release

pytestmark = pytest.mark.cluster
PAGE = (ROOT / "docs" / "installing.md").read_text()
FILES = dict(re.findall(r"```yaml\n# (\S+\.yaml)\n(.*?)```", PAGE, flags=re.DOTALL))
BLOCKS = re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if not line.startswith("docker ")]
PATIENCE_SECONDS = 120


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl: the page is about it")
    if build.built("helm") is None and not build.have_go():
        pytest.skip("no helm: `make cluster` builds it where Go is")
    try:
        made = ControlPlane()
    except (NoComponentsError, build.BuildError) as error:
        pytest.skip(str(error))
    with made:
        yield made


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder as a reader of the page has it: the checkout's charts and examples, and the files that it shows."""
    for name in ("charts", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def type_in(line: str, plane: ControlPlane, folder: Path) -> str:
    """One command; what it printed. Fails as a reader would see it fail."""
    environment = os.environ | {
        "KUBECONFIG": str(plane.kubeconfig),
        "PATH": f"{build.build('helm')}:{os.environ['PATH']}",
        **{f"HELM_{kind}_HOME": str(folder / ".helm" / kind) for kind in ("CACHE", "CONFIG", "DATA")},
    }
    done = subprocess.run(
        shlex.split(line),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"$ {line}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_page_works_from_top_to_bottom(plane: ControlPlane, workplace: Path) -> None:
    said: dict[str, str] = {}
    plane.make_namespace("health")  # some-namespaces.yaml has it, and says that it must exist
    with ScriptedKubelet(plane, healthy) as kubelet, Release(plane) as release:
        for line in COMMANDS:
            said[line] = type_in(line, plane, workplace)
            if line.startswith("helm uninstall"):
                release.stop_operator()
            elif line.startswith("helm "):
                release.run_operator()  # as the new pod of the Deployment would
        assert kubelet.errors == []
    table = next(text for line, text in said.items() if line.endswith("get da first"))
    assert table.split()[:6] == ["NAME", "READY", "PHASE", "REASON", "STAGE", "PROGRESS"]
    destination = next(text for line, text in said.items() if "jsonpath" in line)
    assert destination == "s3://models/first"
    kept = next(text for line, text in said.items() if line.startswith("helm uninstall"))
    assert "kept due to the resource policy" in kept


def test_the_page_has_the_commands_that_this_test_is_about() -> None:
    assert len(COMMANDS) >= 18
    assert {line.split()[0] for line in COMMANDS} == {"helm", "kubectl"}
