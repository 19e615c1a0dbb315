"""docs/science-real.md, made of the records that exist."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Final

from science.experiments.common import Table, Verdict
from science.intervals import half_width, with_interval
from science.page import table_text
from science.real import pieces
from science.real.manifests import LAST, RIVAL_REPLAY
from science.real.pieces import DOMAINS, METHODS, RECIPES, SEEDS, Piece

PAGE: Final = "science-real.md"
LEAST_GAIN: Final = 0.95
MOST_FORGETTING: Final = 0.25

Record = Mapping[str, Any]
Records = Mapping[Piece, Record]

_METHOD: Final = f"""## How it is done

- **Model and text.** SmolLM2-135M-Instruct, as the demo has it. Two domains from installed packages: clinical coding,
  which is the demo's, and the reference of cloud services that botocore ships (6 M characters, of which a run reads a
  sample). General text is the demo's too: READMEs and help topics. Each seed draws its own sample, held-out text and
  order.
- **Three recipes** at {pieces.TOKENS:,} tokens each, with dapt's default rate of the method, its cosine, and the same
  batches. `plain`: no replay, the last checkpoint. `rival`: {RIVAL_REPLAY:.0%} replay, the last checkpoint. `dapt`: its
  defaults, with replay by the measured shift and the choice under the gates among checkpoints, their mean and
  interpolations. Where a rollback follows, the table has more than one attempt: then dapt has trained on more.
- **Every run is a `dapt run`**, and all numbers are its own: losses on half B of the held-out text, which chooses
  nothing, and tasks against the base model on the same items.
- **Gain** is the fall of the domain loss, **forgetting** the rise of the general loss, in nats a token. Intervals are
  95 % by Student's t over seeds, paired where recipes are compared.
- **Asked, before any run:** dapt's choice has at least {LEAST_GAIN:.0%} of the plain run's gain with at most
  {MOST_FORGETTING:.0%} of its forgetting, on the mean of all seeds, for each domain and method. Where the plain run
  forgets nothing, dapt may forget nothing either. Where nothing passes the gates, the answer is no.
