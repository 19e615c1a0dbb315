"""A control plane for the session, a namespace and a kubelet for each test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # loaded by the fixtures: this file is read for tests that need no cluster, too
    from testcluster.control_plane import ControlPlane
    from testcluster.kubelet_script import ScriptedKubelet

LONGEST = (
    "test_whole_node.py",
    "test_operator_faults.py",
    "test_kueue.py",
    "test_whole_adaptation.py",
    "test_impossible.py",
    "test_chart.py",
    "test_refused_objects.py",
)
"""Files that take longest: they come first, so that in the end no worker is left alone with one of them."""
_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    # Nodes take turns: the end is where this one waits least for that of test_whole_node.py, which comes first.
    places["test_node.py"] = len(LONGEST) + 1
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip here, and not in the fixtures: pytest tells all skips of one place in one line."""
    if item.get_closest_marker("cluster") is not None:
        from testcluster.control_plane import NoComponentsError, find_components

        try:
            find_components()
        except NoComponentsError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """A real control plane with our CRDs."""
    from testcluster.control_plane import ControlPlane

    with ControlPlane() as plane:
        plane.install_crds()
        yield plane


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace of the test's own."""
    name = control_plane.make_namespace(f"test-{next(_numbers)}")
    yield name
    control_plane.api.delete("Namespace", name)


@pytest.fixture
def kubelet(control_plane: ControlPlane, namespace: str) -> Iterator[ScriptedKubelet]:
    """A scripted kubelet with one endless node; pods run on until the test gives another script."""
    from testcluster.kubelet_script import ScriptedKubelet

    with ScriptedKubelet(control_plane) as running:
        yield running
    assert running.errors == []
