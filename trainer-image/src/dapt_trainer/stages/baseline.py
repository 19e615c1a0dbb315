"""baseline: measure the frozen base model once; every gate and gain is relative to it."""

from __future__ import annotations

from dapt_contract.layout import try_folder
from dapt_contract.stages.evaluate import BaselineConfig, BaselineFacts, BaselineReport
from dapt_trainer.context import StageContext
from dapt_trainer.evaluation.items import write_items
from dapt_trainer.evaluation.measure import Bench
from dapt_trainer.evaluation.ranks import evaluation_ranks
from dapt_trainer.training.models import reference_digest

ITEMS = "items.jsonl"


def run(config: BaselineConfig, context: StageContext) -> BaselineReport:
    """Perplexities, tasks and probes of the base model.

    Raises:
        InputError: bad task or probe files, unknown tasks, empty held-out text, a model that cannot be loaded.
        StopRequested: asked to stop.
    """
    ranks = evaluation_ranks(context)
    bench = Bench(config.evaluation, context, ranks)
    model, tokenizer = bench.load(config.model)
    digest = reference_digest(context.work, config.model)
    measured = bench.measure(model, tokenizer, digest=digest, name="base", base_items=None)
    if ranks.is_first:
        write_items(context.try_folder / ITEMS, measured.items)
    return BaselineReport(
        facts=BaselineFacts(measure=measured.measure),
        items_path=f"{try_folder(context.stage.run)}/{ITEMS}",
    )
