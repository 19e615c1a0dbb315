"""Measures the base model once (baseline); every gate and gain is relative to it."""

from __future__ import annotations

from dapt_contract.layout import try_folder
from dapt_contract.stages.baseline import BaselineConfig, BaselineFacts, BaselineReport
from dapt_trainer.context import StageContext
from dapt_trainer.data.packing.recorded_data import read_recorded_data
from dapt_trainer.digests import checked_reference_digest, size_of_reference
from dapt_trainer.distributed import evaluation_ranks
from dapt_trainer.evaluation.base_model.document_losses import LOSSES, losses_digest, write_losses
from dapt_trainer.evaluation.base_model.sanity import check_base
from dapt_trainer.evaluation.earlier_results import found_by_all, kept_results, losses_of_report, results_key
from dapt_trainer.evaluation.items import items_digest, write_items
from dapt_trainer.evaluation.measure import Bench
from dapt_trainer.evaluation.sharing.shared_digests import SharedDigests
from dapt_trainer.modeling.loading.spread_model import usable_spread
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
    manifest = read_recorded_data(context.work, config.prepared_digest)
    spread = usable_spread(context.work, config.model.weights, config.spread, ranks)
    bench = Bench(config.evaluation, context, ranks, spread=spread, manifest=manifest)
    with context.keep_alive(size_of_reference(context.work, config.model)):
        hashed = SharedDigests(context.work, [config.model], [config.recorded], ranks, context.progress)
    digest = checked_reference_digest(context.work, config.model, config.recorded, hashed.by_folder)
    key = results_key(
        context.work,
        config.evaluation,
        weights_digest=digest,
        device=ranks.device.type,
        tokenizer=config.model.weights,
    )
    kept = kept_results(context.work, key, context.signing_key)
    items_path = f"{try_folder(context.stage.run)}/{ITEMS}"
    losses_path = f"{try_folder(context.stage.run)}/{LOSSES}"
    if found_by_all(ranks, kept is not None) and kept is not None:
        report, items, lineage = kept
        update = {"items_path": items_path, "reused_from": lineage}
        losses = losses_of_report(context.work, report)
        if losses:
            update["losses_path"] = losses_path
        if ranks.is_first:
            write_items(context.try_folder / ITEMS, items)
            if losses:
                write_losses(context.try_folder / LOSSES, losses)
        return report.model_copy(update=update)
    model, tokenizer = bench.load(config.model)
    hashed.require_unchanged()
    measured = bench.measure(model, tokenizer, digest=digest, name="base", base_items=None)
    check_base(measured.measure, model.config.vocab_size)
    if ranks.is_first:
        write_items(context.try_folder / ITEMS, measured.items)
        write_losses(context.try_folder / LOSSES, measured.losses)
    digest_of_items = items_digest(measured.items)
    return BaselineReport(
        facts=BaselineFacts(
            measure=measured.measure,
            items_digest=digest_of_items,
            losses_digest=losses_digest(measured.losses),
        ),
        items_path=items_path,
        losses_path=losses_path,
        items_digest=digest_of_items,
        key=key,
    )
