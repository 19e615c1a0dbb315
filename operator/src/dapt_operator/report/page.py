"""Fills the page's template: decides which charts can be drawn, and escapes all text."""

from __future__ import annotations

from collections.abc import Iterator

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dapt_contract.untrusted.printable import printable_lines
from dapt_contract.version import PRODUCT_VERSION
from dapt_operator.report import attempts, measurements, run_facts, style, summary
from dapt_operator.report.charts import Chart, GateLines, score_chart, source_chart, time_chart
from dapt_operator.report.inputs import NO_ANSWER, ReportInputs
from dapt_operator.report.tradeoff_charts import attempts_chart, tradeoff_chart
from dapt_operator.report.training_charts import PerplexityPoint, loss_chart, perplexity_chart


def render(inputs: ReportInputs) -> tuple[str, dict[str, bytes]]:
    """Return the page, and its charts as PNG by name."""
    charts = {chart.name: chart for chart in draw_charts(inputs)}
    environment = Environment(
        loader=PackageLoader("dapt_operator.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        inputs=inputs,
        summary=summary,
        measurements=measurements,
        attempts=attempts,
        run_facts=run_facts,
        no_answer=NO_ANSWER,
        is_over=summary.run_state(inputs)[0] != "open",
        light_variables=Markup(style.light_variables()),
        dark_variables=Markup(style.dark_variables()),
        # The SVG is not escaped: we draw it ourselves, and labels are glyph outlines in it, never markup.
        charts={name: Markup(chart.svg) for name, chart in charts.items()},
        descriptions={name: chart.description for name, chart in charts.items()},
        version=PRODUCT_VERSION,
    )
    # Jinja escaped every text; this removes what no escape makes harmless, such as a change of direction.
    return printable_lines(page), {name: chart.png for name, chart in charts.items()}


def draw_charts(inputs: ReportInputs) -> Iterator[Chart]:
    """Yield every chart for which there are numbers."""
    gates = _gate_lines(inputs)
    yield from _training_charts(inputs, gates)
    candidates = attempts.candidate_points(inputs)
    if len(candidates) > 1:
        yield tradeoff_chart(candidates, chosen=inputs.chosen_id, gates=gates)
    paths = attempts.attempt_paths(inputs)
    if len(paths) > 1:
        yield attempts_chart(paths, gates)
    rows = measurements.score_chart_rows(inputs)
    if rows:
        yield score_chart(rows)
    if inputs.prepare is not None and inputs.prepare.facts.sources:
        sources, used = inputs.prepare.facts.sources, run_facts.tokens_by_source(inputs)
        used_by_source = [used.get(source.name, 0) if used else None for source in sources]
        yield source_chart(sources, run_facts.source_labels(inputs), used_by_source)
    spans = run_facts.stage_spans(inputs)
    if spans:
        yield time_chart(spans)


def _gate_lines(inputs: ReportInputs) -> GateLines:
    if inputs.spec is None:
        return GateLines()
    gates = inputs.spec.gates
    return GateLines(
        max_general_increase=gates.max_general_perplexity_increase,
        min_domain_decrease=gates.min_domain_perplexity_decrease,
        hard_stop=gates.max_general_perplexity_increase * gates.hard_stop_factor,
    )


def _training_charts(inputs: ReportInputs, gates: GateLines) -> Iterator[Chart]:
    base, final = inputs.base, inputs.final
    checkpoints = measurements.checkpoint_points(inputs)
    if base is not None and checkpoints:
        yield perplexity_chart(
            PerplexityPoint("base", base.domain.both.perplexity, base.general.both.perplexity),
            checkpoints,
            chosen=measurements.chosen_step(inputs),
            final=PerplexityPoint(
                summary.tuned_by(inputs), final.domain.both.perplexity, final.general.both.perplexity
            )
            if final
            else None,
            gates=gates,
        )
    if inputs.pretrain is not None and inputs.pretrain.curve:
        held_out = [(0, base.domain.both.loss_nats, base.general.both.loss_nats)] if base else []
        held_out += [
            (
                row.step,
                (row.domain_a_nats + row.domain_b_nats) / 2,
                (row.general_a_nats + row.general_b_nats) / 2,
            )
            for row in inputs.pretrain.facts.checkpoints
        ]
        yield loss_chart(inputs.pretrain.curve, held_out)
