"""Makes averages and interpolations and measures both perplexities of each (blend), so that selection ranks them.

Each blend is written down as an ordinary model folder, one tensor at a time, and loaded from there like any other
model. At most as many folders as the configuration keeps stay, and the one that is being measured: a loser is removed
right after the reading that made it one. A row is on the work volume as soon as it is measured, so a run that was
stopped or killed costs only the blend that it was measuring.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from dapt_contract.base import Contract
from dapt_contract.envelope import ContractError, read_envelope, write_envelope
from dapt_contract.layout import BLENDS, lineage_folder, try_number
from dapt_contract.measure import Side
from dapt_contract.stages.blend import Blend, BlendConfig, BlendFacts, BlendReport, BlendRow, blend_folder
from dapt_contract.untrusted.folders import remove_folder, run_folders
from dapt_trainer.context import StageContext
from dapt_trainer.data.packing.data_manifest import DataManifest
from dapt_trainer.data.packing.recorded_data import read_recorded_data
from dapt_trainer.digests import (
    DIGEST_DIGITS,
    HeldWeights,
    check_folders,
    reference_digest,
    size_of_reference,
    weights_digest,
)
from dapt_trainer.distributed import Ranks, evaluation_ranks
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.earlier_results import base_losses
from dapt_trainer.evaluation.perplexity import HeldOutScoring, side_perplexity
from dapt_trainer.evaluation.sharing.work_share import share_of_work
from dapt_trainer.evaluation.stage_progress import Parts
from dapt_trainer.modeling.loading.spread_model import SpreadLoader, usable_spread
from dapt_trainer.modeling.stored_models.model_folder import load_tokenizer
from dapt_trainer.modeling.written_models.write_down import write_down
from dapt_trainer.pod.log_lines import write_line
from dapt_trainer.preflight.check import run_preflight

_SIDES: tuple[Side, Side] = ("domain", "general")
_MEASURED: Final = "measured.json"
"""Name of the file with the rows so far, in the folder of the run."""
_MEASURED_SCHEMA: Final = "dapt.measured-blends"


class _Measured(Contract):
    """Holds one blend that was measured."""

    row: BlendRow
    recipe_digest: str
    """First digits of the recipe's digest."""


class _MeasuredBlends(Contract):
    """Holds what a run has measured so far."""

    context_length_tokens: int
    blends: tuple[_Measured, ...] = ()
    rows: tuple[BlendRow, ...] = ()
    """Of a version that kept no folders; their digests are those of the recipes."""

    def all(self) -> Iterator[_Measured]:
        """Yield the blends of this version and of earlier ones."""
        yield from self.blends
        yield from (_Measured(row=row, recipe_digest=row.weights_digest) for row in self.rows)


_RECIPE_DIGESTS: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])
_EARLIER: TypeAdapter[list[_Measured]] = TypeAdapter(list[_Measured])


