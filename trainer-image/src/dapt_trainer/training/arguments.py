"""Translates the contract's configuration into the arguments of transformers' Trainer and DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from transformers import TrainingArguments

from dapt_contract.stages.align import AlignConfig
from dapt_contract.stages.common import LIVE_PARAMETERS, DistributionConfig, OptimizerConfig, ScheduleConfig
from dapt_contract.stages.finetune import FinetuneConfig
from dapt_contract.stages.pretrain import PretrainConfig
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.kernels import Kernels

BUCKET_ELEMENTS = 50_000_000
"""Elements of one reduction: 200 MB in fp32, small compared with any model that needs more than one bucket."""


def accumulation_steps(global_batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Return the number of forward passes of a rank for one optimizer step.

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
    """Return the steps of linear warm-up, rounded down: below 100 steps there are none at the default of 1 %."""
    return int(schedule.warmup_fraction * total_steps)


class SchedulerSettings(TypedDict):
    """Holds transformers' name and keywords of a schedule."""

    lr_scheduler_type: str
    lr_scheduler_kwargs: dict[str, float | int | str]


def scheduler_settings(schedule: ScheduleConfig, total_steps: int) -> SchedulerSettings:
    """Return transformers' name and keywords of a schedule.

    `cosine_warmup_with_min_lr` starts its warm-up at peak / steps, where `cosine_with_min_lr` starts at zero and so
    wastes the first batch. `wsd` is warm-up, a constant rate, and a linear decay over the last fifth (Hu et al. 2024,
    MiniCPM, who find a tenth to be enough; a fifth is the usual choice for short runs). Both reach the lowest rate in
    the last step.
    """
    if schedule.type == "cosine":
        return {
            "lr_scheduler_type": "cosine_warmup_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": schedule.minimum_ratio},
        }
    decay_steps = max(1, round(0.2 * total_steps))
    return {
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {
            # transformers counts the last step at the full rate as the first of the decay, and by default ends the
            # decay one step after the run: in ten steps it would stop half-way.
            "num_stable_steps": max(0, total_steps - 1 - decay_steps - warmup_steps(schedule, total_steps)),
            "num_decay_steps": decay_steps,
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
) -> dict[str, object]:
    """Return DeepSpeed's configuration; the Trainer fills in sizes and rates marked `auto`.

    Args:
        distribution: ZeRO stage, offload and precision.
        optimizer: for the gradient clip.
        on_cpu: there is no accelerator, so no streams to overlap and no memory to pin.
        load_universal: the checkpoint to resume from is in DeepSpeed's universal format.
    """
    stage, offload = distribution.zero_stage, distribution.offload
    zero: dict[str, object] = {"stage": stage}
    if stage:
        zero |= {
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
            "overlap_comm": not on_cpu,  # needs accelerator streams
            "contiguous_gradients": True,
            # Each part of a bucket goes to the rank that keeps it, and not whole buckets to all: half the bytes.
            "use_multi_rank_bucket_allreduce": False,
        }
    if stage == 3:
        # By the model's width: matrices are spread over the ranks, norms and biases stay whole on each of them.
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
    settings: dict[str, object] = {}
    if stage and distribution.precision == "bf16":
        # Summed in bf16, 128 micro-batches are off by a hundredth.
        settings |= {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    return settings | {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": optimizer.gradient_clip,
        "bf16": {
            "enabled": distribution.precision == "bf16",
            # Read by stage 1 alone: each bf16 gradient is freed once it is added to its fp32 sum. Otherwise all of them
            # are kept until the step, 2 bytes for each trained weight.
            "immediate_grad_update": True,
        },
        "zero_optimization": zero,
        # Offloaded optimizer state is updated by torch's fused AdamW, which has a vectorized CPU kernel. DeepSpeed's
        # own (DeepSpeedCPUAdam) is compiled at first use and would need a C++ compiler in the image.
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"load_universal": load_universal},
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }


def training_arguments(
    config: PretrainConfig | FinetuneConfig | AlignConfig,
    scratch: Path,
    ranks: Ranks,
    *,
    total_steps: int,
    kernels: Kernels | None = None,
    load_universal: bool = False,
) -> TrainingArguments:
    """Return the arguments of a run that logs, evaluates and saves by our own hooks alone.

    Args:
        config: of the stage.
        scratch: folder for temporary files.
        ranks: that train.
        total_steps: optimizer steps of the run.
        kernels: fused kernels; None: transformers' own layers.
        load_universal: as in `deepspeed_settings`.

    Raises:
        InputError: the global batch cannot be split evenly.
    """
    fields = argument_fields(config, scratch, ranks, total_steps=total_steps, load_universal=load_universal)
    return TrainingArguments(**fields, **(kernels.arguments if kernels else {}))


def argument_fields(
    config: PretrainConfig | FinetuneConfig | AlignConfig,
    scratch: Path,
    ranks: Ranks,
    *,
    total_steps: int,
    load_universal: bool = False,
) -> dict[str, object]:
    """Return the keywords of `training_arguments`, for subclasses of `TrainingArguments`."""
    optimizer, schedule, distribution = config.optimizer, config.schedule, _distribution(config)
    on_cpu = ranks.device.type == "cpu"
    return {
        "output_dir": str(scratch / "trainer"),
        "max_steps": total_steps,
        "per_device_train_batch_size": config.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(
            config.global_batch_size,
            config.micro_batch_size,
            ranks.world_size // distribution.sequence_parallel,
        ),
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
        "seed": config.seed,
        "use_cpu": on_cpu,
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,  # a loss that is not a number must reach the divergence check
        "ignore_data_skip": True,  # `BatchOrder` starts at the resumed step
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,  # `PrefetchingLoader` reads ahead
        "dataloader_pin_memory": not on_cpu,
        "average_tokens_across_devices": True,
        "log_level": "warning",
        **scheduler_settings(schedule, total_steps),
    }


def _distribution(config: PretrainConfig | FinetuneConfig | AlignConfig) -> DistributionConfig:
    """Return how the ranks share the model: with a penalty by stage 2 where the configuration says 1.

    In bf16 DeepSpeed's optimizer for stage 1 takes the norm of whole gradients, and a rank adds the penalty to its own
    slice of them alone. Checkpoints of both stages are alike.
    """
    has_penalty = isinstance(config, PretrainConfig) and config.regularization is not None
    if has_penalty and config.distribution.zero_stage == 1:
        return config.distribution.model_copy(update={"zero_stage": 2})
    return config.distribution
