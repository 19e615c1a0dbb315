"""Measures one candidate (evaluate), its scores paired with the base model's items."""

from __future__ import annotations

from pathlib import Path

from dapt_contract.layout import try_folder
from dapt_contract.stages.evaluate import EvaluateConfig, EvaluateFacts, EvaluateReport
from dapt_trainer.context import StageContext
from dapt_trainer.data.packing.recorded_data import read_recorded_data
from dapt_trainer.digests import DIGEST_DIGITS, checked_reference_digest, size_of_reference
from dapt_trainer.distributed import evaluation_ranks
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.earlier_results import base_items, base_losses
from dapt_trainer.evaluation.items import write_items
from dapt_trainer.evaluation.measure import Bench
from dapt_trainer.evaluation.sharing.shared_digests import SharedDigests
from dapt_trainer.modeling.loading.spread_model import usable_spread
from dapt_trainer.modeling.written_models.for_stages import WrittenModels
from dapt_trainer.preflight.check import run_preflight
from dapt_trainer.stages.baseline import ITEMS


def run(config: EvaluateConfig, context: StageContext) -> EvaluateReport:
    """Return perplexities, tasks and probes of a candidate.

    Raises:
        InputError: as baseline; also when the base model's items are missing or are others, or when the weights are not
            the expected ones.
        StopRequested: SIGTERM; nothing is kept.
    """
    ranks = evaluation_ranks(context)
    run_preflight(context, ranks, is_training=False)
    manifest = read_recorded_data(context.work, config.prepared_digest)
    spread = usable_spread(context.work, config.model.weights, config.spread, ranks)
    bench = Bench(config.evaluation, context, ranks, spread=spread, manifest=manifest)
    paired = base_items(context.work, config.base_items_path, config.base_items_digest, context.signing_key)
    losses = base_losses(context.work, config.base_losses_digest, config.base_items_path)
    context.progress.update(activity=f"checking the weights of {config.candidate}")
    with context.keep_alive(size_of_reference(context.work, config.model)):
        hashed = SharedDigests(context.work, [config.model], [config.recorded], ranks, context.progress)
    digest = checked_digest(config, context.work, hashed.by_folder)
    written = WrittenModels(context, ranks)
    model, tokenizer = bench.load(written.plain(config.model))
    hashed.require_unchanged()
    written.require_unchanged()
    measured = bench.measure(
        model, tokenizer, digest=digest, name=config.candidate, base_items=paired, base_losses=losses
    )
    if ranks.is_first:
        write_items(context.try_folder / ITEMS, measured.items)
    return EvaluateReport(
        facts=EvaluateFacts(candidate=config.candidate, measure=measured.measure),
        items_path=f"{try_folder(context.stage.run)}/{ITEMS}",
    )


def checked_digest(config: EvaluateConfig, work: Path, folder_digests: dict[str, str] | None = None) -> str:
    """Return the digest of the candidate's recipe.

    Args:
        config: of the stage.
        work: root of the work volume.
        folder_digests: digests by folder that are known already.

    Raises:
        InputError: neither it nor its newest part's is the expected one: a result would be of another model.
    """
    folder_digests = {} if folder_digests is None else folder_digests
    digest = checked_reference_digest(work, config.model, config.recorded, folder_digests)
    expected = config.expected_digest
    if expected is None or digest.startswith(expected):
        return digest
    model = config.model
    newest = (model.weights, *model.adapters, *model.tuned)[-1]
    is_composed = bool(model.averaged_with) or model.interpolation != 1.0
    # A checkpoint's facts have the digest of its own adapter, not of the chain that it is merged into.
    if not is_composed and folder_digests[newest].startswith(expected):
        return digest
    actual = digest if is_composed else folder_digests[newest]
    raise InputError(
        f"{config.candidate}: the weights at {newest} have the digest {actual[:DIGEST_DIGITS]}, and {expected} is the "
        "one that was chosen for evaluation: the files changed since they were written, so nothing is scored; restore "
        "them, or train again"
    )