def run(config: BlendConfig, context: StageContext) -> BlendReport:
    """Make and measure every blend.

    Raises:
        InputError: a part is missing, or parts are not of one architecture; held-out text is missing.
        StopRequested: SIGTERM; the next run measures what is missing.
        InfrastructureError: the volume is full or gone.
    """
    ranks = evaluation_ranks(context)
    run_preflight(context, ranks, is_training=False)
    manifest = read_recorded_data(context.work, config.prepared_digest)

    # 1. Compare the parts with what was recorded of them, and take what earlier runs have measured. Rank 0 reads it for
    # all: every byte of the models, and no rank may find more than another.
    context.progress.update(activity="checking the weights")
    held = HeldWeights(context.work, [blend.model for blend in config.blends])
    sizes = [size_of_reference(context.work, blend.model) for blend in config.blends]
    with context.keep_alive(sum(sizes)):
        digests = ranks.from_first(lambda: _recipe_digests(config, context.work), _RECIPE_DIGESTS)
        earlier = ranks.from_first(lambda: _measured_before(config, context, digests), _EARLIER)
    measured = {found.row.candidate: found for found in earlier}
    missing = [blend for blend in config.blends if blend.candidate not in measured]
    if measured:
        write_line(f"{len(measured)} of {len(config.blends)} blends were measured by an earlier run")
    if ranks.is_first:
        _store(config, context, measured)
        _remove_all_but(context, measured)
    ranks.barrier()

    # 2. One after the other: write down, load, measure, note the row, remove what can no longer be taken.
    bench = _Bench(config, context, ranks, manifest, len(missing))
    for blend in missing:
        row = bench.measure(blend)
        # Models hold themselves in circles: without it, two are in memory while the next is loaded.
        gc.collect()
        held.require_unchanged()
        measured[blend.candidate] = _Measured(row=row, recipe_digest=digests[blend.candidate])
        measured = _without_losers(config, measured)
        ranks.barrier()  # no rank may still read a folder that is removed
        if ranks.is_first:
            # The rows first: killed in between, this leaves a folder that no row names, which the next run removes.
            _store(config, context, measured)
            _remove_all_but(context, measured)
    return BlendReport(facts=BlendFacts(rows=tuple(measured[blend.candidate].row for blend in config.blends)))


@dataclass
class _Bench:
    """Makes blends and measures them."""

    config: BlendConfig
    context: StageContext
    ranks: Ranks
    manifest: DataManifest
    num_blends: int

    def __post_init__(self) -> None:
        # Blends are of the architecture of their parts.
        spread = usable_spread(
            self.context.work, self.config.blends[0].model.weights, self.config.spread, self.ranks
        )
        self._loader = SpreadLoader(self.context.work, spread, self.ranks)
        self._scoring = HeldOutScoring.of_ranks(
            self.ranks,
            self.config.context_length_tokens,
            self.context.progress,
            self.manifest,
            share_of_work(spread, self.ranks).ranks_per_share,
        )
        self._base_losses = base_losses(self.context.work, self.config.base_losses_digest)
        self._parts = Parts(
            self.context.progress,
            len(_SIDES) * self.num_blends,
            any_rank=self.ranks.maximum if self.ranks.world_size > 1 else float,
            after_stop="measures what is missing",
        )

    def measure(self, blend: Blend) -> BlendRow:
        """Return the row of a blend, whose folder lies below the run's own."""
        context, ranks, progress = self.context, self.ranks, self.context.progress
        progress.update(
            activity=f"{blend.candidate}: writing the weights",
            # Those of the blend before are not this one's.
            domain_perplexity=None,
            general_perplexity=None,
        )
        # A rank without a file of its own waits for the others.
        with context.keep_alive(size_of_reference(context.work, blend.model)):
            written = write_down(
                context.work,
                blend.model,
                context.try_folder / BLENDS / blend.candidate,
                heartbeat=progress.heartbeat,
                ranks=ranks,
            )
        held = HeldWeights(context.work, [written.reference])
        with context.keep_alive(size_of_reference(context.work, written.reference)):
            model = self._loader.load(
                written.reference,
                # As in all evaluations of an adaptation, so that perplexities can be compared.
                precision="fp32" if ranks.device.type == "cpu" else "bf16",
            )
        held.require_unchanged()
        domain, general = (
            side_perplexity(
                model,
                context.work,
                side,
                self._scoring,
                advance=self._parts.begin(f"{blend.candidate}: {side} held-out text"),
                tokenizer=load_tokenizer(context.work, written.reference.weights),
                base=self._base_losses,
            )
            for side in _SIDES
        )
        progress.update(domain_perplexity=domain.both.perplexity, general_perplexity=general.both.perplexity)
        return BlendRow(
            candidate=blend.candidate,
            domain_a_nats=domain.a.loss_nats,
            domain_b_nats=domain.b.loss_nats,
            general_a_nats=general.a.loss_nats,
            general_b_nats=general.b.loss_nats,
            weights_digest=written.weights_digest[:DIGEST_DIGITS],
            try_number=context.stage.run.try_number,
            domain_b_error=domain.b.row_error,
            general_b_error=general.b.row_error,
        )


