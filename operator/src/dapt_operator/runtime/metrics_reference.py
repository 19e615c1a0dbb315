"""Generates the reference page of all Prometheus series from their tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from dapt_operator.runtime.metrics import RECONCILE_DURATION, RECONCILE_ERRORS
from dapt_operator.runtime.operator_metrics import OPERATOR_GAUGES, PROCESS_GAUGES
from dapt_operator.runtime.series.table import SERIES

PAGE: Final = "metrics.md"


def page(
    trainer: Mapping[str, tuple[str, str]],
    of_ranks: Mapping[str, tuple[str, str]],
    rank_labels: Iterable[str],
) -> str:
    """Return the text of docs/reference/metrics.md.

    Args:
        trainer: field and help of the trainer's gauges, by their name after `dapt_trainer_`.
        of_ranks: the same of those of each rank of a gang.
        rank_labels: names of the labels of those.
    """
    process = (
        (RECONCILE_DURATION[0], "histogram", "", RECONCILE_DURATION[1]),
        (RECONCILE_ERRORS[0], "counter", "", RECONCILE_ERRORS[1]),
        *(
            (name, "gauge", "`, `".join(labels), text)
            for name, text, labels in (*PROCESS_GAUGES, *OPERATOR_GAUGES)
        ),
    )
    ours = [(series.name, series.kind, series.label, series.help) for series in SERIES]
    theirs = [(f"dapt_trainer_{name}", "gauge", "", text) for name, (_, text) in trainer.items()]
    theirs += [
        (f"dapt_trainer_{name}", "gauge", "`, `".join(rank_labels), text)
        for name, (_, text) in of_ranks.items()
    ]
    lines = [
        "<!-- Generated from dapt_operator.runtime.series.table and dapt_trainer.pod.progress. Do not edit. -->",
        "",
        "# Metrics",
        "",
        "Each series has one exporter. A ratio is 0.05 for 5 %; points are hundredths of a score.",
        "",
        "## Of each adaptation, from the operator",
        "",
        "Labels `namespace` and `name`, and the one in the table. They are computed from the stored status:"
        " they survive a restart of the operator, and end with their DomainAdaptation. A series without a value"
        " yet is absent.",
        "",
        *_rows(ours),
        "",
        "## Of the operator itself",
        "",
        *_rows(process),
        "",
        "## From the training pods",
        "",
        "Rank 0 of each run serves them on the profile's progress port, with the labels `namespace` and `name`, for as"
        " long as the pod exists. A stage that does not train omits the series that it has no value for.",
        "",
        *_rows(theirs),
        "",
    ]
    return "\n".join(lines)


def _rows(series: Iterable[tuple[str, str, str, str]]) -> Iterator[str]:
    yield "| series | kind | label | meaning |"
    yield "| --- | --- | --- | --- |"
    for name, kind, label, text in series:
        yield f"| `{name}` | {kind} | {f'`{label}`' if label else ''} | {text} |"
