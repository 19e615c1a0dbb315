"""Measures both perplexities of averages and interpolations (blend), so that selection ranks them like checkpoints.

Only the report is written: whatever needs such a model composes it again from its recipe. Blends of the same models
share one load of them, so that three interpolations of a checkpoint read it once.
"""

from __future__ import annotations

from dapt_contract.measure import Side
from dapt_contract.stages.blend import Blend, BlendConfig, BlendFacts, BlendReport, BlendRow
from dapt_trainer.context import StageContext, keep_alive
from dapt_trainer.digests import DIGEST_DIGITS, reference_digest
from dapt_trainer.distributed import evaluation_ranks
from dapt_trainer.evaluation.perplexity import HeldOutScoring, side_perplexity
from dapt_trainer.evaluation.stage_progress import Parts
from dapt_trainer.modeling.compose import SharedMeans, mean_key
from dapt_trainer.modeling.model_folder import load_tokenizer

_SIDES: tuple[Side, Side] = ("domain", "general")


def run(config: BlendConfig, context: StageContext) -> BlendReport:
    """Measure every blend, those of the same models one after the other.

    Raises:
        InputError: a part is missing, or parts are not of one architecture; held-out text is missing.
        StopRequested: SIGTERM; the next run measures all of them.
    """
    ranks = evaluation_ranks(context)
    # As in all evaluations of an adaptation, so that perplexities can be compared.
    models = SharedMeans(
        context.work, precision="fp32" if ranks.device.type == "cpu" else "bf16", device=str(ranks.device)
    )
    parts = Parts(
        context.progress,
        len(_SIDES) * len(config.blends),
        any_rank=ranks.maximum if ranks.world_size > 1 else float,
    )
    folder_digests: dict[str, str] = {}
    rows: dict[str, BlendRow] = {}
    for blend in in_groups(config.blends):
        context.progress.update(activity=f"{blend.candidate}: combining the weights")
        with keep_alive(context.progress):
            digest = reference_digest(context.work, blend.model, folder_digests)
            model = models.load(blend.model)
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
    return BlendReport(facts=BlendFacts(rows=tuple(rows[blend.candidate] for blend in config.blends)))


def in_groups(blends: tuple[Blend, ...]) -> list[Blend]:
    """Return the blends in their order, but those of the same mean right after the first of them."""
    groups: dict[object, list[Blend]] = {}
    for blend in blends:
        groups.setdefault(mean_key(blend.model), []).append(blend)
    return [blend for group in groups.values() for blend in group]
