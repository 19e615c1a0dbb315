"""Measures the base model once (baseline); every gate and gain is relative to it."""

from __future__ import annotations

from dapt_contract.layout import try_folder
from dapt_contract.stages.baseline import BaselineConfig, BaselineFacts, BaselineReport
from dapt_trainer.context import StageContext
from dapt_trainer.data.packing.recorded_data import require_recorded_data
from dapt_trainer.digests import HeldWeights, checked_reference_digest
from dapt_trainer.distributed import evaluation_ranks
from dapt_trainer.evaluation.base_sanity import check_base
from dapt_trainer.evaluation.earlier_results import found_by_all, kept_results, results_key
from dapt_trainer.evaluation.items import items_digest, write_items
from dapt_trainer.evaluation.measure import Bench
from dapt_trainer.preflight.check import run_preflight

ITEMS = "items.jsonl"


def run(config: BaselineConfig, context: StageContext) -> BaselineReport:
    """Return perplexities, tasks and probes of the base model; an earlier measurement on this volume is used again.

    Raises:
        InputError: bad task or probe files, unknown tasks, empty held-out text, a model that cannot be loaded, or one
            that predicts no better than by chance.
        StopRequested: SIGTERM; nothing is kept.
    """
    ranks = evaluation_ranks(context)
    run_preflight(context, ranks, is_training=False)
    require_recorded_data(context.work, config.prepared_digest)
    bench = Bench(config.evaluation, context, ranks)
    held = HeldWeights(context.work, [config.model])
    digest = checked_reference_digest(context.work, config.model, config.recorded)
    key = results_key(
        context.work,
        config.evaluation,
        weights_digest=digest,
        device=ranks.device.type,
        tokenizer=config.model.weights,
    )
    kept = kept_results(context.work, key, context.signing_key)
    items_path = f"{try_folder(context.stage.run)}/{ITEMS}"
    if found_by_all(ranks, kept is not None) and kept is not None:
        report, items, lineage = kept
        if ranks.is_first:
            write_items(context.try_folder / ITEMS, items)
        return report.model_copy(update={"items_path": items_path, "reused_from": lineage})
    model, tokenizer = bench.load(config.model)
    held.require_unchanged()
    measured = bench.measure(model, tokenizer, digest=digest, name="base", base_items=None)
    check_base(measured.measure, model.config.vocab_size)
    if ranks.is_first:
        write_items(context.try_folder / ITEMS, measured.items)
    digest_of_items = items_digest(measured.items)
    return BaselineReport(
        facts=BaselineFacts(measure=measured.measure, items_digest=digest_of_items),
        items_path=items_path,
        items_digest=digest_of_items,
        key=key,
    )
