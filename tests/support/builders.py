"""Valid objects by default; a test writes down only what it is about."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dapt_contract.base import Contract
from dapt_contract.measure import Measure, Perplexity, Score, SidePerplexity
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.align import AlignFacts
from dapt_contract.stages.baseline import BaselineConfig, BaselineFacts
from dapt_contract.stages.blend import Blend, BlendConfig, BlendFacts, BlendRow
from dapt_contract.stages.common import EvaluationConfig, ModelReference, ProbeConfig, TaskConfig
from dapt_contract.stages.destination import DestinationConfig, DestinationFacts
from dapt_contract.stages.evaluate import EvaluateConfig, EvaluateFacts
from dapt_contract.stages.finetune import FinetuneFacts
from dapt_contract.stages.prepare import ModelFacts, PrepareConfig, PrepareFacts, SourceFacts
from dapt_contract.stages.pretrain import CheckpointFacts, PretrainConfig, PretrainFacts
from dapt_contract.stages.publish import PublishConfig, PublishFacts
from dapt_contract.stages.tuning_data import TuningDataConfig, TuningDataFacts
from dapt_contract.stages.verify import VerifyConfig, VerifyFacts
from dapt_operator.testing.objects import Ends, Stays

BASE_DOMAIN_NATS = 3.0
BASE_GENERAL_NATS = 2.8
"""A shift of 0.2 nats: replay by measure is 0.13."""


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`; None removes."""
    result = dict(base)
    for name, value in over.items():
        old = result.get(name)
        if value is None:
            result.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(old, Mapping):
            result[name] = merged(old, value)
        else:
            result[name] = value
    return result


def profile(name: str = "bench", **over: Any) -> dict[str, Any]:
    """A GPU profile of one node with two small GPUs."""
    spec = {
        "trainerImage": "registry.example/dapt-trainer:1.0.0",
        "accelerator": {"kind": "gpu", "perNode": 2, "memoryGiB": 24, "peakTflops": 100},
        "storage": {"existingClaim": "work"},
        "evaluation": {"concurrency": 1},
    }
    return {
        "apiVersion": "dapt.dev/v1alpha1",
        "kind": "AdaptationProfile",
        "metadata": {"name": name},
        "spec": merged(spec, over),
    }


def adaptation(name: str = "clinical", **over: Any) -> dict[str, Any]:
    """An adaptation with four checkpoints, one task a side and fine-tuning; `over` is laid over its spec.

    One attempt, no blends, and evaluations at the end: a test that is about those says so.
    """
    spec = {
        "profile": "bench",
        "model": {"source": "file:///models/base"},
        "corpus": {
            "domain": [{"source": "file:///text/domain.jsonl"}],
            "general": [{"source": "file:///text/general.jsonl"}],
            "sequenceLength": 128,
        },
        "pretraining": {
            "method": {"lora": {}},
            "budget": {"steps": 40},
            "globalBatchSize": 8,
            "microBatchSize": 4,
            "checkpoints": {"count": 4},
        },
        "evaluation": {
            "when": "end",
            "domain": {"tasks": [{"name": "codes", "source": "file:///eval/codes.jsonl"}]},
            "general": {"tasks": [{"name": "general", "source": "file:///eval/general.jsonl"}]},
        },
        "gates": {"onBreach": "Block"},
        "selection": {"interpolate": [1.0], "averageLast": 1},
        "finetuning": {"data": [{"source": "file:///text/instructions.jsonl"}]},
        "output": {"destination": "file:///out/model"},
        "resources": {"nodes": 1, "gpusPerNode": 2},
    }
    return {
        "apiVersion": "dapt.dev/v1alpha1",
        "kind": "DomainAdaptation",
        "metadata": {"name": name, "namespace": "health"},
        "spec": merged(spec, over),
    }


def model_facts(**over: Any) -> ModelFacts:
    """A Llama of about 135 M parameters."""
    values = {
        "architecture": "LlamaForCausalLM",
        "parameters": 134_515_008,
        "hidden_size": 576,
        "layers": 30,
        "vocabulary_size": 49_152,
        "attention_heads": 9,
        "key_value_heads": 3,
        "intermediate_size": 1536,
        "max_positions": 8192,
        "tied_embeddings": True,
        "has_chat_template": False,
        "revision": "main",
        "digest": "sha256:model",
        "weights_bytes": 269_030_016,
    }
    return ModelFacts.model_validate(values | over)


