"""Compares base, chosen checkpoint and final model on every measure and by their answers to a few prompts (verify).

A model whose weights have the digest of one that was measured before is not measured again.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from pydantic import TypeAdapter

from dapt_contract.measure import Measure
from dapt_contract.stages.verify import (
    NamedMeasure,
    NamedModel,
    Sample,
    VerifyConfig,
    VerifyFacts,
    VerifyReport,
)
from dapt_trainer.context import StageContext
from dapt_trainer.data.packing.recorded_data import read_recorded_data
from dapt_trainer.digests import checked_reference_digest, size_of_reference
from dapt_trainer.distributed import evaluation_ranks
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.earlier_results import base_items, base_losses, measured_before
from dapt_trainer.evaluation.items import write_items
from dapt_trainer.evaluation.measure import Bench
from dapt_trainer.evaluation.samples import answers, right_answers, sample_prompts
from dapt_trainer.evaluation.sharing.shared_digests import SharedDigests
from dapt_trainer.modeling.loading.spread_model import usable_spread
from dapt_trainer.modeling.stored_models.model_folder import load_tokenizer
from dapt_trainer.modeling.written_models.for_stages import WrittenModels
from dapt_trainer.preflight.check import run_preflight
from dapt_trainer.stages.publish import tokenizer_folder
from dapt_trainer.training.tuning.chat import stop_at_end_of_turn

_BASE = "base"
_FINAL = "final"
_MEASURES: Final = TypeAdapter(dict[str, Measure])
_PROMPTS: Final = TypeAdapter(list[str])
_EXPECTED: Final = TypeAdapter(dict[str, str])


def run(config: VerifyConfig, context: StageContext) -> VerifyReport:
    """Return the measures of all models, the final one's as facts, and their greedy answers.

    Raises:
        InputError: as evaluate; also when no model is named `final`.
        StopRequested: SIGTERM; nothing is kept.
    """
    if _FINAL not in {model.name for model in config.models}:
        raise InputError(
            f"verify: no model named {_FINAL!r} among {', '.join(m.name for m in config.models) or 'none'}"
        )
    ranks = evaluation_ranks(context)
    run_preflight(context, ranks, is_training=False)
    manifest = read_recorded_data(context.work, config.prepared_digest)
    sizes = [size_of_reference(context.work, named.model) for named in config.models]
    with context.keep_alive(sum(sizes)):
        hashed = SharedDigests(
            context.work,
            [named.model for named in config.models],
            [named.recorded for named in config.models],
            ranks,
            context.progress,
        )
    digests = {
        named.name: checked_reference_digest(context.work, named.model, named.recorded, hashed.by_folder)
        for named in config.models
    }
    reused = [path for _, path in config.reuse_paths]
    # Rank 0 reads for all: a node may not see yet what another one wrote, and a rank that measures a model which its
    # peers do not would wait for them for ever.
    measures = ranks.from_first(lambda: measured_before(context.work, reused, context.signing_key), _MEASURES)
    pending = {digest for digest in digests.values() if digest not in measures}
    spread = usable_spread(context.work, config.models[0].model.weights, config.spread, ranks)
    bench = Bench(config.evaluation, context, ranks, spread=spread, manifest=manifest, models=len(pending))
    paired = base_items(context.work, config.base_items_path, config.base_items_digest, context.signing_key)
    losses = base_losses(context.work, config.base_losses_digest, config.base_items_path)
    written = WrittenModels(context, ranks)
    answers_of: dict[str, list[str]] = {}
    prompts: list[str] | None = None
    expected: dict[str, str] = {}
    for named in _final_last(config.models):
        digest = digests[named.name]
        if digest in answers_of and digest in measures:
            continue
        model, tokenizer = bench.load(written.plain(named.model))
        hashed.require_unchanged()
        written.require_unchanged()
        if digest not in measures:
            is_base = named.name == _BASE
            measured = bench.measure(
                model,
                tokenizer,
                digest=digest,
                name=named.name,
                base_items=None if is_base else paired,
                base_losses=() if is_base else losses,
            )
            measures[digest] = measured.measure
            if ranks.is_first:
                write_items(context.try_folder / f"items-{named.name}.jsonl", measured.items)
        if prompts is None:
            # It passes over files that it cannot read, and so might one rank alone.
            choose = partial(
                sample_prompts, context.work, config.evaluation, tokenizer, config.sample_prompts
            )
            prompts = ranks.from_first(choose, _PROMPTS)
            answer = partial(right_answers, context.work, config.evaluation, config.sample_prompts)
            expected = ranks.from_first(answer, _EXPECTED)
        context.progress.update(activity=f"{named.name}: answering {len(prompts)} prompts")
        chat_tokenizer = load_tokenizer(context.work, tokenizer_folder(context.work, named.model))
        stop_at_end_of_turn(model, chat_tokenizer, ranks)
        answers_of[digest] = answers(
            model,
            chat_tokenizer,
            prompts,
            new_tokens=config.sample_new_tokens,
            generation=bench.generation,
        )
        del model
    return VerifyReport(
        facts=VerifyFacts(final=measures[digests[_FINAL]], digests=tuple(digests.items())),
        measures=tuple(NamedMeasure(name=name, measure=measures[digest]) for name, digest in digests.items()),
        samples=tuple(
            Sample(
                prompt=prompt,
                answers=tuple((name, answers_of[digest][index]) for name, digest in digests.items()),
                expected=expected.get(prompt),
            )
            for index, prompt in enumerate(prompts or [])
        ),
    )


def _final_last(models: tuple[NamedModel, ...]) -> list[NamedModel]:
    """Return the models with the base first, whose tokenizer makes the prompts, and the final one last."""
    return sorted(models, key=lambda named: (named.name != _BASE, named.name == _FINAL))
