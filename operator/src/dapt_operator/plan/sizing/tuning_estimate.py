"""Estimates fine-tuning and preference tuning before they run: steps, batches, memory, and what to think about."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from dapt_contract.inputs.model_size import trainable_parameters
from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.number_format import count, epochs_text
from dapt_operator.plan.sizing.model_fit.batch import Batch
from dapt_operator.plan.sizing.resolve import RankLayout, RefusedError
from dapt_operator.plan.sizing.tuning import (
    TuningRequest,
    finetuning_request,
    preference_request,
    tuning_sequence_length,
)


@dataclass(frozen=True)
class TuningSize:
    """How much data a tuning stage has; None: not known."""

    records: int | None = None
    """Examples or pairs."""
    tokens: int | None = None
    """Tokens of one pass; of a pair both answers count, each with its prompt."""


UNKNOWN_SIZE: Final = TuningSize()


@dataclass(frozen=True)
class TuningEstimate:
    """What one tuning stage will need; a number is None where it cannot be known yet."""

    name: str
    """Block of the spec: finetuning or preference."""
    stage: str
    """Kind of the stage: finetune or align."""
    method: str
    learning_rate: float
    epochs: float | None
    """None: the number of steps is given."""
    size: TuningSize
    global_batch_size: int
    sequence_length_tokens: int
    total_steps: int | None
    total_tokens: int | None
    layout: RankLayout
    batch: Batch | None
    trainable_parameters: int | None
    formulas: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def ranks(self) -> int:
        """Return the number of ranks."""
        return self.layout.world_size

    @property
    def reference_tokens(self) -> int:
        """Return the tokens that the reference model reads: each pair once, whatever the number of epochs."""
        if self.stage != "align":
            return 0
        return min(self.size.tokens or 0, self.total_tokens or 0)

    @property
    def counts_sequences(self) -> bool:
        """Return whether the steps follow from the sequences of a pass; else they are the most there can be.

        Examples are packed into sequences by their tokens. Where these are not known, each example counts as one.
        """
        return self.epochs is None or self.stage == "align" or self.size.tokens is not None


def tuning_estimates(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    model: ModelFacts | None,
    *,
    packed_tokens: int,
    sizes: tuple[TuningSize, TuningSize],
) -> tuple[TuningEstimate, ...]:
    """Return the estimates of the tuning stages that the spec asks for.

    Args:
        spec: the desired spec.
        profile: its profile.
        model: with the rows of a grown tokenizer; None: not known.
        packed_tokens: length of pretraining's sequences.
        sizes: of the instructions and of the preferences.
    """
    requests = []
    if spec.finetuning is not None:
        requests.append((finetuning_request(spec, profile, spec.finetuning), sizes[0]))
    if spec.preference is not None:
        requests.append((preference_request(spec, profile, spec.preference), sizes[1]))
    return tuple(
        _Estimation(spec, profile, model, request, size, packed_tokens).result() for request, size in requests
    )


@dataclass(frozen=True)
class _Estimation:
    """The estimate of one stage."""

    spec: DomainAdaptationSpec
    profile: AdaptationProfileSpec
    model: ModelFacts | None
    request: TuningRequest
    size: TuningSize
    packed_tokens: int

    def result(self) -> TuningEstimate:
        size, model = self.size, self.model
        batch, problems = self._fit()
        on_its_nodes = replace(self, request=self._on_its_nodes(batch))
        request, steps, length = on_its_nodes.request, on_its_nodes._steps(), self._length
        return TuningEstimate(
            name=request.block,
            stage="finetune" if request.block == "finetuning" else "align",
            method="full" if request.lora is None else "lora",
            learning_rate=request.learning_rate,
            epochs=request.epochs,
            size=size,
            global_batch_size=request.global_batch_size(size.records),
            sequence_length_tokens=length,
            total_steps=steps,
            total_tokens=request.total_tokens(size.records, size.tokens, length),
            layout=request.layout,
            batch=batch,
            trainable_parameters=trainable_parameters(model, request.lora) if model else None,
            formulas=on_its_nodes._formulas(steps),
            warnings=self._warnings(),
            problems=problems,
        )

    @property
    def _length(self) -> int:
        positions = self.model.max_positions if self.model else self.packed_tokens
        return tuning_sequence_length(self.spec, self.packed_tokens, max(positions, self.packed_tokens))

    def _on_its_nodes(self, batch: Batch | None) -> TuningRequest:
        if batch is not None:
            return self.request.on_nodes(batch.nodes)
        return self.request.for_records(self.size.records)

    def _fit(self) -> tuple[Batch | None, tuple[str, ...]]:
        if self.model is None:
            return None, ()
        try:
            batch = self.request.fit(
                self.spec,
                self.profile,
                self.model,
                records=self.size.records,
                sequence_length_tokens=self._length,
            )
        except RefusedError as refused:
            return None, (refused.message,)
        return batch, ()

    def _steps(self) -> int | None:
        if self.request.steps is not None:
            return self.request.steps
        if self.size.records is None:
            return None
        return self.request.total_steps(self.size.records, self.size.tokens, self._length)

    def _formulas(self, steps: int | None) -> tuple[str, ...]:
        request, records = self.request, self.size.records
        if steps is None or records is None or request.epochs is None:
            return ()
        size = request.global_batch_size(records)
        if request.block == "preference":
            data = f"{count(records)} pairs, not packed"
        elif self.size.tokens is not None:
            data = (
                f"{count(records)} examples of {count(self.size.tokens)} tokens, packed into sequences of"
                f" {self._length} tokens"
            )
        else:
            data = f"{count(records)} examples, each counted as a sequence, since their tokens are not known"
        return (
            f"{request.block} steps: {data}, x {epochs_text(request.epochs)} / {size} a step = {steps:,}",
        )

    def _warnings(self) -> tuple[str, ...]:
        requested = self.spec.finetuning.sequence_length if self.spec.finetuning is not None else None
        if self.request.block != "finetuning" or self.model is None or requested is None:
            return ()
        positions = self.model.max_positions
        if requested <= positions:
            return ()
        return (
            f"spec.finetuning.sequenceLength is {requested}, longer than the model's {positions} positions:"
            f" conversations are cut at {positions}",
        )
