"""An API server in the process, and the adapter before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from api_double import ApiDouble
from dapt_operator.cluster.kubernetes import KubernetesCluster, Store, api
from dapt_operator.cluster.port import Key


@dataclass
class Adapter:
    """The adapter with its store, before an API server."""

    double: ApiDouble
    cluster: KubernetesCluster
    store: Store
    woken: list[Key] = field(default_factory=list)
    may_write: bool = True

    def add_resource(self, resource: Any) -> Any:
        """Somebody creates a DomainAdaptation and the watch tells of it."""
        metadata = resource["metadata"]
        path = (
            f"/apis/dapt.dev/v1alpha1/namespaces/{metadata['namespace']}/domainadaptations/{metadata['name']}"
        )
        made = self.double.add(path, resource)
        self.store.put(made)
        return made


@pytest.fixture
def double() -> Iterator[ApiDouble]:
    with ApiDouble() as server:
        yield server


@pytest.fixture
def adapter(double: ApiDouble, monkeypatch: pytest.MonkeyPatch) -> Iterator[Adapter]:
    monkeypatch.setattr(api, "_FIRST_REST_SECONDS", 0.001)
    store = Store()
    made: list[Adapter] = []
    cluster = KubernetesCluster(
        double.client(),
        store,
        on_change=lambda key: made[0].woken.append(key),
        may_write=lambda: made[0].may_write,
    )
    made.append(Adapter(double, cluster, store))
    yield made[0]
    cluster.close()
