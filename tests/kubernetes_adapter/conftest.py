"""An API server in the process, and the adapter before it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dapt_operator.cluster.kubernetes import KubernetesCluster, Store, client
from support.api_double import Adapter, ApiDouble


@pytest.fixture
def double() -> Iterator[ApiDouble]:
    with ApiDouble() as server:
        yield server


@pytest.fixture
def adapter(double: ApiDouble, monkeypatch: pytest.MonkeyPatch) -> Iterator[Adapter]:
    monkeypatch.setattr(client, "FIRST_PAUSE_SECONDS", 0.001)
    store = Store()
    made: list[Adapter] = []
    cluster = KubernetesCluster(
        double.connection(),
        store,
        on_change=lambda key: made[0].woken.append(key),
        may_write=lambda: made[0].may_write,
        clock=lambda: made[0].clock(),
    )
    made.append(Adapter(double, cluster, store))
    yield made[0]
    cluster.close()
