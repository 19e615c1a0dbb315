"""Attempts one after the other, as dapt makes them: stop rule, rollback, remixed data, until one ends well."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from dapt_contract.checkpoint import candidate_id
from dapt_contract.stages.pretrain import MixturePhase
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.stored.ledger import AttemptRecord
from dapt_operator.plan.selection import choose
from dapt_operator.plan.selection.candidates import Candidate
from science import controller
from science.digests import code_digest, digest_of
from science.losses import measure
from science.model import Rate, Training
from science.names import base_parts, order_digest
from science.world import World

CHAIN_CODE = (
    "science.chain",
    "science.controller",
    "dapt_operator.plan.stage_parts.attempts",
    "dapt_contract.stop_rule",
)
READINGS = 10


@dataclass(frozen=True)
class Chain:
    """Settings of the first attempt; the others follow from dapt's rollback."""

    replay: float
    peak: float
    steps: int = 300
    domain: str = "strong"
    seed: int = 1


def key_of(world: World, chain: Chain) -> str:
    """Names it by its settings, and by all that decides what is trained."""
    order = order_digest(world, chain.domain, chain.replay, chain.steps, chain.seed)
    return digest_of(code_digest(*CHAIN_CODE), chain, *base_parts(world), order)


def follow(world: World, chain: Chain) -> dict[str, Any]:
    """Train attempt after attempt, until one ends with a chosen model or no rollback is left."""
    asked = spec_of(chain)
    base = asdict(world.readings[chain.domain])
    known = _Known({}, {})
    later: tuple[AttemptRecord, ...] = ()
    told: list[dict[str, Any]] = []
    while True:
        made = later[-1] if later else None
        rate = made.learning_rate if made else chain.peak
        replay = made.replay_fraction if made else chain.replay
        stopped, steps = _attempt(world, chain, known, 1 + len(later), made)
        facts = controller.facts(base, known.readings, later=later)
        choice = choose.choose(asked, facts)
        passed = isinstance(choice, choose.Selected) and not stopped
        reason = stopped or ("" if passed else choice.why if isinstance(choice, choose.Breached) else "")
        start = made.start if made else None
        told.append({"rate": rate, "replay": replay, "start": start, "steps": steps, "reason": reason})
        follows = None if passed else controller.retreat(asked, facts, reason)
        if follows is None:
            break
        later = (*later, follows)
    taken = choice.candidate if isinstance(choice, choose.Selected) else None
    return {
        "settings": asdict(chain),
        "attempts": told,
        "readings_by_attempt": {str(number): of for number, of in known.readings.items()},
        "chosen": taken.id if taken else None,
        "chosen_losses": _losses_of(taken, known) if taken else None,
        "steps_trained": sum(attempt["steps"] for attempt in told),
        "budget_steps": chain.steps,
    }


def spec_of(chain: Chain) -> DomainAdaptationSpec:
    """What the adaptation's manifest would say: dapt's defaults, and a rollback on breach."""
    return controller.spec(
        steps=chain.steps,
        rate=chain.peak,
        replay=chain.replay,
        checkpoints=READINGS,
        gates={"onBreach": "Rollback"},
    )


@dataclass(frozen=True)
class _Known:
    """What attempts left: readings by attempt, weights by candidate."""

    readings: dict[int, list[dict[str, Any]]]
    weights: dict[str, Any]


def _attempt(
    world: World, chain: Chain, known: _Known, number: int, made: AttemptRecord | None
) -> tuple[str, int]:
    """(why the rule stopped it, or nothing; steps trained); adds to what is known."""
    model = world.model()
    phases = made.phases if made else ()
    if made is not None and made.start is not None:
        model.load_state_dict(known.weights[made.start])
    left = chain.steps - sum(phase.steps for phase in phases)
    training = _training(
        world,
        chain,
        model,
        Rate(peak=made.learning_rate if made else chain.peak),
        made.replay_fraction if made else chain.replay,
        left,
        tuple(MixturePhase(steps=phase.steps, replay_fraction=phase.replay_fraction) for phase in phases),
    )
    readings = known.readings[number] = []
    marks = {round(part * left / READINGS) for part in range(1, READINGS + 1)}
    domain, general = world.domain(chain.domain), world.bed.sides["general"]
    while training.steps_done < left:
        loss = training.step()
        if training.steps_done in marks or not math.isfinite(loss):
            readings.append({"step": training.steps_done, **asdict(measure(model, domain, general))})
            name = candidate_id(number, training.steps_done)
            known.weights[name] = {key: value.clone() for key, value in model.state_dict().items()}
            stopped = controller.stops_at(spec_of(chain), asdict(world.readings[chain.domain]), readings)
            if stopped is not None:
                return f"stopped at step {stopped[0]}: {stopped[1].message}", training.steps_done
    return "", training.steps_done


def _training(
    world: World,
    chain: Chain,
    model: Any,
    rate: Rate,
    replay: float,
    steps: int,
    phases: tuple[MixturePhase, ...] = (),
) -> Training:
    """The rows go on where the checkpoint left them; the schedule is over the steps that are left."""
    return Training(
        model,
        [world.domain(chain.domain).shard, world.bed.sides["general"].shard],
        rate=rate,
        total_steps=steps,
        replay_fraction=replay,
        seed=chain.seed,
        earlier_phases=phases,
    )


def _losses_of(taken: Candidate, known: _Known) -> dict[str, Any]:
    return next(reading for reading in known.readings[taken.attempt] if reading["step"] == taken.step)
