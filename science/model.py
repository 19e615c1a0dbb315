"""The model and one optimizer step, with the pieces that pretraining itself uses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dapt_contract.stages.common import ScheduleConfig
from dapt_contract.stages.pretrain import MixturePhase
from dapt_trainer.data.packing.mixture import Mixture
from dapt_trainer.data.packing.shards import Shard
from science.bed import END_OF_TEXT_ID, BedSettings
from science.digests import digest_of

BATCH_SEQUENCES = 16
"""Of 128 tokens: 2,048 tokens a step."""
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
GRADIENT_CLIP = 1.0
"""dapt's defaults for AdamW."""


@dataclass(frozen=True)
class Shape:
    """A llama of half a million parameters."""

    layers: int = 3
    width: int = 96
    inner: int = 256
    heads: int = 4


def make_model(shape: Shape, bed: BedSettings, seed: int) -> Any:
    """Random weights; rotary positions, RMSNorm, SwiGLU, a head of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=bed.vocabulary_size,
            hidden_size=shape.width,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=bed.context_tokens,
            tie_word_embeddings=False,
            bos_token_id=END_OF_TEXT_ID,
            eos_token_id=END_OF_TEXT_ID,
            pad_token_id=END_OF_TEXT_ID,
            use_cache=False,
        )
    )


@dataclass(frozen=True)
class Rate:
    """How the learning rate goes: `cosine` and `wsd` are dapt's own, `constant` is what they are compared with."""

    peak: float = 1e-3
    schedule: str = "cosine"
    warmup_fraction: float = 0.02
    minimum_ratio: float = 0.1


class Training:
    """A model with its optimizer, schedule and order of rows; `step()` makes one optimizer step."""

    def __init__(
        self,
        model: Any,
        shards: list[Shard],
        *,
        rate: Rate,
        total_steps: int,
        replay_fraction: float,
        seed: int,
        penalty: Any = None,
        earlier_phases: tuple[MixturePhase, ...] = (),
    ) -> None:
        """Args:
        model: changed in place.
        shards: domain first, then general; or one alone.
        rate: learning rate.
        total_steps: of the schedule.
        replay_fraction: share of general tokens.
        seed: of the order of rows.
        penalty: dapt's own, built on the model; None: none.
        earlier_phases: what attempts before this one read; the rows go on behind them.
        """
        import torch
        from transformers import get_scheduler

        from dapt_trainer.data.packing.torch_dataset import PackedDataset

        self.model = model.train()
        self.mixture = Mixture.of_shards(
            shards,
            seed=seed,
            replay_fraction=replay_fraction,
            global_batch_size=BATCH_SEQUENCES,
            earlier_phases=earlier_phases,
        )
        self.rows = PackedDataset(
            shards, self.mixture, total_steps=total_steps, global_batch_size=BATCH_SEQUENCES
        )
        self.optimizer = torch.optim.AdamW(_groups(model), lr=rate.peak, betas=BETAS, fused=True)
        name, keywords, warmup = schedule_of(rate, total_steps)
        self.schedule = get_scheduler(
            name,
            self.optimizer,
            num_warmup_steps=warmup,
            num_training_steps=total_steps,
            scheduler_specific_kwargs=keywords,
        )
        self.steps_done = 0
        self.cpu_seconds = 0.0
        """Of this thread, in steps alone."""
        self._penalty = penalty

    def step(self) -> float:
        """Forward, backward, clip, update; the batch's loss in nats a label token."""
        import torch

        from dapt_trainer.modeling.attention import stack_rows

        started = time.thread_time()
        first = self.steps_done * BATCH_SEQUENCES
        batch = stack_rows([self.rows[first + place] for place in range(BATCH_SEQUENCES)])
        loss = self.model(**batch).loss
        if self._penalty is not None and self._penalty.before_last_backward:
            self._penalty.add_gradients(self.steps_done)
        loss.backward()
        if self._penalty is not None and not self._penalty.before_last_backward:
            self._penalty.add_gradients(self.steps_done)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_CLIP)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        self.cpu_seconds += time.thread_time() - started
        return float(loss.detach())

    def order_digest(self, steps: int) -> str:
        """Names the rows of the first steps, so that a change of dapt's order is seen and one of its words is not."""
        return digest_of(*(repr(self.mixture.rows(step)) for step in range(steps)))

    def state_dict(self) -> dict[str, Any]:
        """Everything that going on to the bit needs; the order of rows is a function of the step."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "steps_done": self.steps_done,
            "cpu_seconds": self.cpu_seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.steps_done = state["steps_done"]
        self.cpu_seconds = state["cpu_seconds"]


def schedule_of(rate: Rate, total_steps: int) -> tuple[str, dict[str, Any], int]:
    """transformers' name, keywords and warm-up steps; dapt's own choice for its own schedules."""
    from dapt_trainer.training.arguments import scheduler_settings, warmup_steps

    if rate.schedule == "constant":
        return "constant", {}, 0
    config = ScheduleConfig(
        type="cosine" if rate.schedule == "cosine" else "wsd",
        warmup_fraction=rate.warmup_fraction,
        minimum_ratio=rate.minimum_ratio,
    )
    settings = scheduler_settings(config, total_steps)
    return settings["lr_scheduler_type"], settings["lr_scheduler_kwargs"], warmup_steps(config, total_steps)


def rates_of(rate: Rate, total_steps: int) -> list[float]:
    """The learning rate of every step, to nine digits."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate.peak)
    name, keywords, warmup = schedule_of(rate, total_steps)
    schedule = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=total_steps,
        scheduler_specific_kwargs=keywords,
    )
    rates = []
    for _ in range(total_steps):
        rates.append(float(f"{schedule.get_last_lr()[0]:.9g}"))
        optimizer.step()
        schedule.step()
    return rates


def _groups(model: Any) -> Iterator[dict[str, Any]]:
    """Weight decay on matrices, none on norms."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    yield {"params": decayed, "weight_decay": WEIGHT_DECAY}
    yield {"params": others, "weight_decay": 0.0}