"""


def write(results: Path, docs: Path) -> None:
    """Write the page below `docs`."""
    (docs / PAGE).write_text(text(results))


def text(results: Path) -> str:
    """Return the page."""
    records = pieces.recorded(results)
    num_all = len(pieces.all_pieces())
    left = pieces.missing(results)
    parts = [
        "# On a real model\n",
        f"**{len(records)} of {num_all} runs are done.** `make science-real` does the missing ones, each in less than"
        " half an hour on two cores, keeps a record of each in `science/results/real/`, and writes this page from the"
        " records. A verdict is open until every seed of it is there."
        f" {pieces.estimate(left, records).capitalize()}.\n",
    ]
    if records:
        parts.append("```\n" + "\n".join(verdict.line for verdict in verdicts(records)) + "\n```\n")
    parts.append(_METHOD)
    if records:
        parts += [table_text(_means(records)), table_text(_runs(records)), table_text(_tasks(records))]
    return "\n".join(parts)


def verdicts(records: Records) -> tuple[Verdict, ...]:
    """Return a verdict for each domain and method."""
    return tuple(_verdict(records, domain, method) for domain, method in product(DOMAINS, METHODS))


def _verdict(records: Records, domain: str, method: str) -> Verdict:
    name = f"real.{domain}.{method}"
    wanted = [Piece(seed, domain, method, recipe) for seed in SEEDS for recipe in ("plain", "dapt")]
    there = sum(piece in records for piece in wanted)
    if there < len(wanted):
        return Verdict(name, None, f"{there} of its {len(wanted)} runs were done")
    plain, chosen = (list(_points(records, domain, method, recipe)) for recipe in ("plain", "dapt"))
    if len(chosen) < len(SEEDS):
        return Verdict(
            name, False, f"nothing passes the gates for {len(SEEDS) - len(chosen)} of {len(SEEDS)} seeds"
        )
    gains, losses = (
        tuple(statistics.fmean(point[place] for point in points) for points in (plain, chosen))
        for place in (0, 1)
    )
    keeps = gains[1] >= LEAST_GAIN * gains[0]
    forgets_less = losses[1] <= MOST_FORGETTING * max(losses[0], 0.0)
    apart = [after - before for (_, before), (_, after) in zip(plain, chosen, strict=True)]
    sentence = (
        f"dapt's choice gains {gains[1]:.3f} nats where the plain run gains {gains[0]:.3f} (asked: {LEAST_GAIN:.0%}),"
        f" and forgets {losses[1]:+.3f} where it forgets {losses[0]:+.3f} (asked: {MOST_FORGETTING:.0%}); paired, the"
        f" difference of forgetting is {statistics.fmean(apart):+.3f} ± {half_width(apart):.3f}"
    )
    return Verdict(name, keeps and forgets_less, sentence)


def point(record: Record) -> tuple[float, float] | None:
    """Return (gain, forgetting) in nats on half B; None where nothing passes the gates."""
    base, final = record["base"], record["final"]
    if final is None:
        return None
    return base["domain_b"] - final["domain_b"], final["general_b"] - base["general_b"]


def _points(records: Records, domain: str, method: str, recipe: str) -> Iterator[tuple[float, float]]:
    for seed in SEEDS:
        record = records.get(Piece(seed, domain, method, recipe))
        found = point(record) if record is not None else None
        if found is not None:
            yield found


def _means(records: Records) -> Table:
    rows = []
    for domain, method, recipe in product(DOMAINS, METHODS, RECIPES):
        points = list(_points(records, domain, method, recipe))
        gains, forgotten = [gain for gain, _ in points], [loss for _, loss in points]
        rows.append(
            (
                domain,
                method,
                recipe,
                with_interval(gains),
                with_interval(forgotten),
                *_against(records, domain, method, recipe),
            )
        )
    header = (
        "domain",
        "method",
        "recipe",
        "gain, nats",
        "forgetting, nats",
        "gain above plain",
        "forgetting above plain",
    )
    return Table("Means over seeds, half B (number of seeds)", header, tuple(rows))


def _against(records: Records, domain: str, method: str, recipe: str) -> tuple[str, str]:
    """Return how far gain and forgetting lie above the plain run's of the same seed."""
    if recipe == "plain":
        return "", ""
    apart: list[tuple[float, float]] = []
    for seed in SEEDS:
        piece = Piece(seed, domain, method, recipe)
        mine, plain = records.get(piece), records.get(replace(piece, recipe="plain"))
        if mine is None or plain is None:
            continue
        ours, theirs = point(mine), point(plain)
        if ours is not None and theirs is not None:
            apart.append((ours[0] - theirs[0], ours[1] - theirs[1]))
    return with_interval([gain for gain, _ in apart]), with_interval([loss for _, loss in apart])


def _runs(records: Records) -> Table:
    rows = []
    for piece, record in records.items():
        found = point(record)
        final = record["final"] or {}
        rows.append(
            (
                piece.name,
                f"{record['replay']:.0%}",
                "nothing passes" if found is None else str(record["chosen"]),
                "" if found is None else f"{found[0]:+.3f}{_error(final, 'domain')}",
                "" if found is None else f"{found[1]:+.3f}{_error(final, 'general')}",
                str(record["attempts"]),
                f"{record['seconds'] / 60:.0f}",
            )
        )
    header = ("run", "replay", "model", "gain, nats", "forgetting, nats", "attempts", "minutes")
    return Table(
        f"Every run, ± one standard error by document ({LAST}: the last checkpoint)", header, tuple(rows)
    )


def _error(final: Record, side: str) -> str:
    error = final.get(f"{side}_b_error")
    return "" if error is None else f" ± {error:.3f}"


def _tasks(records: Records) -> Table:
    rows = []
    for piece, record in records.items():
        for name, (side, items, score, change, error) in (
            (record["final"] or {}).get("scores") or {}
        ).items():
            before = record["base"]["scores"].get(name)
            said = "" if change is None or error is None else f"{100 * change:+.1f} ± {100 * error:.1f}"
            base = "" if before is None else f"{100 * before[2]:.1f}"
            rows.append((piece.name, name, side, str(items), base, f"{100 * score:.1f}", said))
    header = ("run", "task or probes", "side", "items", "base", "final", "change, points")
    return Table("Tasks and probes", header, tuple(rows))
