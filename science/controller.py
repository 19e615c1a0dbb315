"""dapt's own decisions on recorded runs: the stop rule, the gates, the selection, and what a rollback changes.

Nothing here decides; it brings a run's readings into the form in which the operator reads a report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from dapt_contract.measure import Measure, Perplexity, SidePerplexity
from dapt_contract.stages.baseline import BaselineFacts
from dapt_contract.stages.blend import BlendRow
from dapt_contract.stages.prepare import ModelFacts, PrepareFacts
from dapt_contract.stages.pretrain import CheckpointFacts, PretrainFacts
from dapt_contract.stop_rule import StopDecision, StopRule, StopVerdict, judge_readings
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.stored.ledger import AttemptRecord
from dapt_operator.plan.ledger.stage_facts import Facts
from dapt_operator.plan.selection import choose
from dapt_operator.plan.sizing import resolve
from dapt_operator.plan.stage_parts import attempts

_TOKENS = 18_000
"""Of a half: all halves are of about this size, and only ratios of losses are read."""
_HALVES = ("domain_a", "domain_b", "general_a", "general_b")
_DIGEST = "miniature"
_NOW = datetime(2026, 1, 1, tzinfo=UTC)


_PREPARED = PrepareFacts(
    model=ModelFacts(
        architecture="LlamaForCausalLM",
        parameters=529_056,
        hidden_size=96,
        layers=3,
        vocabulary_size=1024,
        attention_heads=4,
        key_value_heads=4,
        intermediate_size=256,
        max_positions=128,
        tied_embeddings=False,
        has_chat_template=False,
        revision=_DIGEST,
        digest=_DIGEST,
        weights_bytes=4 * 529_056,
    ),
    sources=(),
    sequence_length_tokens=128,
    domain_tokens=885_485,
    general_tokens=2_844_387,
    data_digest=_DIGEST,
)
"""A finished prepare, which the planner waits for; with a budget in steps none of its numbers decides anything."""


def spec(
    *,
    steps: int = 300,
    rate: float = 1e-3,
    replay: float | None = None,
    checkpoints: int = 10,
    gates: Mapping[str, Any] | None = None,
    selected: Mapping[str, Any] | None = None,
) -> DomainAdaptationSpec:
    """An adaptation of the bed with dapt's defaults, but for what is given.

    Args:
        steps: the budget.
        rate: the peak; dapt's default is for models a thousand times as large.
        replay: None: dapt chooses by the shift.
        checkpoints: how many.
        gates: laid over the defaults, in the manifest's words.
        selected: the same, of `selection`.
    """
    corpus: dict[str, Any] = {
        "domain": [{"source": "file:///domain.jsonl"}],
        "general": [{"source": "file:///general.jsonl"}],
        "sequenceLength": 128,
    }
    if replay is not None:
        corpus["replayFraction"] = replay
    return DomainAdaptationSpec.model_validate(
        {
            "profile": "miniature",
            "model": {"source": "file:///base"},
            "corpus": corpus,
            "pretraining": {
                "method": {"full": {}},
                "budget": {"steps": steps},
                "globalBatchSize": 16,
                "optimizer": {"learningRate": rate},
                "checkpoints": {"count": checkpoints},
            },
            "gates": dict(gates or {}),
            "selection": dict(selected or {}),
            "output": {"destination": "file:///out"},
            "resources": {"nodes": 1, "gpusPerNode": 1},
        }
    )


def stop_rule(asked: DomainAdaptationSpec) -> StopRule:
    """What the trainer is given of the gates."""
    gates = asked.gates
    return StopRule(
        max_increase_fraction=gates.max_general_perplexity_increase,
        patience=gates.patience,
        hard_stop_factor=gates.hard_stop_factor,
        enforce_limit=gates.on_breach != "Warn",
    )


def base_measure(losses: Mapping[str, float]) -> Measure:
    """The base model's four losses as a measure."""

    def half(name: str) -> Perplexity:
        return Perplexity(nll_nats=losses[name] * _TOKENS, tokens=_TOKENS, bytes=3 * _TOKENS)

    return Measure(
        digest=_DIGEST,
        domain=SidePerplexity(a=half("domain_a"), b=half("domain_b")),
        general=SidePerplexity(a=half("general_a"), b=half("general_b")),
    )


