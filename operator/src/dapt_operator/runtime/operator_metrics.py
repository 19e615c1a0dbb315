"""Defines the series about what the operator sees: what it cannot list, cannot read, or must leave alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client.core import GaugeMetricFamily

from dapt_contract.version import PRODUCT_VERSION
from dapt_operator.cluster.kubernetes import Summary
from dapt_operator.cluster.kubernetes.resync import FailedList
from dapt_operator.runtime.metrics import label_value

OPERATOR_GAUGES: Final = (
    (
        "dapt_foreign_adaptations",
        "Adaptations that belong to another installation and are left alone, by its name.",
        ("owner",),
    ),
    (
        "dapt_unreadable_adaptations",
        "Adaptations that this version cannot read; they have no series but `dapt_condition`.",
        (),
    ),
    (
        "dapt_list_failing",
        "1 while the objects of a kind cannot be listed in a namespace (empty: in the cluster); the log has the error.",
        ("namespace", "kind"),
    ),
)
"""Name, text and labels of the gauges about what the operator sees."""

PROCESS_GAUGES: Final = (
    ("dapt_build_info", "1, with the version of the operator.", ("version",)),
    ("dapt_operator_acting", "1 while this process holds the Lease and acts, 0 while it waits for it.", ()),
    (
        "dapt_work_queue_depth",
        "Adaptations that wait for a reconcile, among them those that are due later.",
        (),
    ),
    (
        "dapt_last_list_timestamp_seconds",
        "When the list was read that is the oldest of all: what watches have missed since then is not known.",
        (),
    ),
)
"""Name, text and labels of the gauges about the process."""


@dataclass(frozen=True)
class ProcessState:
    """What the process says about itself, asked at each scrape.

    Attributes:
        is_acting: whether it holds the Lease.
        queue_depth: adaptations that wait for a reconcile.
        last_list: time of the oldest list in Unix seconds; None until all lists were read once.
    """

    is_acting: Callable[[], bool]
    queue_depth: Callable[[], int]
    last_list: Callable[[], float | None]


class ProcessCollector:
    """Exports how the process itself stands; one that waits for the Lease does so too."""

    def __init__(self, state: ProcessState) -> None:
        self._state = state

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the families."""
        build, acting, depth, listed = self.describe()
        build.add_metric([PRODUCT_VERSION], 1.0)
        acting.add_metric([], float(self._state.is_acting()))
        depth.add_metric([], self._state.queue_depth())
        time = self._state.last_list()
        if time is not None:
            listed.add_metric([], time)
        yield from (build, acting, depth, listed)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Return the families without samples."""
        return iter([GaugeMetricFamily(name, text, labels=labels) for name, text, labels in PROCESS_GAUGES])


class OperatorCollector:
    """Exports what concerns the operator's own sight: what it cannot list, read, or must leave alone."""

    def __init__(
        self,
        summaries: Callable[[], Iterable[Summary]],
        instance: str,
        failed_lists: Callable[[], Iterable[FailedList]],
    ) -> None:
        """
        Args:
            summaries: returns what is known of each adaptation.
            instance: name of this installation.
            failed_lists: returns the lists that cannot be read now.
        """
        self._summaries = summaries
        self._instance = instance
        self._failed_lists = failed_lists

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the families."""
        foreign, unreadable, failed = (
            GaugeMetricFamily(name, text, labels=labels) for name, text, labels in OPERATOR_GAUGES
        )
        summaries = list(self._summaries())
        for owner, number in Counter(summary.owner for summary in summaries).items():
            if owner not in ("", self._instance):
                foreign.add_metric([label_value(owner)], number)
        unreadable.add_metric([], sum(not summary.is_readable for summary in summaries))
        for item in self._failed_lists():
            failed.add_metric([label_value(item.namespace), label_value(item.kind)], 1.0)
        yield from (foreign, unreadable, failed)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Return the families without samples."""
        return iter([GaugeMetricFamily(name, text, labels=labels) for name, text, labels in OPERATOR_GAUGES])
