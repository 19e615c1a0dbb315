"""From the contract's configuration to the arguments of transformers' Trainer and DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dapt_contract.stages.common import DistributionConfig, OptimizerConfig, ScheduleConfig
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.kernels import Kernels

_BUCKET_ELEMENTS = 50_000_000
"""Elements a reduction: 200 MB in fp32, small beside any model that needs more than one bucket."""

LIVE_PARAMETERS = 500_000_000
"""Gathered weights that stage 3 keeps at a time, in elements; the planner's estimate counts as many."""


def accumulation_steps(global_batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Forward passes a rank makes for one optimizer step.

    Raises:
        InputError: the global batch cannot be split evenly.
    """
    sequences = micro_batch_size * world_size
    if global_batch_size % sequences:
        below = global_batch_size // sequences * sequences
        near = " or ".join(str(size) for size in (below, below + sequences) if size)
        raise InputError(
            f"globalBatchSize {global_batch_size} cannot be split over {world_size} ranks with micro-batches of "
            f"{micro_batch_size}: it must be a multiple of {sequences}; nearest: {near}"
        )
    return global_batch_size // sequences


def warmup_steps(schedule: ScheduleConfig, total_steps: int) -> int:
    """Steps of linear warm-up, rounded down: a run of fewer than 100 steps has none at the default of 1 %."""
    return int(schedule.warmup_fraction * total_steps)


def scheduler_settings(schedule: ScheduleConfig, total_steps: int) -> dict[str, Any]:
    """transformers' name and keywords of a schedule.

    `cosine_warmup_with_min_lr` starts its warm-up at peak / steps, where `cosine_with_min_lr` starts at zero and so
    wastes the first batch. `wsd` is warm-up, a constant rate, and a linear decay over the last fifth (Hu et al. 2024,
    MiniCPM, who find a tenth to be enough; a fifth is the usual choice for short runs).
    """
    if schedule.type == "cosine":
        return {
            "lr_scheduler_type": "cosine_warmup_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": schedule.minimum_ratio},
        }
    return {
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {
            "num_decay_steps": max(1, round(0.2 * total_steps)),
            "decay_type": "linear",
            "min_lr_ratio": schedule.minimum_ratio,
        },
    }


def deepspeed_settings(
    distribution: DistributionConfig,
    optimizer: OptimizerConfig,
    *,
    on_cpu: bool = True,
    load_universal: bool = False,
) -> dict[str, Any]:
    """DeepSpeed's configuration; sizes and rates marked `auto` are filled in by the Trainer.

    Offloaded optimizer state is updated by torch's fused AdamW, which has a vectorized CPU kernel: DeepSpeed's own
    (DeepSpeedCPUAdam) is compiled at first use and would put a C++ compiler into the image.

    Args:
        distribution: ZeRO stage, offload and precision.
        optimizer: for the gradient clip.
        on_cpu: there is no accelerator: no streams to overlap, no memory to pin.
        load_universal: the checkpoint to resume from is in DeepSpeed's universal format.
    """
    stage, offload = distribution.zero_stage, distribution.offload
    zero: dict[str, Any] = {"stage": stage}
    if stage:
        zero |= {
            "reduce_bucket_size": _BUCKET_ELEMENTS,
            "allgather_bucket_size": _BUCKET_ELEMENTS,
            "overlap_comm": not on_cpu,  # needs accelerator streams
            "contiguous_gradients": True,
        }
    if stage == 3:
        # By the model's width: matrices are spread over the ranks, norms and biases stay on each of them.
        zero |= {
            "stage3_param_persistence_threshold": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_max_live_parameters": LIVE_PARAMETERS,
            "stage3_max_reuse_distance": LIVE_PARAMETERS,
        }
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": not on_cpu}
    if offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": not on_cpu}
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": optimizer.gradient_clip,
        "bf16": {"enabled": distribution.precision == "bf16"},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"load_universal": load_universal},
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }


def training_arguments(
    *,
    scratch: Path,
    total_steps: int,
    micro_batch_size: int,
    accumulation: int,
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    distribution: DistributionConfig,
    seed: int,
    on_cpu: bool,
    load_universal: bool = False,
    kernels: Kernels | None = None,
) -> dict[str, Any]:
    """Keywords of `TrainingArguments` for a run that logs, evaluates and saves by our own hooks alone."""
    return {
        "output_dir": str(scratch / "trainer"),
        "max_steps": total_steps,
        "per_device_train_batch_size": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": optimizer.learning_rate,
        "weight_decay": optimizer.weight_decay,
        "adam_beta1": optimizer.betas[0],
        "adam_beta2": optimizer.betas[1],
        "max_grad_norm": optimizer.gradient_clip,
        "optim": "adamw_torch_fused",
        "warmup_steps": warmup_steps(schedule, total_steps),
        "bf16": distribution.precision == "bf16",
        "activation_checkpointing": distribution.gradient_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "deepspeed": deepspeed_settings(
            distribution, optimizer, on_cpu=on_cpu, load_universal=load_universal
        ),
        "seed": seed,
        "use_cpu": on_cpu,
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "ignore_data_skip": True,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": not on_cpu,
        "average_tokens_across_devices": True,
        "log_level": "warning",
        **scheduler_settings(schedule, total_steps),
        **(kernels.arguments if kernels else {}),
    }
