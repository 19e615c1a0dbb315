"""Loads a model for measuring, divided over as many ranks as its stage's configuration says (`ModelSpread`).

- Tensor parallel: each rank of a group holds a slice of every matrix and reads nothing else from the files; the ranks
  of a group make the same forward passes. transformers divides the model, by the plan that it ships for its
  architecture.
- ZeRO 3: each rank holds a part of every parameter, and a layer's weights are gathered when it runs; it reads
  from the files what it keeps. DeepSpeed divides over all ranks of a stage: there is one copy, however few ranks could
  hold it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.distributed import DistributedConfig, mixin
from transformers.distributed.utils import TransformersDeviceMesh
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from dapt_contract.stages.common import LIVE_PARAMETERS, ModelReference, ModelSpread, Precision
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.loading.load_folder import DTYPES, load_folder, load_model
from dapt_trainer.modeling.loading.own_shares import reading_own_shares
from dapt_trainer.modeling.stored_models.model_folder import check_model_folder

logger = logging.getLogger(__name__)
_MESH_NAMES = ("replica", "pp", "dp_replicate", "fsdp", "tp")
"""Dimensions of the ranks: ours first, then those that transformers looks up; of these only the last is not 1."""


class SpreadLoader:
    """Loads one model after the other, each divided over the ranks in the same way; all ranks call it alike."""

    def __init__(self, work: Path, spread: ModelSpread, ranks: Ranks) -> None:
        """Args:
        work: root of the work volume.
        spread: how the ranks divide a model, by `usable_spread`.
        ranks: of the stage.

        """
        self._work = work
        self._spread = spread
        self._ranks = ranks
        self._mesh: DeviceMesh | None = None

    def load(self, reference: ModelReference, *, precision: Precision) -> PreTrainedModel:
        """Return the referenced model in evaluation mode, on this rank's device.

        Raises:
            InputError: as `load_model`.
        """
        ranks_per_model = self._spread.ranks_per_model
        if ranks_per_model == 1:
            return load_model(self._work, reference, precision=precision, device=str(self._ranks.device))
        weights = plain_folder(reference)
        is_zero3 = self._spread.method == "zero3"
        load = self._load_zero3 if is_zero3 else self._load_tensor_parallel
        model = load(weights, DTYPES[precision])
        if self._ranks.is_first:
            held, whole = held_parameters(model)
            logger.info(
                "%s: %s, over %d ranks; this one holds %d of its %d parameters",
                weights,
                "ZeRO 3" if is_zero3 else "tensor parallel",
                self._ranks.world_size if is_zero3 else ranks_per_model,
                held,
                whole,
            )
        return model

    def _load_tensor_parallel(self, weights: str, dtype: torch.dtype) -> PreTrainedModel:
        ranks_per_model = self._spread.ranks_per_model
        if self._mesh is None:  # one for all models: each makes process groups
            replicas = self._ranks.world_size // ranks_per_model
            self._mesh = init_device_mesh(
                self._ranks.device.type, (replicas, 1, 1, 1, ranks_per_model), mesh_dim_names=_MESH_NAMES
            )
        with _mesh_for_transformers(self._mesh, self._ranks.device):
            model = load_folder(
                self._work, weights, dtype, distributed_config=DistributedConfig(tp_size=ranks_per_model)
            )
        return model.eval()

    def _load_zero3(self, weights: str, dtype: torch.dtype) -> PreTrainedModel:
        # Imported here: after join_ranks, which tells DeepSpeed which accelerator to choose.
        import deepspeed

        device = self._ranks.device
        settings = zero3_settings(_config_of(self._work / weights), dtype)
        # Joins the process group that torch has already.
        deepspeed.init_distributed("gloo" if device.type == "cpu" else "nccl", verbose=False)
        # While such an object is set, transformers spreads the weights of every model as it reads them.
        hf_settings = HfDeepSpeedConfig(settings)
        try:
            with reading_own_shares(self._work / weights):
                model = load_folder(self._work, weights, dtype).to(device=device)
        finally:
            del hf_settings
            unset_hf_deepspeed_config()
        engine = deepspeed.initialize(model=model, config=settings)[0]
        # Without the engine its hooks, which gather the weights, are removed. In a list: a module that is an attribute
        # of its own part would be walked through for ever.
        engine.module.measuring_engine = [engine]
        return engine.module.eval()


def held_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Return how many parameters of a model this rank holds, and how many the whole model has."""
    held = whole = 0
    for parameter in model.parameters():
        own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        # Under ZeRO 3 the parameter itself is empty.
        held += getattr(parameter, "ds_tensor", own).numel()
        whole += int(getattr(parameter, "ds_numel", parameter.numel()))
    return held, whole


