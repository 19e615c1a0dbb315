"""TRL's DPO loss in the loop that all our training stages run in.

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
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from dapt_contract.stages.align import AlignConfig
from dapt_trainer.context import StageContext
from dapt_trainer.distributed import Ranks
from dapt_trainer.modeling.lora import with_lora
from dapt_trainer.training.arguments import accumulation_steps, training_arguments
from dapt_trainer.training.batch_order import BatchOrder
from dapt_trainer.training.chat import IGNORED_LABEL
from dapt_trainer.training.preference_pairs import ShuffledPairs, collate_pairs
from dapt_trainer.training.setup import load_start
from dapt_trainer.training.step_trainer import StepReading, StepTrainer

_REFERENCE_ADAPTER = "ref"
_REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")


def preference_arguments(config: AlignConfig, context: StageContext, ranks: Ranks, steps: int) -> DPOConfig:
    """TRL's arguments for a run of so many steps; dropout is off, or the first loss would be noise.

    Raises:
        InputError: the global batch cannot be split evenly.
    """
    return DPOConfig(
        **training_arguments(
            scratch=context.scratch,
            total_steps=steps,
            micro_batch_size=config.micro_batch_size,
            accumulation=accumulation_steps(
                config.global_batch_size, config.micro_batch_size, ranks.world_size
            ),
            optimizer=config.optimizer,
            schedule=config.schedule,
            distribution=config.distribution,
            seed=config.seed,
            on_cpu=ranks.device.type == "cpu",
        ),
        beta=config.beta,
        max_length=None,  # pairs are cut already
        gradient_checkpointing=False,  # another name of `activation_checkpointing`, which counts
        precompute_ref_log_probs=True,
        disable_dropout=True,
    )


def load_to_align(config: AlignConfig, context: StageContext, ranks: Ranks, arguments: DPOConfig) -> Any:
    """The model that the tuning starts from, with fresh adapters where it trains such.

    Raises:
        InputError: as `load_model`.
    """
    model = load_start(config, context, ranks, arguments)
    return model if config.lora is None else with_lora(model, config.lora, seed=config.seed)


class PreferenceTrainer(StepTrainer, DPOTrainer):  # type: ignore[misc]
    """Our steps, TRL's loss.

    Args:
        model: whole, or with fresh adapters that change nothing yet.
        arguments: of `preference_arguments`.
        rows: pairs in their order.
        order: rows of this rank.
        ranks: this process among its peers.
        tokenizer: for the padding token.
        on_step: called on all ranks after each optimizer step.
        stop_requested: whether this rank saw SIGTERM.
        save_due: whether this rank wants a checkpoint.
        heartbeat: this rank is moving.
    """

    def __init__(
        self,
        *,
        model: Any,
        arguments: DPOConfig,
        rows: ShuffledPairs,
        order: BatchOrder,
        ranks: Ranks,
        tokenizer: Any,
        on_step: Callable[[StepReading], None],
        stop_requested: Callable[[], bool],
        save_due: Callable[[], bool],
        heartbeat: Callable[[], None],
    ) -> None:
        batch = order.global_batch_size
        super().__init__(
            model=model,
            args=arguments,
            rows=Dataset.from_dict(
                {"prompt": [""]}
            ),  # TRL wants a data set of its own kind; ours comes below
            order=order,
            ranks=ranks,
            tokens_of_step=lambda step: sum(
                rows.pairs[rows.number(row)].tokens for row in range(step * batch, (step + 1) * batch)
            ),
            stop_requested=stop_requested,
            out_of_time=save_due,
            heartbeat=heartbeat,
            on_step=on_step,
            data_collator=functools.partial(collate_pairs, padding_id=tokenizer.pad_token_id or 0),
            processing_class=tokenizer,
        )
        self.train_dataset = rows
        self._pairs = rows
        if _REFERENCE_ADAPTER in getattr(model, "peft_config", {}):
            model.delete_adapter(_REFERENCE_ADAPTER)  # a copy of adapters that change nothing

    def note_reference(self) -> None:
        """Compute the reference's log-probabilities of every pair that the run reads, shared among the ranks."""
        from trl.models import prepare_deepspeed

        engine = prepare_deepspeed(self.model, self.accelerator)
        found = torch.zeros(len(self._pairs.pairs), 2, dtype=torch.float64, device=self._ranks.device)
        for rows in self._first_epoch():
            numbers = [self._pairs.number(row) for row in rows]
            batch = self.data_collator([self._pairs[row] for row in rows])
            inputs = {name: tensor.to(self._ranks.device) for name, tensor in batch.items()}
            chosen, rejected = _log_probabilities(engine, inputs)
            for place, row in enumerate(rows):
                if row < len(self._pairs.pairs):
                    found[numbers[place]] = torch.stack([chosen[place], rejected[place]]).double()
            self._heartbeat()
        if self._ranks.world_size > 1:
            torch.distributed.all_reduce(found)
        self._pairs.reference = found.cpu().numpy().astype(np.float32)
        self.model.train()

    def take_rewards(self) -> tuple[float, float]:
        """Accuracy and margin of the implicit rewards, means over all pairs since the last call; equal on all ranks."""
        metrics = self._metrics["train"]
        accuracy, margin = (
            float(np.mean(metrics[name])) for name in ("rewards/accuracies", "rewards/margins")
        )
        metrics.clear()
        return accuracy, margin

    def _first_epoch(self) -> Iterator[list[int]]:
        """This rank's micro-batches as training reads them, so that the first step's numbers are the same."""
        batch = self._order.global_batch_size
        steps = min(self._order.total_steps, -(-len(self._pairs.pairs) // batch))
        micro_batches = steps * batch // (self._order.micro_batch_size * self._order.world_size)
        from_the_start = dataclasses.replace(self._order, first_step=0)
        yield from itertools.islice(from_the_start, micro_batches)

    # ---- what the libraries would do by themselves ----

    def _prepare_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The Trainer rounds every float of a batch to the model's type: in bf16 the reference's log-likelihood of a
        long answer would be off by nats."""
        prepared: dict[str, torch.Tensor] = super()._prepare_inputs(inputs)
        exact = {name: inputs[name].to(self._ranks.device) for name in _REFERENCE_COLUMNS}
        return prepared | exact

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """Pairs are tokenized already."""
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """`note_reference` does, with heartbeats and without files in a cache."""
        return dataset

    def _send_telemetry(self) -> None:
        """Nothing leaves the pod."""


def _log_probabilities(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Of the chosen and of the rejected answers, each fp32 [pairs], in nats, as the loss computes them.

    TRL's own function for it computes under autocast, which the training under DeepSpeed does not.
    """
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED_LABEL)
    with torch.no_grad():
        found = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            use_cache=False,
            labels=labels,
            fused_lm_head=True,
        ).log_probs
    halves: tuple[torch.Tensor, ...] = found.sum(dim=1).chunk(2)
    return halves
