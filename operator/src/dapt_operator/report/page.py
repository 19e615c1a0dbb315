"""From the material to the page: which pictures can be drawn, and the template filled with escaped values."""

from __future__ import annotations

from collections.abc import Iterator

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dapt_contract.version import PRODUCT_VERSION
from dapt_operator.report import attempts, tables
from dapt_operator.report.charts import Chart, Point, composition, curve, frontier, scores, timeline
from dapt_operator.report.inputs import Material
from dapt_operator.report.tradeoff_charts import attempts_path, trade


def render(material: Material) -> tuple[str, dict[str, bytes]]:
    """The page, and its pictures as PNG by name."""
    charts = {chart.name: chart for chart in draw(material)}
    environment = Environment(
        loader=PackageLoader("dapt_operator.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        material=material,
        tables=tables,
        story=attempts,
        # Drawn by us from numbers and labels; labels are glyph outlines in it, never markup.
        pictures={name: Markup(chart.svg) for name, chart in charts.items()},
        told={name: chart.description for name, chart in charts.items()},
        version=PRODUCT_VERSION,
    )
    return page, {name: chart.png for name, chart in charts.items()}


def draw(material: Material) -> Iterator[Chart]:
    """Every picture that there are numbers for."""
    base = material.base
    points = tables.checkpoint_points(material)
    gates = material.spec.gates if material.spec else None
    if base is not None and points:
        final = material.final
        yield frontier(
            Point("base", base.domain.both.perplexity, base.general.both.perplexity),
            points,
            chosen=tables.chosen_step(material),
            final=Point("final", final.domain.both.perplexity, final.general.both.perplexity)
            if final
            else None,
            max_increase=gates.max_general_perplexity_increase if gates else None,
            min_decrease=gates.min_domain_perplexity_decrease if gates else None,
        )
    if material.pretrain is not None and material.pretrain.curve:
        held_out = [(0, base.domain.both.loss_nats, base.general.both.loss_nats)] if base else []
        held_out += [
            (
                row.step,
                (row.domain_a_nats + row.domain_b_nats) / 2,
                (row.general_a_nats + row.general_b_nats) / 2,
            )
            for row in material.pretrain.facts.checkpoints
        ]
        yield curve(material.pretrain.curve, held_out)
    offered = attempts.offers(material)
    if len(offered) > 1:
        yield trade(
            offered, chosen=material.chosen_id, limit=gates.max_general_perplexity_increase if gates else None
        )
    paths = attempts.paths(material)
    if len(paths) > 1:
        limit = gates.max_general_perplexity_increase if gates else None
        hard = limit * gates.hard_stop_factor if gates and limit is not None else None
        yield attempts_path(paths, limit=limit, hard_stop=hard)
    rows = tables.score_chart_rows(material)
    if rows:
        yield scores(rows)
    if material.prepare is not None and material.prepare.facts.sources:
        used = tables.tokens_by_source(material)
        sources = material.prepare.facts.sources
        yield composition(
            sources,
            tables.source_labels(material),
            [used.get(one.name, 0) if used else None for one in sources],
        )
    spans = tables.spans(material)
    if spans:
        yield timeline(spans)