def prepare_facts(**over: Any) -> PrepareFacts:
    """200 M domain tokens and 40 M general ones."""
    values: dict[str, Any] = {
        "model": model_facts(),
        "sources": (
            SourceFacts(
                side="domain", index=0, documents=1000, train_tokens=200_000_000, sequences=1_562_500
            ),
            SourceFacts(side="general", index=0, documents=500, train_tokens=40_000_000, sequences=312_500),
        ),
        "sequence_length_tokens": 128,
        "domain_tokens": 200_000_000,
        "general_tokens": 40_000_000,
        "instruction_examples": 100,
        "task_items": (("codes", 400), ("general", 400)),
        "data_digest": "sha256:data",
    }
    return PrepareFacts.model_validate(values | over)


def tuning_data_facts(config: TuningDataConfig, **over: Any) -> TuningDataFacts:
    """100 examples or pairs of this configuration, whose content is as different as the configuration."""
    content = hashlib.sha256(config.digest.encode()).hexdigest()
    values = {
        "kind": config.kind,
        "config_digest": config.digest,
        "records": 100,
        "data_digest": content,
        "tokens": 12_000,
    }
    return TuningDataFacts.model_validate(values | over)


def perplexity(nats: float, tokens: int = 2000) -> Perplexity:
    """A half of held-out text with this loss a token."""
    return Perplexity(nll_nats=nats * tokens, tokens=tokens, bytes=4 * tokens)


def side(a: float, b: float | None = None) -> SidePerplexity:
    """Both halves by their losses."""
    return SidePerplexity(a=perplexity(a), b=perplexity(a if b is None else b))


def score(name: str, side_: str, value: float, difference: float | None = None, error: float = 0.01) -> Score:
    """A task's score; with a difference it is compared to the base model's, on half B too."""
    compared = {} if difference is None else {
        "difference": difference,
        "difference_standard_error": error,
        "difference_b": difference,
        "difference_b_standard_error": error,
    }  # fmt: skip
    return Score.model_validate(
        {"name": name, "side": side_, "items": 400, "score": value, "standard_error": 0.02, "score_a": value}
        | compared
    )


def base_measure() -> Measure:
    """The base model: domain 3.0 nats, general 2.8, both tasks at 0.5."""
    return Measure(
        digest="base",
        domain=side(BASE_DOMAIN_NATS),
        general=side(BASE_GENERAL_NATS),
        scores=(score("codes", "domain", 0.5), score("general", "general", 0.5)),
    )


def measure(
    domain_nats: float = 2.6,
    increase: float = 0.05,
    general_drop: float = 0.0,
    domain_gain: float = 0.1,
    error: float = 0.01,
    digest: str = "model",
) -> Measure:
    """An adapted model by its distance from the base model."""
    return Measure(
        digest=digest,
        domain=side(domain_nats),
        general=side(BASE_GENERAL_NATS + math.log1p(increase)),
        scores=(
            score("codes", "domain", 0.5 + domain_gain, domain_gain, error),
            score("general", "general", 0.5 - general_drop, -general_drop, error),
        ),
    )


def checkpoint(
    step: int,
    domain_nats: float = 2.6,
    increase: float = 0.05,
    increase_b: float | None = None,
    try_number: int = 1,
) -> CheckpointFacts:
    """A row of the table; `increase` of general perplexity, by half if they differ."""
    increase_b = increase if increase_b is None else increase_b
    return CheckpointFacts(
        step=step,
        try_number=try_number,
        domain_a_nats=domain_nats,
        domain_b_nats=domain_nats,
        general_a_nats=BASE_GENERAL_NATS + math.log1p(increase),
        general_b_nats=BASE_GENERAL_NATS + math.log1p(increase_b),
        weights_digest=f"{step:012x}",
    )


