"""Fine-tuning and preference tuning as the spec asks for them: ranks, rates, batches and steps. Knows no run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from dapt_contract.stages.common import LoraConfig
from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.v1alpha1.conditions import NOT_ENOUGH_MEMORY
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.spec_training import Finetuning, Preference
from dapt_operator.plan.sizing.batch_size import ENOUGH_STEPS, LARGEST_DEFAULT, default_batch_size
from dapt_operator.plan.sizing.model_fit.batch import (
    Batch,
    BatchRequest,
    MemoryRule,
    TrainingBlock,
    fit_batch,
)
from dapt_operator.plan.sizing.resolve import (
    RankLayout,
    RefusedError,
    align_layouts,
    finetune_layouts,
    learning_rate,
    lora_config,
    preference_learning_rate,
)


@dataclass(frozen=True)
class TuningRequest:
    """One of the two tuning stages, as its block of the spec asks for it."""

    block: TrainingBlock
    settings: Finetuning | Preference
    layouts: tuple[RankLayout, ...]
    """Ranks that it may have, most nodes first; `layout` is used."""
    learning_rate: float
    epochs: float | None
    """Passes over the data; None: the number of steps is given."""
    steps: int | None
    pretraining_batch_size: int | None
    """As the spec has it: the largest that a default may be."""
    sequences_per_unit: int = 1
    """Sequences that one unit of the batch holds."""
    nodes: int | None = None
    """Nodes that were chosen among `layouts`; None: the most."""

    @property
    def layout(self) -> RankLayout:
        """Return the ranks: on the chosen number of nodes."""
        return next((layout for layout in self.layouts if layout.nodes == self.nodes), self.layouts[0])

    def on_nodes(self, nodes: int) -> TuningRequest:
        """Return the same request on this number of nodes, which is one of `layouts`."""
        return replace(self, nodes=nodes)

    def for_records(self, records: int | None) -> TuningRequest:
        """Return the request on as many nodes as this number of records fills a batch of.

        A batch is a multiple of the ranks, so more ranks than it needs would leave small data with a few large steps.
        A batch that the spec asks for is kept: the most nodes are taken whose ranks can share it.
        """
        fewest = self.layouts[-1].nodes
        return next(
            (
                request
                for layout in self.layouts
                if (request := self.on_nodes(layout.nodes))._fills_batch(records)
            ),
            self.on_nodes(fewest),
        )

    def _fills_batch(self, records: int | None) -> bool:
        ranks = self.layout.world_size * (self.settings.micro_batch_size or 1)
        if self.settings.global_batch_size is not None:
            return self.settings.global_batch_size % ranks == 0
        return ranks <= default_batch_size(1, self._units_of_training(records), largest=self._largest_batch)

    @property
    def _largest_batch(self) -> int:
        return self.pretraining_batch_size or LARGEST_DEFAULT

    def _units_of_training(self, records: int | None) -> float | None:
        """Return over how many examples or pairs the steps go; None where that is not known.

        Examples are packed into rows, but small data is spread over more of them (`minimum_rows`), so what counts is
        the number of examples.
        """
        return records * self.epochs if records is not None and self.epochs is not None else None

    @property
    def lora(self) -> LoraConfig | None:
        """Adapters that are trained; None where all weights are."""
        return lora_config(self.settings.method)

    def global_batch_size(self, records: int | None) -> int:
        """Return the global batch: as requested, else the default for this number of records.

        records: examples or pairs of the data; None: not known, then as large as a default may be.
        """
        settings = self.settings
        if settings.global_batch_size is not None:
            return settings.global_batch_size
        shared_by = self.layout.world_size * (settings.micro_batch_size or 1)
        return default_batch_size(shared_by, self._units_of_training(records), largest=self._largest_batch)

    def minimum_rows(self, records: int | None) -> int | None:
        """Return over how many rows fine-tuning spreads its examples at least, so that a default batch has steps.

        None where that is left as it is: the batch is requested, or the steps are.
        """
        if self.settings.global_batch_size is not None or records is None or self.epochs is None:
            return None
        return min(records, math.ceil(ENOUGH_STEPS * self.global_batch_size(records) / self.epochs))

    def total_steps(self, records: int, tokens: int | None, sequence_length_tokens: int) -> int:
        """Return the optimizer steps as the stage counts them, as far as they are known before it has packed.

        Args:
            records: examples or pairs.
            tokens: of all examples; None: not known, then each is a row of its own.
            sequence_length_tokens: length of a row.
        """
        if self.steps is not None:
            return self.steps
        units = self._units(records, tokens, sequence_length_tokens)
        return max(1, math.ceil((self.epochs or 1.0) * units / self.global_batch_size(records)))

    def total_tokens(
        self, records: int | None, tokens: int | None, sequence_length_tokens: int
    ) -> int | None:
        """Return the tokens of all steps, as far as they are known before the stage has packed; None: not known.

        Args:
            records: examples or pairs; None: not known.
            tokens: of one pass over them; None: not known.
            sequence_length_tokens: length of a row.
        """
        if self.steps is None:
            return None if tokens is None else round((self.epochs or 1.0) * tokens)
        num_rows = self.steps * self.global_batch_size(records)
        if records is None or tokens is None:
            # Packed rows are nearly full.
            return num_rows * sequence_length_tokens
        return round(num_rows * tokens / max(1, self._units(records, tokens, sequence_length_tokens)))

    def _units(self, records: int, tokens: int | None, sequence_length_tokens: int) -> int:
        """Return what a pass over the data counts in the unit of the batch: packed rows, or pairs."""
        if self.block != "finetuning" or tokens is None:
            return records
        packed = math.ceil(tokens / sequence_length_tokens)
        return min(records, max(packed, self.global_batch_size(records), self.minimum_rows(records) or 1))

    def fit(
        self,
        spec: DomainAdaptationSpec,
        profile: AdaptationProfileSpec,
        model: ModelFacts,
        *,
        records: int | None,
        sequence_length_tokens: int,
        memory_rule: MemoryRule = "withMargin",
    ) -> Batch:
        """Return the batch with the way in which the ranks share the model, on the nodes that it takes.

        That is as many as the data fills a batch of, and more only where the model does not fit.

        Raises:
            RefusedError: as `fit_batch`.
        """
        most_suitable = self.for_records(records)
        larger = [
            layout.nodes for layout in reversed(self.layouts) if layout.nodes > most_suitable.layout.nodes
        ]
        candidates = [(nodes, False) for nodes in (most_suitable.layout.nodes, *larger)]
        if memory_rule != "withMargin":
            # Only where no number of nodes fits by today's rules: a run has started by those of an earlier version.
            candidates.append((most_suitable.layout.nodes, True))
        for nodes, is_lenient in candidates:
            request = self.on_nodes(nodes)
            try:
                return fit_batch(
                    BatchRequest(
                        block=self.block,
                        layout=request.layout,
                        model=model,
                        lora=self.lora,
                        global_batch_size=request.global_batch_size(records),
                        micro_batch_size=self.settings.micro_batch_size,
                        sequence_length_tokens=sequence_length_tokens,
                        sequences_per_unit=self.sequences_per_unit,
                        memory_rule=memory_rule if is_lenient else "withMargin",
                    ),
                    spec,
                    profile,
                )
            except RefusedError as refused:
                if refused.reason != NOT_ENOUGH_MEMORY or (nodes, is_lenient) == candidates[-1]:
                    raise
        raise AssertionError("the last of the candidates either fits or is refused")


def finetuning_request(
    spec: DomainAdaptationSpec, profile: AdaptationProfileSpec, settings: Finetuning
) -> TuningRequest:
    """Return what fine-tuning asks for."""
    return TuningRequest(
        block="finetuning",
        settings=settings,
        layouts=finetune_layouts(spec, profile),
        learning_rate=learning_rate(settings.method, settings.optimizer.learning_rate),
        epochs=settings.budget.epochs,
        steps=settings.budget.steps,
        pretraining_batch_size=spec.pretraining.global_batch_size,
    )


def preference_request(
    spec: DomainAdaptationSpec, profile: AdaptationProfileSpec, settings: Preference
) -> TuningRequest:
    """Return what preference tuning asks for."""
    return TuningRequest(
        block="preference",
        settings=settings,
        layouts=align_layouts(spec, profile),
        learning_rate=preference_learning_rate(settings.method, settings.optimizer.learning_rate),
        epochs=settings.epochs,
        steps=None,
        pretraining_batch_size=spec.pretraining.global_batch_size,
        sequences_per_unit=2,  # the chosen answer and the rejected one
    )


def tuning_sequence_length(spec: DomainAdaptationSpec, packed_tokens: int, max_positions: int) -> int:
    """Return fine-tuning's length, which preference tuning follows; by default what prepare packed."""
    requested = spec.finetuning.sequence_length if spec.finetuning is not None else None
    return min(requested or packed_tokens, max_positions)
