"""Measures both perplexities of averages and interpolations (blend), so that selection ranks them like checkpoints.

Only numbers are written: whatever needs such a model composes it again from its recipe. Blends of the same models share
one load of them, so that three interpolations of a checkpoint read it once. Each row is kept on the work volume as soon
as it is measured, so a run that was stopped or killed costs only the blend that it was measuring.
"""

from __future__ import annotations

from typing import Final

from dapt_contract.base import Contract
from dapt_contract.envelope import ContractError, read_envelope, write_envelope
from dapt_contract.layout import lineage_folder
from dapt_contract.measure import Side
from dapt_contract.stages.blend import Blend, BlendConfig, BlendFacts, BlendReport, BlendRow
from dapt_trainer.context import StageContext, keep_alive
from dapt_trainer.data.packing.recorded_data import require_recorded_data
from dapt_trainer.digests import DIGEST_DIGITS, HeldWeights, check_folders, reference_digest
from dapt_trainer.distributed import evaluation_ranks
from dapt_trainer.evaluation.perplexity import HeldOutScoring, side_perplexity
from dapt_trainer.evaluation.stage_progress import Parts
from dapt_trainer.modeling.compose import SharedMeans, mean_key
from dapt_trainer.modeling.stored_models.model_folder import load_tokenizer
from dapt_trainer.pod.log_lines import write_line
from dapt_trainer.preflight.check import run_preflight

_SIDES: tuple[Side, Side] = ("domain", "general")
_KEPT: Final = "measured.json"
"""Name of the file with the rows so far, in the folder of the run."""
_KEPT_SCHEMA: Final = "dapt.measured-blends"


class _KeptRows(Contract):
    """Holds what a run has measured so far."""

    context_length_tokens: int
    rows: tuple[BlendRow, ...]


def run(config: BlendConfig, context: StageContext) -> BlendReport:
    """Measure every blend, those of the same models one after the other.

    Raises:
        InputError: a part is missing, or parts are not of one architecture; held-out text is missing.
        StopRequested: SIGTERM; the next run measures what is missing.
    """
    ranks = evaluation_ranks(context)
    run_preflight(context, ranks, is_training=False)
    require_recorded_data(context.work, config.prepared_digest)
    # As in all evaluations of an adaptation, so that perplexities can be compared.
    models = SharedMeans(
        context.work, precision="fp32" if ranks.device.type == "cpu" else "bf16", device=str(ranks.device)
    )
    folder_digests: dict[str, str] = {}
    held = HeldWeights(context.work, [blend.model for blend in config.blends])
    with keep_alive(context.progress):
        check_folders(context.work, config.recorded, folder_digests)
        rows = _kept_rows(config, context, folder_digests)
    missing = [blend for blend in in_groups(config.blends) if blend.candidate not in rows]
    if rows:
        write_line(f"{len(rows)} of {len(config.blends)} blends were measured by an earlier run")
    parts = Parts(
        context.progress,
        len(_SIDES) * len(missing),
        any_rank=ranks.maximum if ranks.world_size > 1 else float,
        after_stop="measures what is missing",
    )
    for blend in missing:
        context.progress.update(
            activity=f"{blend.candidate}: combining the weights",
            # Those of the blend before are not this one's.
            domain_perplexity=None,
            general_perplexity=None,
        )
        with keep_alive(context.progress):
            digest = reference_digest(context.work, blend.model, folder_digests)
            model = models.load(blend.model)
            held.require_unchanged()
        domain, general = (
            side_perplexity(
                model,
                context.work,
                side,
                HeldOutScoring(config.context_length_tokens, ranks.rank, ranks.world_size, context.progress),
                advance=parts.begin(f"{blend.candidate}: {side} held-out text"),
                tokenizer=load_tokenizer(context.work, blend.model.weights),
            )
            for side in _SIDES
        )
        context.progress.update(
            domain_perplexity=domain.both.perplexity, general_perplexity=general.both.perplexity
        )
        rows[blend.candidate] = BlendRow(
            candidate=blend.candidate,
            domain_a_nats=domain.a.loss_nats,
            domain_b_nats=domain.b.loss_nats,
            general_a_nats=general.a.loss_nats,
            general_b_nats=general.b.loss_nats,
            weights_digest=digest[:DIGEST_DIGITS],
        )
        if ranks.is_first:
            kept = _KeptRows(context_length_tokens=config.context_length_tokens, rows=tuple(rows.values()))
            write_envelope(
                context.try_folder / _KEPT,
                _KEPT_SCHEMA,
                kept,
                run_key=context.stage.run.key,
                key=context.signing_key,
            )
    return BlendReport(facts=BlendFacts(rows=tuple(rows[blend.candidate] for blend in config.blends)))


def _kept_rows(
    config: BlendConfig, context: StageContext, folder_digests: dict[str, str]
) -> dict[str, BlendRow]:
    """Return the rows that earlier runs of the same work have measured of the very models that are wanted now."""
    rows: dict[str, BlendRow] = {}
    wanted = {blend.candidate: blend.model for blend in config.blends}
    lineage = context.work / lineage_folder(context.stage.run)
    # Of earlier runs alone: no other rank of this one may find more than the first rank did.
    for path in sorted(lineage.glob(f"try-*/{_KEPT}")):
        if path.parent == context.try_folder:
            continue
        try:
            _, kept = read_envelope(path, _KEPT_SCHEMA, _KeptRows, key=context.signing_key)
        except (ContractError, OSError) as error:
            write_line(f"{error}; its blends are measured again")
            continue
        for row in kept.rows if kept.context_length_tokens == config.context_length_tokens else ():
            model = wanted.get(row.candidate)
            if model is None or row.candidate in rows:
                continue
            digest = reference_digest(context.work, model, folder_digests)
            if row.weights_digest == digest[:DIGEST_DIGITS]:
                rows[row.candidate] = row
    return rows


def in_groups(blends: tuple[Blend, ...]) -> list[Blend]:
    """Return the blends in their order, but those of the same mean right after the first of them."""
    groups: dict[object, list[Blend]] = {}
    for blend in blends:
        groups.setdefault(mean_key(blend.model), []).append(blend)
    return [blend for group in groups.values() for blend in group]
