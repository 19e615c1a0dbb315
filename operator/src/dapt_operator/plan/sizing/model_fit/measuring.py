"""Memory of the stages that measure a model: each of their processes loads all of it."""

from __future__ import annotations

from dapt_contract.inputs.model_size import WEIGHT_BYTES
from dapt_contract.stages.common import Precision
from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec, has_scores
from dapt_operator.plan.sizing.model_fit.memory import GIB, OVERHEAD_BYTES
from dapt_operator.plan.sizing.resolve import pretrain_layout


def measuring_bytes(profile: AdaptationProfileSpec, model: ModelFacts) -> float:
    """Return the least memory of one measuring process: weights in bf16 (on CPUs fp32), and what any process takes."""
    kind = profile.accelerator.kind
    precision: Precision = "bf16" if kind == "gpu" else "fp32"
    return float(WEIGHT_BYTES[precision] * model.parameters + OVERHEAD_BYTES[kind])


def measuring_problem(
    spec: DomainAdaptationSpec, profile: AdaptationProfileSpec, model: ModelFacts
) -> str | None:
    """Return why no stage can measure the model; None where its weights fit into one accelerator.

    Training may spread a model over its ranks or move parts of it to the node's memory; measuring does neither.
    """
    processes = 1 if profile.accelerator.kind == "gpu" else pretrain_layout(spec, profile).processes_per_node
    # A measuring stage of a CPU profile is one process, which has the memory that training's processes share.
    limit, needed = profile.accelerator.memory_gib * GIB * processes, measuring_bytes(profile, model)
    if needed <= limit:
        return None
    stages = "baseline, evaluate and verify" if has_scores(spec) else "baseline and verify"
    return (
        f"{stages} need at least {needed / GIB:.1f} GiB by the estimate, since each process loads the whole model, and"
        f" the profile gives one {limit / GIB:g} GiB: use a profile whose accelerator.memoryGiB is larger, or a smaller"
        " model"
    )
