"""blend: both perplexities of averages and interpolations, so that selection ranks them like checkpoints.

Nothing is written but the report: a recipe is followed again wherever its model is wanted. Blends of the same models
share one load of them, so that three interpolations of a checkpoint read it once.
"""

from __future__ import annotations

from dapt_contract.measure import Side, SidePerplexity
from dapt_contract.stages.blend import Blend, BlendConfig, BlendFacts, BlendReport, BlendRow
from dapt_trainer.checkpoints.run_checkpoints import DIGEST_DIGITS
from dapt_trainer.context import StageContext, beating
from dapt_trainer.data.packing.data_manifest import read_manifest
from dapt_trainer.digests import reference_digest
from dapt_trainer.distributed import Ranks, evaluation_ranks
from dapt_trainer.evaluation.perplexity import side_perplexity
from dapt_trainer.evaluation.stage_progress import Parts
from dapt_trainer.modeling.compose import SharedMeans, mean_key
from dapt_trainer.modeling.model_folder import load_tokenizer

_SIDES: tuple[Side, Side] = ("domain", "general")


def run(config: BlendConfig, context: StageContext) -> BlendReport:
    """Measure every blend, in an order in which those of the same models follow one another.

    Raises:
        InputError: a part is missing, or parts do not fit together; held-out text is missing.
        StopRequested: asked to stop; the next try measures all of them.
    """
    ranks = evaluation_ranks(context)
    # The precision of evaluations: the same for every model of an adaptation.
    models = SharedMeans(
        context.work, precision="fp32" if ranks.device.type == "cpu" else "bf16", device=str(ranks.device)
    )
    parts = Parts(
        context.progress,
        len(_SIDES) * len(config.blends),
        any_rank=ranks.maximum if ranks.world_size > 1 else float,
    )
    folders: dict[str, str] = {}
    rows: dict[str, BlendRow] = {}
    for blend in in_groups(config.blends):
        context.progress.update(activity=f"{blend.candidate}: combining the weights")
        with beating(context.progress):
            digest = reference_digest(context.work, blend.model, folders)
            model = models.load(blend.model)
        domain, general = (_measure(model, side, blend, config, context, ranks, parts) for side in _SIDES)
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
    """The blends in their order, but those of the same mean right after the first of them."""
    groups: dict[object, list[Blend]] = {}
    for blend in blends:
        groups.setdefault(mean_key(blend.model), []).append(blend)
    return [blend for group in groups.values() for blend in group]


def _measure(
    model: object,
    side: Side,
    blend: Blend,
    config: BlendConfig,
    context: StageContext,
    ranks: Ranks,
    parts: Parts,
) -> SidePerplexity:
    return side_perplexity(
        model,
        context.work,
        side,
        context_length_tokens=config.context_length_tokens,
        end_of_text_id=read_manifest(context.work).end_of_text_id,
        rank=ranks.rank,
        world_size=ranks.world_size,
        progress=context.progress,
        advance=parts.begin(f"{blend.candidate}: {side} held-out text"),
        tokenizer=load_tokenizer(context.work, blend.model.weights),
    )
