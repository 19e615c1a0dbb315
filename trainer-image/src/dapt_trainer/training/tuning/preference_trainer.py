"""Runs TRL's DPO loss in the loop of all our training stages.

loss = -ln sigmoid(beta ((ln p(chosen) - ln r(chosen)) - (ln p(rejected) - ln r(rejected)))), the mean over pairs
(Rafailov et al. 2023, equation 7), with p the model that is trained and r the reference, the model as it was at the
start. Every log-probability is the sum over an answer's tokens.

The reference's are computed once, before the first step, by the model itself: no second copy of its weights is held,
with adapters or without. That is a forward pass over the pairs, as much as one epoch with a reference in memory costs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer
from trl.models import prepare_deepspeed

from dapt_contract.stages.align import AlignConfig
from dapt_trainer.context import StageContext
from dapt_trainer.distributed import Ranks
from dapt_trainer.modeling.labels import IGNORED_LABEL
from dapt_trainer.modeling.protocols import Tokenizer
from dapt_trainer.training.arguments import argument_fields
from dapt_trainer.training.batch_order import BatchOrder
from dapt_trainer.training.step_trainer import StepHooks, StepRows, StepTrainer
from dapt_trainer.training.tuning.preference_pairs import ShuffledPairs, collate_pairs

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_REFERENCE_ADAPTER = "ref"
_REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")


def preference_arguments(
    config: AlignConfig, context: StageContext, ranks: Ranks, *, total_steps: int
) -> DPOConfig:
    """Return TRL's arguments for a run of this number of steps.

    Raises:
        InputError: the global batch cannot be split evenly.
    """
    return DPOConfig(
        **argument_fields(config, context.scratch, ranks, total_steps=total_steps),
        beta=config.beta,
        max_length=None,  # pairs are cut already
        gradient_checkpointing=False,  # another name of `activation_checkpointing`, which counts
        precompute_ref_log_probs=True,
        disable_dropout=True,  # with dropout, the first loss would be noise instead of ln 2
    )


@dataclass(frozen=True)
class PairRows:
    """Holds the pairs that a run reads, and in which order."""

    pairs: ShuffledPairs
    order: BatchOrder
    """Rows of this rank."""

    def tokens_of_step(self, step: int) -> int:
        """Return the training tokens of a step (counted from 0) over all ranks."""
        batch = self.order.global_batch_size
        rows = range(step * batch, (step + 1) * batch)
        return sum(self.pairs.pairs[self.pairs.number(row)].tokens for row in rows)


class PreferenceTrainer(StepTrainer, DPOTrainer):  # type: ignore[misc] # mypy does not follow trl: its classes are Any
    """Trains as `StepTrainer` does, with TRL's loss.

    Args:
        model: whole, or with fresh adapters that change nothing yet.
        args: of `preference_arguments`.
        rows: what is read.
        ranks: that train.
        hooks: functions of the stage.
        tokenizer: for the padding token.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel | PeftModel,
        args: DPOConfig,
        rows: PairRows,
        ranks: Ranks,
        hooks: StepHooks,
        tokenizer: Tokenizer,
    ) -> None:
        # TRL accepts only a data set of its own kind; ours replaces it below.
        stand_in = Dataset.from_dict({"prompt": [""]})
        super().__init__(
            model=model,
            args=args,
            rows=StepRows(stand_in, rows.order, rows.tokens_of_step),
            ranks=ranks,
            hooks=hooks,
            collate=functools.partial(collate_pairs, padding_id=tokenizer.pad_token_id or 0),
            processing_class=tokenizer,
        )
        self.train_dataset = rows.pairs
        self._pairs = rows.pairs
        if _REFERENCE_ADAPTER in getattr(model, "peft_config", {}):
            model.delete_adapter(_REFERENCE_ADAPTER)  # TRL's copy of adapters that change nothing yet

    def compute_reference(self) -> None:
        """Compute the reference's log-probabilities of every pair that the run reads, shared among the ranks."""
        engine = prepare_deepspeed(self.model, self.accelerator)
        log_probabilities = torch.zeros(
            len(self._pairs.pairs), 2, dtype=torch.float64, device=self._ranks.device
        )
        for rows in self._first_epoch():
            numbers = [self._pairs.number(row) for row in rows]
            batch = self.data_collator([self._pairs[row] for row in rows])
            inputs = {name: tensor.to(self._ranks.device) for name, tensor in batch.items()}
            chosen, rejected = _log_probabilities(engine, inputs)
            for index, row in enumerate(rows):
                # The last batch reads on into the second epoch; each pair counts once, for the sum over the ranks.
                if row < len(self._pairs.pairs):
                    log_probabilities[numbers[index]] = torch.stack([chosen[index], rejected[index]]).double()
            self._hooks.heartbeat()
        if self._ranks.world_size > 1:
            torch.distributed.all_reduce(log_probabilities)
        self._pairs.reference = log_probabilities.cpu().numpy().astype(np.float32)
        self.model.train()

    def take_rewards(self) -> tuple[float, float]:
        """Return accuracy and margin of the implicit rewards, means over all pairs since the last call.

        They are equal on all ranks.
        """
        metrics = self._metrics["train"]
        accuracy, margin = (
            float(np.mean(metrics[name])) for name in ("rewards/accuracies", "rewards/margins")
        )
        metrics.clear()
        return accuracy, margin

    def _first_epoch(self) -> Iterator[list[int]]:
        """Yield this rank's micro-batches as training reads them, so that its first step computes the same numbers."""
        batch = self._order.global_batch_size
        steps = min(self._order.total_steps, -(-len(self._pairs.pairs) // batch))
        micro_batches = steps * batch // (self._order.micro_batch_size * self._order.world_size)
        from_the_start = dataclasses.replace(self._order, first_step=0)
        yield from itertools.islice(from_the_start, micro_batches)

    # ---- methods of the libraries that do too much here ----

    def _prepare_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Keep the reference's log-probabilities in fp32.

        The Trainer rounds every float of a batch to the model's type: in bf16 the log-probability of a long answer
        would be off by nats.
        """
        prepared: dict[str, torch.Tensor] = super()._prepare_inputs(inputs)
        exact = {name: inputs[name].to(self._ranks.device) for name in _REFERENCE_COLUMNS}
        return prepared | exact

    def _prepare_dataset(self, dataset: Dataset, *_: object, **__: object) -> Dataset:
        """Return the data set unchanged: pairs are tokenized already."""
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: object, **__: object) -> Dataset:
        """Return the data set unchanged: `compute_reference` does it, with heartbeats and without a cache on disk."""
        return dataset

    def _send_telemetry(self) -> None:
        """Send nothing: no data leaves the pod."""


def _log_probabilities(model: DeepSpeedEngine, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return the log-probabilities of the chosen and of the rejected answers, each fp32 [pairs] in nats."""
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED_LABEL)
    # Not TRL's own function for it: that computes under autocast, which training under DeepSpeed does not.
    with torch.no_grad():
        log_probs: torch.Tensor = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            use_cache=False,
            labels=labels,
            fused_lm_head=True,
        ).log_probs
    return log_probs.sum(dim=1).chunk(2)
