"""docs/science.md and its figures, made of the committed results and of nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from science import forecast, operating, regret, replay_share, store
from science.digests import code_digest, digest_of
from science.experiments import EXPERIMENTS, Experiment
from science.experiments.common import SEEDS, Outcome, Records, Table, Verdict
from science.kinds import cost

PAGE = "science.md"
FIGURES = "science"
DRAWN = "figures.json"
_INTRODUCTION = """# Proofs in miniature

Each claim about the method, tested on a model so small that the test can be repeated: `make science` does every run
and writes this page, its tables and its figures from the records in `science/results/`. A verdict is yes, no, or open
while runs are missing; 'no' is a result like 'yes'. What holds for half a million parameters need not hold for a real
model: the page says which of the method's claims are at least not wrong in the small.
"""
_METHOD = """## How it is done

- **Bed.** A llama of 0.53 M parameters (3 layers, width 96, context 128) with a byte-pair tokenizer of 1,024 tokens,
  pretrained on the standard library's code without its docstrings. The strong shift is to those docstrings and the
  topics of `help()`, the weak one to the code of another package, also without docstrings. Documents are held out by
  hash, near-duplicates of them leave the training text, rows are packed without attention across documents: dapt's own
  code does all of it, as it does the mixing, the schedules, the penalties, the new rows, the interpolations, the stop
  rule, the gates and the selection.
- **A run.** 300 steps of 2,048 tokens with a fresh AdamW, unless a table says otherwise. Replay replaces domain tokens.
- **Seeds.** Three, which change the order of the rows; the base model is one. Spread is the standard deviation over
  seeds; an effect is a difference of means over the pooled deviation of the two groups.
- **No tuning on what is reported.** Rates, strengths and thresholds come from a pilot on another seed. Where something
  is chosen (a checkpoint, a share), half A of the held-out text chooses and half B is reported.
- **Forgetting** is the rise of the loss on held-out general text over the base model's, **gain** the fall of the loss
  on held-out domain text, both in nats a token; a rise of x nats is a perplexity exp(x) times as high.
