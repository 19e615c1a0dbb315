"""evaluate: measure one candidate, its scores paired with the base model's items."""

from __future__ import annotations

from dapt_contract.layout import try_folder
from dapt_contract.stages.evaluate import EvaluateConfig, EvaluateFacts, EvaluateReport
from dapt_trainer.context import StageContext
from dapt_trainer.evaluation.items import write_items
from dapt_trainer.evaluation.measure import Bench
from dapt_trainer.evaluation.ranks import evaluation_ranks
from dapt_trainer.evaluation.reuse import base_items
from dapt_trainer.stages.baseline import ITEMS
from dapt_trainer.training.models import reference_digest


def run(config: EvaluateConfig, context: StageContext) -> EvaluateReport:
    """Perplexities, tasks and probes of a candidate.

    Raises:
        InputError: as baseline; also when the base model's items are missing or are not the same ones.
        StopRequested: asked to stop.
    """
    ranks = evaluation_ranks(context)
    bench = Bench(config.evaluation, context, ranks)
    paired = base_items(context.work, config.base_items_path)
    model, tokenizer = bench.load(config.model)
    digest = reference_digest(context.work, config.model)
    measured = bench.measure(model, tokenizer, digest=digest, name=config.candidate, base_items=paired)
    if ranks.is_first:
        write_items(context.try_folder / ITEMS, measured.items)
    return EvaluateReport(
        facts=EvaluateFacts(candidate=config.candidate, measure=measured.measure),
        items_path=f"{try_folder(context.stage.run)}/{ITEMS}",
    )