def pretrain_facts(
    rows: Sequence[CheckpointFacts], ended_by: str = "Completed", **over: Any
) -> PretrainFacts:
    """Facts with these checkpoints."""
    steps = rows[-1].step if rows else 0
    values = {"ended_by": ended_by, "steps": steps, "tokens": steps * 1024, "checkpoints": tuple(rows)}
    return PretrainFacts.model_validate(values | over)


def improving(config: PretrainConfig) -> PretrainFacts:
    """Every checkpoint is better than the one before and forgets a little."""
    count = len(config.checkpoint_steps)
    return pretrain_facts(
        [
            checkpoint(step, 3.0 - 0.5 * (i + 1) / count, 0.05)
            for i, step in enumerate(config.checkpoint_steps)
        ]
    )


def full_digest(config: EvaluateConfig) -> str:
    """The digest of the recipe that an evaluation was told to score."""
    return (config.expected_digest or "model").ljust(64, "0")


def blended(blend: Blend, domain_nats: float = 2.7, increase: float = 0.03) -> BlendRow:
    """A row of blend: a little worse in the domain than the best checkpoint, unless the test says otherwise."""
    return BlendRow(
        candidate=blend.candidate,
        domain_a_nats=domain_nats,
        domain_b_nats=domain_nats,
        general_a_nats=BASE_GENERAL_NATS + math.log1p(increase),
        general_b_nats=BASE_GENERAL_NATS + math.log1p(increase),
        weights_digest=f"{len(blend.candidate):012x}",
    )


def with_tasks_of(measured: Measure, evaluation: EvaluationConfig) -> Measure:
    """The same on the tasks and probe sets that a stage was given, where these are others than the usual two."""
    usual = {score.name: score for score in measured.scores}
    items: tuple[TaskConfig | ProbeConfig, ...] = (*evaluation.tasks, *evaluation.probes)
    if {item.name for item in items} <= set(usual):
        return measured
    of_side = {score.side: score for score in measured.scores}
    scores = tuple(
        usual.get(item.name) or of_side[item.side].model_copy(update={"name": item.name}) for item in items
    )
    return measured.model_copy(update={"scores": scores})


def facts_for(stage: StageFile) -> Contract:
    """What a healthy run of this stage says."""
    config = stage.config
    if isinstance(config, PrepareConfig):
        return prepare_facts(tuning_data=tuple(tuning_data_facts(data) for data in config.tuning_data))
    if isinstance(config, TuningDataConfig):
        return tuning_data_facts(config)
    if isinstance(config, DestinationConfig):
        return DestinationFacts(destination=config.destination, found="empty")
    if isinstance(config, BaselineConfig):
        return BaselineFacts(measure=with_tasks_of(base_measure(), config.evaluation))
    if isinstance(config, PretrainConfig):
        return improving(config)
    if isinstance(config, EvaluateConfig):
        found = with_tasks_of(measure(digest=full_digest(config)), config.evaluation)
        return EvaluateFacts(candidate=config.candidate, measure=found)
    if isinstance(config, BlendConfig):
        return BlendFacts(rows=tuple(blended(blend) for blend in config.blends))
    if stage.kind == "align":
        return AlignFacts(
            model=ModelReference(weights="model", adapters=("a",), tuned=("b", "c")),
            weights_digest="aligned",
            steps=5,
            pairs=50,
            first_loss_nats=0.69,
            last_loss_nats=0.5,
            reward_accuracy=0.8,
            reward_margin=0.3,
        )
    if stage.kind == "finetune":
        return FinetuneFacts(
            model=ModelReference(weights="model", adapters=("a", "b")),
            weights_digest="tuned",
            steps=10,
            examples=100,
            response_tokens=5000,
            first_loss_nats=2.0,
            last_loss_nats=1.0,
        )
    if isinstance(config, VerifyConfig):
        final = with_tasks_of(measure(), config.evaluation)
        return VerifyFacts(final=final, digests=(("base", "b"), ("chosen", "c"), ("final", "f")))
    if not isinstance(config, PublishConfig):
        raise AssertionError(f"facts_for: add the facts of a stage of kind {stage.kind}")
    return PublishFacts(destination=config.destination, digest=config.run_digest, files=5, size_bytes=1000)


def healthy(stage: StageFile) -> Ends | Stays:
    """The kubelet's script when all goes well."""
    return Ends(facts=facts_for(stage))