def _recipe_digests(config: BlendConfig, work: Path) -> dict[str, str]:
    """Return the first digits of each recipe's digest, by candidate.

    Raises:
        InputError: weights are not those that were recorded, or a part is missing.
    """
    folder_digests: dict[str, str] = {}
    check_folders(work, config.recorded, folder_digests)
    return {
        blend.candidate: reference_digest(work, blend.model, folder_digests)[:DIGEST_DIGITS]
        for blend in config.blends
    }


def _measured_before(config: BlendConfig, context: StageContext, digests: dict[str, str]) -> list[_Measured]:
    """Return what earlier runs of the same work have measured of the very models that are wanted now."""
    found: dict[str, _Measured] = {}
    lineage = context.work / lineage_folder(context.stage.run)
    # The newest first: it names the folders that are there.
    paths = sorted(lineage.glob(f"try-*/{_MEASURED}"), key=lambda path: -(try_number(path.parent.name) or 0))
    for path in paths:
        if path.parent == context.try_folder:
            continue
        try:
            _, stored = read_envelope(path, _MEASURED_SCHEMA, _MeasuredBlends, key=context.signing_key)
        except (ContractError, OSError) as error:
            write_line(f"{error}; its blends are measured again")
            continue
        for measured in stored.all() if stored.context_length_tokens == config.context_length_tokens else ():
            candidate = measured.row.candidate
            if candidate not in found and digests.get(candidate) == measured.recipe_digest:
                found[candidate] = measured
    kept = _without_losers(config, found)
    return [_with_its_folder(context, measured) for measured in kept.values()]


def _with_its_folder(context: StageContext, measured: _Measured) -> _Measured:
    """Return a measured blend as it is; without its folder where that is not what was measured."""
    run = context.stage.run
    folder = blend_folder(measured.row, run.attempt, run.candidate)
    if folder is None:
        return measured
    try:
        is_same = weights_digest(context.work / folder).startswith(measured.row.weights_digest)
    except (InputError, OSError):
        is_same = False
    return measured if is_same else _without_folder(measured)


def _without_losers(config: BlendConfig, measured: dict[str, _Measured]) -> dict[str, _Measured]:
    """Return the same, in which only the blends that the rule keeps have a folder."""
    kept = config.keeps.kept(found.row for found in measured.values() if found.row.try_number is not None)
    return {
        candidate: found if candidate in kept else _without_folder(found)
        for candidate, found in measured.items()
    }


def _without_folder(measured: _Measured) -> _Measured:
    row = measured.row.without_folder(measured.recipe_digest)
    return _Measured(row=row, recipe_digest=measured.recipe_digest)


def _store(config: BlendConfig, context: StageContext, measured: dict[str, _Measured]) -> None:
    stored = _MeasuredBlends(
        context_length_tokens=config.context_length_tokens, blends=tuple(measured.values())
    )
    path = context.try_folder / _MEASURED
    path.parent.mkdir(parents=True, exist_ok=True)
    write_envelope(path, _MEASURED_SCHEMA, stored, run_key=context.stage.run.key, key=context.signing_key)


def _remove_all_but(context: StageContext, measured: dict[str, _Measured]) -> None:
    """Remove the folders of blends, of this run and of earlier ones, that no row names."""
    run = context.stage.run
    named = {blend_folder(found.row, run.attempt, run.candidate) for found in measured.values()}
    lineage = context.work / lineage_folder(run)
    for number, run_folder in run_folders(lineage):
        blends = run_folder / BLENDS
        # A newer run's are in use; below a link lies what is none of ours.
        if number > run.try_number or blends.is_symlink():
            continue
        for folder in blends.glob("*"):
            if folder.relative_to(context.work).as_posix() not in named:
                remove_folder(folder)
