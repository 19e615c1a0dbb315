"""The best public loop that the installed packages give: transformers' Trainer with every switch that its guides name.

fp32 weights under bf16 autocast, fused AdamW, SDPA's causal flash kernel over whole rows (documents are not kept
apart), torch.compile, Liger where it is installed, rows read by worker processes. DeepSpeed has no part in it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

WARM_STEPS = 2
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run_public(work: Path, config: Any) -> dict[str, Any]:
    """Train as many steps as the configuration has, on rows of the same length and number a step."""
    with _without_launcher():
        return _run(work, config)


def _run(work: Path, config: Any) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    from bench.gpu_cases import exact_flops, peak_bytes, reset_peak, synchronize
    from dapt_trainer.distributed import Ranks, choose_device
    from dapt_trainer.modeling.lora import with_lora
    from dapt_trainer.training.training_rows import open_rows

    device = choose_device(0)
    on_gpu = device.type == "cuda"
    rows = open_rows(work, config, Ranks(0, 0, 1, device))
    model = AutoModelForCausalLM.from_pretrained(work / config.model.weights, dtype=torch.float32)
    model.config.use_cache = False
    if config.lora:
        model = with_lora(model, config.lora, seed=0)
        model.enable_input_require_grads()
    has_liger = on_gpu and importlib.util.find_spec("liger_kernel") is not None
    arguments = TrainingArguments(
        output_dir=str(work / "public"),
        max_steps=config.total_steps,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.global_batch_size // config.micro_batch_size,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=True,
        tf32=True if on_gpu else None,
        activation_checkpointing=config.distribution.gradient_checkpointing,
        torch_compile=on_gpu,
        use_liger_kernel=has_liger,
        dataloader_num_workers=2 if on_gpu else 0,
        dataloader_pin_memory=on_gpu,
        use_cpu=not on_gpu,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    clock = _clock(synchronize, config.total_steps)
    trainer = Trainer(model=model, args=arguments, train_dataset=_PlainRows(rows.dataset), callbacks=[clock])
    trainer.remove_callback(PrinterCallback)  # it prints into the figures
    reset_peak()
    trainer.train()
    tokens = sum(rows.tokens_of_step(step) for step in range(WARM_STEPS, config.total_steps))
    return {
        "tokens_per_second": tokens / clock.seconds,
        "peak_bytes": peak_bytes(),
        "attention": "SDPA's causal kernel, documents are not kept apart",
        "kernels": f"{'Liger, ' if has_liger else ''}{'torch.compile' if on_gpu else 'no accelerator'}",
        "flops_per_token": exact_flops(model, float(config.sequence_length_tokens)),
    }


def _clock(synchronize: Any, total_steps: int) -> Any:
    """A callback that measures the steps after the first ones, and waits for the accelerator only at both ends."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        started = 0.0
        seconds = 0.0

        def on_step_end(self, _arguments: Any, state: Any, _control: Any, **_: Any) -> None:
            if state.global_step == WARM_STEPS:
                synchronize()
                self.started = time.monotonic()
            elif state.global_step == total_steps:
                synchronize()
                self.seconds = time.monotonic() - self.started

    return Clock()


class _PlainRows:
    """Rows without the places at which documents begin, so that attention needs no mask."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._dataset[index]
        return {"input_ids": row["input_ids"], "labels": row["labels"]}


@contextlib.contextmanager
def _without_launcher() -> Iterator[None]:
    """In a dry run all cases share a process: nothing of a stage's DeepSpeed or ranks may reach this loop."""
    from accelerate.state import AcceleratorState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    AcceleratorState._reset_state(reset_partial_state=True)
    with mock.patch.dict(os.environ):
        for name in list(os.environ):
            if name in LAUNCHER_VARIABLES or name.startswith("ACCELERATE_"):
                del os.environ[name]
        yield
    AcceleratorState._reset_state(reset_partial_state=True)
