"""A control plane for the session, a namespace and a kubelet for each test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[object]:
    """A real control plane with our CRDs; skipped with one line where there is none."""
    from testcluster.build import BuildError
    from testcluster.control_plane import ControlPlane, NoComponentsError

    try:
        plane = ControlPlane()
    except (NoComponentsError, BuildError) as error:
        pytest.skip(str(error))
    with plane:
        plane.install_crds()
        yield plane


@pytest.fixture
def namespace(control_plane) -> Iterator[str]:
    """A namespace of the test's own."""
    name = control_plane.make_namespace(f"test-{next(_numbers)}")
    yield name
    control_plane.api.delete("Namespace", name)


@pytest.fixture
def kubelet(control_plane, namespace) -> Iterator[object]:
    """A scripted kubelet with one endless node; pods run on until the test gives another script."""
    from testcluster.kubelet_script import ScriptedKubelet

    with ScriptedKubelet(control_plane) as running:
        yield running
    assert running.errors == []
