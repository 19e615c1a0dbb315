"""Builds the components of the test cluster from their Go modules, once for each content of a module.

`python -m testcluster.build [NAME...]` from tests/cluster; without names it builds what every cluster test needs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MODULES = Path(__file__).parents[1] / "components"


@dataclass(frozen=True)
class Component:
    """A Go module under components/ and how it is built."""

    name: str
    minutes: float
    """Expected build time on two cores without Go's cache."""
    package: str = "."
    """What is built: the module itself, or a command of a module that it requires."""
    links: tuple[str, ...] = ()
    """Names under which a multi-call binary is called."""
    stamped: str = ""
    """Module whose version is written into the variables below."""
    variables: tuple[str, ...] = ()
    """Linker variables; `{version}`, `{major}` and `{minor}` are those of `stamped`."""
    carried: str = ""
    """Module whose `config/` folder (its CRDs, roles and webhooks) is kept beside the binary."""
    extra: bool = False
    """Not needed by the cluster tests proper: `make cluster-extras`."""


_VERSION = "k8s.io/component-base/version"
_HELM = "helm.sh/helm/v3/pkg"
KUBERNETES_NAMES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")
COMPONENTS: dict[str, Component] = {
    item.name: item
    for item in (
        Component(
            "kubernetes",
            minutes=7,
            links=KUBERNETES_NAMES,
            stamped="k8s.io/kubernetes",
            variables=(
                f"{_VERSION}.gitVersion={{version}}",
                f"{_VERSION}.gitMajor={{major}}",
                f"{_VERSION}.gitMinor={{minor}}",
                f"{_VERSION}.gitTreeState=clean",
            ),
        ),
        Component("coredns", minutes=1.5),
        Component("pause", minutes=0.1),
        Component(
            "helm",
            minutes=1.5,
            package="helm.sh/helm/v3/cmd/helm",
            stamped="k8s.io/client-go",  # v0.N of this is Kubernetes 1.N, for which helm renders unless told
            variables=(
                f"{_HELM}/chartutil.k8sVersionMajor=1",
                f"{_HELM}/chartutil.k8sVersionMinor={{minor}}",
                f"{_HELM}/lint/rules.k8sVersionMajor=1",
                f"{_HELM}/lint/rules.k8sVersionMinor={{minor}}",
            ),
        ),
        Component(
            "kueue",
            minutes=6,
            package="sigs.k8s.io/kueue/cmd/kueue",
            carried="sigs.k8s.io/kueue",
            extra=True,
        ),
        Component(  # after kueue, with which it shares most of what is compiled
            "jobset", minutes=1, package="sigs.k8s.io/jobset", carried="sigs.k8s.io/jobset", extra=True
        ),
    )
}


class BuildError(Exception):
    """A component cannot be had; the sentence says what to do."""


def cache_folder() -> Path:
    """Where built components lie: outside the checkout, so that a fresh clone finds them."""
    return Path(os.environ.get("DAPT_COMPONENTS") or Path.home() / ".cache" / "dapt" / "components")


def built(name: str) -> Path | None:
    """Folder of a component that was built before from the same content; None if it was not."""
    folder = folder_of(_component(name))
    return folder if folder.is_dir() else None


def have_go() -> bool:
    """Whether components can be built here."""
    return shutil.which("go") is not None


def build(name: str) -> Path:
    """Folder with the component's binary, called `name`, and its links; builds it if need be.

    Raises:
        BuildError: an unknown name, no Go, or a failed build.
    """
    component = _component(name)
    folder = folder_of(component)
    if folder.is_dir():
        return folder
    if not have_go():
        raise BuildError(
            f"component {name} is not built and there is no `go` in PATH: install Go 1.26 or later"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(folder.with_suffix(".lock")):
        if not folder.is_dir():  # another process may have built it meanwhile
            _build(component, folder)
    return folder


def _component(name: str) -> Component:
    if name not in COMPONENTS:
        raise BuildError(f"no component {name!r}; there are {', '.join(sorted(COMPONENTS))}")
    return COMPONENTS[name]


def folder_of(component: Component) -> Path:
    """Keyed by content. Go's own version is not part of it: the same sources are the same component."""
    recipe = (component.package, component.links, component.variables)
    digest = hashlib.sha256(f"{recipe!r} {platform.system()} {platform.machine()}".encode())
    module = MODULES / component.name
    for path in sorted(item for item in module.rglob("*") if item.is_file()):
        content = path.read_bytes()
        digest.update(f"\0{path.relative_to(module)}\0{len(content)}\0".encode() + content)
    return cache_folder() / f"{component.name}-{digest.hexdigest()[:12]}"


def _build(component: Component, folder: Path) -> None:
    print(f"building {component.name} (about {component.minutes:g} min on two cores, once)", flush=True)
    started = time.monotonic()
    making = Path(tempfile.mkdtemp(prefix=f".{component.name}-", dir=folder.parent))
    try:
        flags = ["-s", "-w", *(f"-X {value}" for value in _variables(component))]
        command = [
            "go",
            "build",
            "-trimpath",
            "-mod=readonly",
            "-buildvcs=false",
            "-ldflags",
            " ".join(flags),
        ]
        done = subprocess.run(
            [*command, "-o", str(making / component.name), component.package],
            cwd=MODULES / component.name,
            env=os.environ | {"CGO_ENABLED": "0"},
            check=False,
        )
        if done.returncode != 0:
            raise BuildError(
                f"component {component.name} did not build: `go build` ended with {done.returncode}"
            )
        if component.carried:
            _carry(component, making / "config")
        for link in component.links:
            (making / link).symlink_to(component.name)
        making.chmod(0o755)
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    print(f"built {component.name} in {(time.monotonic() - started) / 60:.1f} min: {folder}", flush=True)


def _carry(component: Component, target: Path) -> None:
    """Copy the module's config/ folder; Go's cache is read-only, the copy is not."""
    listed = subprocess.run(
        ["go", "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", component.carried],
        cwd=MODULES / component.name,
        check=True,
        capture_output=True,
        text=True,
    )
    shutil.copytree(Path(listed.stdout.strip()) / "config", target, copy_function=shutil.copyfile)
    for folder in (target, *(item for item in target.rglob("*") if item.is_dir())):
        folder.chmod(0o755)


def _variables(component: Component) -> list[str]:
    if not component.variables:
        return []
    text = (MODULES / component.name / "go.mod").read_text()
    found = re.search(rf"^\s*{re.escape(component.stamped)} (v(\d+)\.(\d+)\S*)", text, re.MULTILINE)
    if found is None:
        raise BuildError(f"go.mod of component {component.name} requires no {component.stamped}")
    version, major, minor = found.groups()
    return [item.format(version=version, major=major, minor=minor) for item in component.variables]


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(names: list[str]) -> int:
    """Build by name; `--extras` adds the components that are not built by default."""
    wanted = [name for name in names if name != "--extras"]
    if not wanted:
        wanted = [item.name for item in COMPONENTS.values() if item.extra is ("--extras" in names)]
    try:
        for name in wanted:
            print(f"{name}: {build(name)}", flush=True)
    except BuildError as error:
        print(f"testcluster: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
