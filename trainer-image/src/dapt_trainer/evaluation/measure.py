"""Measures one model: perplexities, tasks and probes, always in the same order and precision.

The precision is fp32 on CPU and bf16 on an accelerator. It is the same for every model of an adaptation, so that
differences are differences of models. Merged weights are rounded once, to that precision.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dapt_contract.layout import HARNESS, PROBES, TASKS
from dapt_contract.measure import Measure, Score, Side
from dapt_contract.stages.common import EvaluationConfig, ModelReference, ModelSpread
from dapt_trainer.context import StageContext
from dapt_trainer.data.packing.data_manifest import DataManifest
from dapt_trainer.data.packing.prepared_files import check_prepared
from dapt_trainer.digests import size_of_reference
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.base_model.document_losses import DocumentLoss
from dapt_trainer.evaluation.harness import SharedContextModel, TaskRunner
from dapt_trainer.evaluation.items import Item, score_of
from dapt_trainer.evaluation.perplexity import HeldOutScoring, measure_side
from dapt_trainer.evaluation.probes import read_probes, run_probes
from dapt_trainer.evaluation.sharing.generation import SharedGeneration
from dapt_trainer.evaluation.sharing.work_share import share_of_generation, share_of_work
from dapt_trainer.evaluation.stage_progress import Parts
from dapt_trainer.modeling.loading.spread_model import SpreadLoader
from dapt_trainer.modeling.stored_models.model_folder import load_tokenizer

_SIDES: tuple[Side, Side] = ("domain", "general")


@dataclass(frozen=True)
class Measured:
    """Holds a model's measure, the items behind its scores, and the losses behind its perplexities."""

    measure: Measure
    items: tuple[Item, ...]
    losses: tuple[DocumentLoss, ...]


class Bench:
    """Measures one model after the other on the checked tasks and probes of an evaluation."""

    def __init__(
        self,
        config: EvaluationConfig,
        context: StageContext,
        ranks: Ranks,
        *,
        spread: ModelSpread,
        manifest: DataManifest,
        models: int = 1,
    ) -> None:
        """Read and check everything before the first model is loaded.

        Args:
            config: what to measure.
            context: of the stage.
            ranks: of the stage.
            spread: how the ranks divide a model.
            manifest: of the prepared data, compared with what prepare reported.
            models: number of models that will be measured, for the progress.

        Raises:
            InputError: all problems of all task and probe files and names, or a file that prepare did not write.
        """
        self._config = config
        self._context = context
        self._ranks = ranks
        self._loader = SpreadLoader(context.work, spread, ranks)
        self._share = share_of_work(spread, ranks)
        self.generation = SharedGeneration(
            ranks if ranks.world_size > 1 else None, share_of_generation(spread, ranks)
        )
        self._scoring = HeldOutScoring.of_ranks(
            ranks, config.context_length_tokens, context.progress, manifest, self._share.ranks_per_share
        )
        # Held-out text is compared when it is read.
        check_prepared(context.work, TASKS, PROBES, HARNESS, manifest=manifest)
        problems: list[str] = []
        self._probes = []
        for probe in config.probes:
            try:
                self._probes.append((probe, read_probes(context.work, probe, limit=config.limit)))
            except InputError as error:
                problems.extend(error.problems)
        try:
            scratch = context.scratch / f"rank-{ranks.rank}"
            self._tasks = TaskRunner(
                context.work, scratch, config.tasks, limit=config.limit, seed=config.seed
            )
        except InputError as error:
            problems.extend(error.problems)
        if problems:
            raise InputError(*problems)
        parts_a_model = len(_SIDES) + len(config.tasks) + len(config.probes)
        any_rank = ranks.maximum if ranks.world_size > 1 else float
        self._parts = Parts(context.progress, parts_a_model * models, any_rank=any_rank)

    def load(self, reference: ModelReference) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load model and tokenizer of a plain reference, on this rank's device, at the precision of evaluations.

        Raises:
            InputError: as `SpreadLoader.load`.
        """
        self._context.progress.update(activity=f"loading {reference.weights}")
        on_cpu = self._ranks.device.type == "cpu"
        # The model before this one holds itself in circles: without this both would be in memory.
        gc.collect()
        with self._context.keep_alive(size_of_reference(self._context.work, reference)):
            model = self._loader.load(reference, precision="fp32" if on_cpu else "bf16")
        return model, load_tokenizer(self._context.work, reference.weights)

    def measure(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        digest: str,
        name: str,
        base_items: Sequence[Item] | None,
        base_losses: Sequence[DocumentLoss] = (),
    ) -> Measured:
        """Measure one model.

        Args:
            model: on its device.
            tokenizer: the model's.
            digest: of its weights.
            name: shown in the progress: `base`, or a candidate's id.
            base_items: of the base model, for paired differences; None when this is the base model.
            base_losses: of the base model by document, for standard errors; empty when this is the base model.

        Raises:
            InputError: as `measure_side`, `TaskRunner.run`, `score_of`.
            StopRequested: SIGTERM was seen by any rank.
        """
        perplexities = {}
        losses: list[DocumentLoss] = []
        # Those of the model before are not this one's.
        self._context.progress.update(domain_perplexity=None, general_perplexity=None)
        for side in _SIDES:
            measured_side = measure_side(
                model,
                self._context.work,
                side,
                self._scoring,
                tokenizer=tokenizer,
                advance=self._parts.begin(f"{name}: {side} held-out text"),
                base=base_losses,
            )
            perplexities[side] = measured_side.perplexity
            losses += measured_side.losses
        self._context.progress.update(
            domain_perplexity=perplexities["domain"].both.perplexity,
            general_perplexity=perplexities["general"].both.perplexity,
        )
        items: list[Item] = []
        scores: list[Score] = []
        harness = SharedContextModel(model, tokenizer, self._share, self.generation)
        for task in self._config.tasks:
            task_items = self._tasks.run(harness, task, self._parts.begin(f"{name}: task {task.name}"))
            scores.append(score_of(task.name, task.side, "task", task_items, base_items))
            items.extend(task_items)
        for probe, probes in self._probes:
            probe_items = run_probes(harness, probe.name, probes, self._parts.begin(f"{name}: {probe.name}"))
            scores.append(score_of(probe.name, probe.side, "probe", probe_items, base_items))
            items.extend(probe_items)
        measure = Measure(
            digest=digest,
            domain=perplexities["domain"],
            general=perplexities["general"],
            scores=tuple(scores),
        )
        return Measured(measure, tuple(items), tuple(losses))
