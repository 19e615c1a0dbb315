"""Writes the operator's Prometheus series.

Series of an adaptation are computed from each version of the stored resource when it arrives, so they survive a restart
of the operator and end with their object. Only the two about reconciles are counted in the process. The trainer's pods
export their own series (`dapt_trainer_*`); nothing is exported twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.utils import floatToGoString

from dapt_contract.sentences import shortened
from dapt_contract.untrusted.printable import printable
from dapt_operator.api.v1alpha1.conditions import CONDITION_TYPES
from dapt_operator.cluster.kubernetes import Summary
from dapt_operator.runtime.series.shown_status import ShownStatus
from dapt_operator.runtime.series.table import SERIES, AdaptationSeries, Value, read_conditions
from dapt_operator.runtime.watching.store_updater import owner_of
from dapt_operator.stage_run import Manifest

log = structlog.get_logger("dapt.metrics")
LABELS: Final = ("name", "namespace")
_MAX_LABEL_CHARACTERS: Final = 253

RECONCILE_DURATION: Final = (
    "dapt_reconcile_duration_seconds",
    "Seconds that one reconcile of an adaptation took, with the requests that it sent.",
)
RECONCILE_ERRORS: Final = (
    "dapt_reconcile_errors_total",
    "Reconciles that ended in an error and are repeated; the log has the error.",
)
BUCKETS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


def read(resource: Manifest) -> list[list[Value]]:
    """Return the values of each series.

    Raises:
        ValueError: the status is not valid.
    """
    status = ShownStatus.model_validate(resource.get("status") or {})
    selected = status.selected.id if status.selected else None
    shown = next((candidate for candidate in status.candidates if candidate.id == selected), None)
    if shown is None and status.candidates:
        shown = status.candidates[-1]
    adaptation = AdaptationSeries(status, shown)
    return [list(series.read(adaptation)) for series in SERIES]


def summarize(resource: Manifest) -> Summary:
    """Return the samples of one version of a resource; of one that cannot be read, its conditions alone."""
    owner = owner_of(resource)
    try:
        return Summary(_sample_lines(resource, read(resource)), owner)
    except Exception as error:
        # Of any kind: a scrape serves every adaptation, and must not fail for one.
        log.warning(
            "an adaptation has no metrics: it cannot be read",
            namespace=resource["metadata"].get("namespace"),
            name=resource["metadata"].get("name"),
            error=shortened(f"{type(error).__name__}: {' '.join(str(error).split())}", 300),
        )
        values: list[list[Value]] = [
            list(_raw_conditions(resource)) if series.read is read_conditions else [] for series in SERIES
        ]
        return Summary(_sample_lines(resource, values), owner, is_readable=False)


def _raw_conditions(resource: Manifest) -> Iterator[Value]:
    """Yield the conditions of a status that is not valid, so that alerts on Stalled fire all the same."""
    status = resource.get("status")
    conditions = status.get("conditions") if isinstance(status, dict) else None
    for item in conditions if isinstance(conditions, list) else ():
        # As a text: of a value that is none it may be impossible to say whether it is in a set.
        if isinstance(item, dict) and (type_ := str(item.get("type"))) in CONDITION_TYPES:
            yield type_, float(item.get("status") == "True")


def _sample_lines(resource: Manifest, values: Iterable[Iterable[Value]]) -> tuple[str, ...]:
    """Return the lines of each series, in Prometheus' text format; empty where the resource has no value."""
    metadata = resource["metadata"]
    labels = ",".join(f'{name}="{_quoted(str(metadata.get(name, "")))}"' for name in LABELS)
    lines = []
    for series, series_values in zip(SERIES, values, strict=True):
        # Names that are the same once they are cleaned are one sample: Prometheus refuses a second one.
        samples = {_with_label(labels, series.label, label): value for label, value in series_values}
        lines.append(
            "".join(f"{series.name}{{{all_}}} {floatToGoString(value)}\n" for all_, value in samples.items())
        )
    return tuple(lines)


def _with_label(labels: str, name: str, value: str) -> str:
    """Return the labels with one more, in the order of their names."""
    if not name:
        return labels
    label = f'{name}="{_quoted(value)}"'
    return f"{label},{labels}" if name < LABELS[0] else f"{labels},{label}"


def _quoted(text: str) -> str:
    return label_value(text).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def label_value(text: str) -> str:
    """Return a text as the value of a label: one short line that can be written as UTF-8."""
    return shortened(printable(text), _MAX_LABEL_CHARACTERS)


def exposition(summaries: Iterable[Summary]) -> bytes:
    """Return the series of all adaptations in Prometheus' text format.

    The lines come as they were made when each resource arrived: a thousand grown adaptations have 40,000 lines, and the
    reconciles wait while they are made.
    """
    all_lines = [summary.samples for summary in summaries]
    families = (
        f"# HELP {series.name} {series.help}\n# TYPE {series.name} {series.kind}\n"
        + "".join(lines[place] for lines in all_lines)
        for place, series in enumerate(SERIES)
    )
    return "".join(families).encode()


class ReconcileMetrics:
    """Counts the reconciles of this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.duration = Histogram(*RECONCILE_DURATION, buckets=BUCKETS, registry=registry)
        self.errors = Counter(*RECONCILE_ERRORS, registry=registry)
