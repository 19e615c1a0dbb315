"""The reference page of all series, generated from their tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from dapt_operator.runtime.metrics import RECONCILE_DURATION, RECONCILE_ERRORS, TABLE

PAGE: Final = "metrics.md"


def page(trainer: Mapping[str, tuple[str, str]]) -> str:
    """Text of docs/reference/metrics.md.

    Args:
        trainer: the trainer's gauges by name after `dapt_trainer_`, with the field and the help of each.
    """
    process = (
        (RECONCILE_DURATION[0], "histogram", "", RECONCILE_DURATION[1]),
        (RECONCILE_ERRORS[0], "counter", "", RECONCILE_ERRORS[1]),
    )
    ours = [(one.name, one.kind, one.label, one.help) for one in TABLE]
    theirs = [(f"dapt_trainer_{name}", "gauge", "", text) for name, (_, text) in trainer.items()]
    lines = [
        "<!-- Generated from dapt_operator.runtime.metrics and dapt_trainer.pod.progress. Do not edit. -->",
        "",
        "# Metrics",
        "",
        "Each series has one exporter. A ratio is 0.05 for 5 %; points are hundredths of a score.",
        "",
        "## Of each adaptation, from the operator",
        "",
        "Labels `namespace` and `name`, and the one in the table. They are read from the stored status when Prometheus"
        " asks: they survive a restart of the operator, and go with their DomainAdaptation. A series without a value"
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
        " long as the pod lives. A stage that does not train leaves out what it does not have.",
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
