"""evaluate: measure one candidate, its scores paired with the base model's items."""

from __future__ import annotations

from pathlib import Path

from dapt_contract.layout import try_folder
from dapt_contract.stages.evaluate import EvaluateConfig, EvaluateFacts, EvaluateReport
from dapt_trainer.checkpoints.run_checkpoints import DIGEST_DIGITS
from dapt_trainer.context import StageContext, beating
from dapt_trainer.digests import reference_digest
from dapt_trainer.distributed import evaluation_ranks
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.earlier_results import base_items
from dapt_trainer.evaluation.items import write_items
from dapt_trainer.evaluation.measure import Bench
from dapt_trainer.stages.baseline import ITEMS


def run(config: EvaluateConfig, context: StageContext) -> EvaluateReport:
    """Perplexities, tasks and probes of a candidate.

    Raises:
        InputError: as baseline; also when the base model's items are missing or are not the same ones, or when the
            weights are not those that were expected.
        StopRequested: asked to stop.
    """
    ranks = evaluation_ranks(context)
    bench = Bench(config.evaluation, context, ranks)
    paired = base_items(context.work, config.base_items_path)
    context.progress.update(activity=f"looking at the weights of {config.candidate}")
    with beating(context.progress):
        digest = checked_digest(config, context.work)
    model, tokenizer = bench.load(config.model)
    measured = bench.measure(model, tokenizer, digest=digest, name=config.candidate, base_items=paired)
    if ranks.is_first:
        write_items(context.try_folder / ITEMS, measured.items)
    return EvaluateReport(
        facts=EvaluateFacts(candidate=config.candidate, measure=measured.measure),
        items_path=f"{try_folder(context.stage.run)}/{ITEMS}",
    )


def checked_digest(config: EvaluateConfig, work: Path) -> str:
    """The recipe's digest.

    Raises:
        InputError: neither it nor its newest part's is the expected one: a result would be of another model.
    """
    known: dict[str, str] = {}
    digest = reference_digest(work, config.model, known)
    expected = config.expected_digest
    if expected is None or digest.startswith(expected):
        return digest
    model = config.model
    newest = (model.weights, *model.adapters, *model.tuned)[-1]
    composed = bool(model.averaged_with) or model.interpolation != 1.0
    if not composed and known[newest].startswith(expected):
        return digest
    found = digest if composed else known[newest]
    raise InputError(
        f"{config.candidate}: the weights at {newest} have the digest {found[:DIGEST_DIGITS]}, and {expected} is the "
        "one that was chosen for evaluation: the files changed since they were written, so nothing is scored; restore "
        "them, or train again"
    )