def checkpoint(reading: Mapping[str, Any]) -> CheckpointFacts:
    """A reading as a row of the operator's table."""
    losses = {f"{name}_nats": reading[name] for name in _HALVES}
    errors = {name: reading[name] for name in ("domain_b_error", "general_b_error") if name in reading}
    return CheckpointFacts(step=reading["step"], try_number=1, weights_digest=_DIGEST, **losses, **errors)


def facts(
    base: Mapping[str, float],
    readings: Mapping[int, Sequence[Mapping[str, Any]]],
    *,
    blends: Mapping[str, Mapping[str, Any]] | None = None,
    later: tuple[AttemptRecord, ...] = (),
) -> Facts:
    """What the operator knows of attempts.

    Args:
        base: the base model's losses.
        readings: by attempt.
        blends: losses of averages and interpolations of the first attempt, by candidate.
        later: attempts after the first.
    """
    pretrains = {
        number: PretrainFacts(
            ended_by="Completed",
            steps=of[-1]["step"] if of else 0,
            tokens=0,
            checkpoints=tuple(map(checkpoint, of)),
        )
        for number, of in readings.items()
    }
    rows = tuple(
        BlendRow(candidate=name, weights_digest=_DIGEST, **{f"{half}_nats": of[half] for half in _HALVES})
        for name, of in (blends or {}).items()
    )
    return Facts(
        prepare=_PREPARED,
        baseline=BaselineFacts(measure=base_measure(base)),
        pretrains=pretrains,
        blends={1: rows} if rows else {},
        attempts=later,
    )


def stops_at(
    asked: DomainAdaptationSpec, base: Mapping[str, float], readings: Sequence[Mapping[str, Any]]
) -> tuple[int, StopDecision] | None:
    """Step at which the stop rule ends a run, with what it says; None when it lets the run end."""
    before = base_measure(base).general.both.perplexity
    seen: list[float] = []
    for reading in readings:
        losses = base_measure({name: reading[name] for name in _HALVES}) if _finite(reading) else None
        seen.append(losses.general.both.perplexity if losses else float("nan"))
        decision = judge_readings(stop_rule(asked), before, seen)
        if decision.verdict is not StopVerdict.CONTINUE:
            return reading["step"], decision
    return None


def increases(base: Mapping[str, float], readings: Sequence[Mapping[str, Any]]) -> list[float]:
    """General perplexity over the base model's, minus 1, at each reading."""
    before = base_measure(base).general.both.perplexity
    return [base_measure(reading).general.both.perplexity / before - 1.0 for reading in readings]


def chosen(
    asked: DomainAdaptationSpec,
    base: Mapping[str, float],
    readings: Sequence[Mapping[str, Any]],
    blends: Mapping[str, Mapping[str, Any]] | None = None,
) -> str | None:
    """Id of the candidate that dapt takes; None when none passes."""
    choice = choose.choose(asked, facts(base, {1: readings}, blends=blends))
    return choice.candidate.id if isinstance(choice, choose.Selected) else None


def retreat(asked: DomainAdaptationSpec, known: Facts, reason: str) -> AttemptRecord | None:
    """The attempt that dapt begins after a breach."""
    return attempts.next_attempt(asked, known, failed=frozenset(), reason=reason, now=_NOW)


def default_replay(base: Mapping[str, float]) -> float:
    """The share that dapt takes by the shift it measures."""
    share = resolve.replay_fraction(spec(), base_measure(base))
    assert share is not None
    return share


def _finite(reading: Mapping[str, Any]) -> bool:
    return all(reading[name] == reading[name] for name in _HALVES)