def usable_spread(work: Path, weights: str, spread: ModelSpread, ranks: Ranks) -> ModelSpread:
    """Return how the ranks of a stage divide models like the one in a folder: by ZeRO 3 where slices are impossible.

    Args:
        work: root of the work volume.
        weights: folder of a model; those that the stage loads later are of the same architecture.
        spread: as the stage is configured.
        ranks: of the stage.

    Raises:
        InputError: the number of ranks is no multiple of those that share one copy, or as `check_model_folder`.
    """
    ranks_per_model = spread.ranks_per_model
    if ranks.world_size % ranks_per_model:
        raise InputError(
            f"{ranks_per_model} ranks share one model, and the stage has {ranks.world_size}: give it a multiple of "
            f"{ranks_per_model} GPUs, or let another number share the model"
        )
    if ranks_per_model == 1 or spread.method == "zero3":
        return spread
    problem = problem_of_slices(_config_of(work / weights), ranks_per_model)
    if problem is None:
        return spread
    if ranks.is_first:
        logger.warning(
            "%s: tensor parallelism over %d ranks is impossible: %s; ZeRO 3 divides it over all %d ranks instead",
            weights,
            ranks_per_model,
            problem,
            ranks.world_size,
        )
    return ModelSpread(ranks_per_model=ranks_per_model, method="zero3")


def problem_of_slices(config: PretrainedConfig, ranks_per_model: int) -> str | None:
    """Return why tensor parallelism cannot divide a model over so many ranks; None where it can.

    Args:
        config: of the model.
        ranks_per_model: ranks that are to share it.
    """
    text_config = config.get_text_config(decoder=True)
    if not text_config.base_model_tp_plan:
        return f"transformers has no plan for models of type {config.model_type}"
    heads = text_config.num_attention_heads
    key_value_heads = getattr(text_config, "num_key_value_heads", None) or heads
    for count, kind in ((heads, "attention heads"), (key_value_heads, "key-value heads")):
        if isinstance(count, int) and count % ranks_per_model:
            return f"its {count} {kind} cannot be divided evenly"
    return None


def plain_folder(reference: ModelReference) -> str:
    """Return the folder of a model that is written down whole; a divided model is never computed while it is loaded.

    Raises:
        ValueError: the reference is a recipe: an error of the program.
    """
    if not reference.is_plain:
        raise ValueError(
            f"{reference.weights}: a model that several ranks share must be a folder of weights, not a recipe"
        )
    return reference.weights


def zero3_settings(config: PretrainedConfig, dtype: torch.dtype) -> dict[str, object]:
    """Return DeepSpeed's configuration for forward passes alone.

    Args:
        config: of the model.
        dtype: of its weights.
    """
    hidden_size = config.get_text_config(decoder=True).hidden_size
    return {
        "train_micro_batch_size_per_gpu": 1,  # required, and without meaning here
        "bf16": {"enabled": dtype is torch.bfloat16},
        "zero_optimization": {
            "stage": 3,
            # As transformers computes them for training: norms and biases stay whole on each rank.
            "stage3_param_persistence_threshold": 10 * hidden_size,
            "stage3_prefetch_bucket_size": int(0.9 * hidden_size * hidden_size),
            "stage3_max_live_parameters": LIVE_PARAMETERS,
            "stage3_max_reuse_distance": LIVE_PARAMETERS,
        },
        "steps_per_print": 2**31 - 1,
    }


def _config_of(folder: Path) -> PretrainedConfig:
    check_model_folder(folder)
    return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


@contextmanager
def _mesh_for_transformers(mesh: DeviceMesh, device: torch.device) -> Iterator[None]:
    """Let transformers divide models over one replica's ranks while the block runs.

    Its own mesh spans all ranks of the job: tensor parallel copies next to each other exist there only with a pipeline
    or with FSDP between them. It also takes the accelerator that it finds, where `DAPT_ACCELERATOR` chooses the CPU.
    """
    original = mixin.initialize_distributed_mesh
    mixin.initialize_distributed_mesh = lambda _settings: (device, TransformersDeviceMesh(mesh, mesh))
    try:
        yield
    finally:
        mixin.initialize_distributed_mesh = original