"""


def write(results: Path, docs: Path) -> None:
    """Write the page and the figures below `docs`, and the operating table of the gate in docs/evaluation.md."""
    (docs / FIGURES).mkdir(parents=True, exist_ok=True)
    write_figures(figures(results), docs / FIGURES, results / DRAWN)
    (docs / PAGE).write_text(text(results))
    operating.write(docs / "evaluation.md", table_text(operating.table()))


def outcome_of(results: Path, experiment: Experiment) -> Outcome:
    """Verdicts and tables; all open where nothing was run."""
    facts, runs = store.read_results(results, experiment.name)
    if not runs:
        return Outcome(tuple(Verdict(name, None, "not run yet") for name in experiment.claims))
    return experiment.judge(Records(runs, facts["base_losses"]))


@dataclass(frozen=True)
class Figure:
    """A picture that is drawn when it is asked for."""

    digest: str
    """Of what it shows: the records, and the code that draws them."""
    draw: Callable[[], bytes]
    """Returns a PNG file."""


def figures(results: Path) -> dict[str, Figure]:
    """Return the pictures by name, of the experiments that have runs and something to draw."""
    found = {}
    for experiment in EXPERIMENTS:
        facts, runs = store.read_results(results, experiment.name)
        if runs and experiment.figure is not None:
            code = code_digest("science.plots", f"science.experiments.{experiment.name}")
            draw = partial(experiment.figure, Records(runs, facts["base_losses"]))
            found[f"{experiment.name}.png"] = Figure(digest_of(code, facts["base_losses"], runs), draw)
    if regret.recorded(results):
        found[regret.FIGURE] = Figure(code_digest("science.plots", "science.regret"), regret.figure)
    return found


def write_figures(wanted: Mapping[str, Figure], folder: Path, drawn: Path) -> None:
    """Draw the pictures whose data are not those that they were drawn from, and leave the others as they are.

    The same data drawn again may be other bytes: with another version of the library, or on another machine.

    Args:
        wanted: pictures by name.
        folder: where they are.
        drawn: file that has the digest of what each was drawn from.
    """
    known = json.loads(drawn.read_text()) if drawn.is_file() else {}
    for name, figure in wanted.items():
        if known.get(name) != figure.digest or not (folder / name).is_file():
            (folder / name).write_bytes(figure.draw())
    digests = {name: figure.digest for name, figure in sorted(wanted.items())}
    drawn.write_text(json.dumps(digests, indent=1) + "\n")


def text(results: Path) -> str:
    """The whole page."""
    outcomes = [(experiment, outcome_of(results, experiment)) for experiment in EXPERIMENTS]
    parts = [_INTRODUCTION, _summary(outcomes), _METHOD, _facts(results)]
    parts += [_section(results, experiment, outcome) for experiment, outcome in outcomes]
    parts += [of.section(results, table_text) for of in (replay_share, regret, forecast)]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts if part)


def _summary(outcomes: list[tuple[Experiment, Outcome]]) -> str:
    rows = [
        (f"[{verdict.name}](#{_anchor(experiment.title)})", _said(verdict), verdict.sentence)
        for experiment, outcome in outcomes
        for verdict in outcome.verdicts
    ]
    return table_text(Table("", ("claim", "verdict", "numbers"), tuple(rows)))


def _said(verdict: Verdict) -> str:
    return {True: "**yes**", False: "**no**", None: "open"}[verdict.holds]


def _facts(results: Path) -> str:
    """The bed's sizes and the base model's losses, as the newest results have them."""
    known = [store.read_results(results, experiment.name) for experiment in EXPERIMENTS]
    facts = next((facts for facts, runs in known if runs), None)
    if facts is None:
        return "No experiment was run yet.\n"
    rows = tuple(
        (side, f"{facts['tokens'][side]:,}", f"{_mean(facts, side):.3f}", f"`{facts['bed'][side]}`")
        for side in ("general", "strong", "weak")
    )
    seconds = [run["cpu_seconds_a_step"] for _, runs in known for run in runs if "cpu_seconds_a_step" in run]
    done = sum(len(runs) for _, runs in known)
    mean = sum(seconds) / len(seconds) if seconds else 0.0
    return (
        table_text(Table("", ("side", "tokens to train on", "the base model's loss, nats", "digest"), rows))
        + f"\nThe weak domain is {facts['weak_domain']}. Base model: {facts['parameters']:,} parameters, "
        f"{facts['base_steps']:,} steps, digest `{facts['base']}`. The records hold {done} "
        f"runs (a run that several experiments use counts in each); a step took {mean:.3f} CPU seconds on one core of "
        f"{facts['machine']}.\n\n{estimate(facts, mean)}\n"
    )


def estimate(facts: Mapping[str, Any], step_seconds: float) -> str:
    """How long everything takes, from what was measured."""
    runs = {store.name_of(item): item for experiment in EXPERIMENTS for item in experiment.runs(SEEDS)}
    costs = [cost(item) for item in runs.values()]
    seconds = sum(steps * step_seconds + measures * facts["measure_cpu_seconds"] for steps, measures in costs)
    first = facts["base_cpu_seconds"]
    return (
        f"Everything together is {len(runs)} different runs of {sum(steps for steps, _ in costs):,} steps and "
        f"{sum(measures for _, measures in costs):,} measures of {facts['measure_cpu_seconds']:.1f} CPU seconds: "
        f"{seconds / 60:.0f} CPU minutes by these figures, so {seconds / 120:.0f} minutes on two cores that do nothing "
        f"else, and {first / 60:.0f} minutes more (one thread) for the base model the first time."
    )


def _mean(facts: Mapping[str, Any], side: str) -> float:
    losses = facts["base_losses"]["strong" if side == "general" else side]
    kind = "general" if side == "general" else "domain"
    return float(losses[f"{kind}_a"] + losses[f"{kind}_b"]) / 2


def _section(results: Path, experiment: Experiment, outcome: Outcome) -> str:
    _, runs = store.read_results(results, experiment.name)
    wanted = {store.name_of(settings) for settings in experiment.runs(SEEDS)}
    done = wanted & {store.name_of(run["settings"]) for run in runs}
    state = f"{len(done)} of {len(wanted)} runs were done." if runs else f"Not run yet ({len(wanted)} runs)."
    lines = [
        f"## {experiment.title}",
        "",
        f"{experiment.hypothesis} {state}",
        "",
        "Asked, before any reported run:",
        "",
    ]
    lines += [f"- {threshold}" for threshold in experiment.thresholds]
    if experiment.moved:
        lines += ["", f"### Moved after a result: {experiment.name}", ""]
        lines += [f"- {threshold}" for threshold in experiment.moved]
    lines += ["", "```", *(verdict.line for verdict in outcome.verdicts), "```", ""]
    if runs and experiment.figure is not None:
        lines += [f"![{experiment.title}]({FIGURES}/{experiment.name}.png)", ""]
    for table in outcome.tables:
        lines += [table_text(table)]
    return "\n".join(lines)


def table_text(table: Table) -> str:
    """Return a table in Markdown."""
    lines = [f"**{table.caption}**", ""] if table.caption else []
    lines.append("| " + " | ".join(table.header) + " |")
    lines.append("| " + " | ".join("---" for _ in table.header) + " |")
    lines += ["| " + " | ".join(row) + " |" for row in table.rows]
    return "\n".join(lines) + "\n"


def _anchor(title: str) -> str:
    return "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -").replace(" ", "-")
