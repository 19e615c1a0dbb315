"""Defines `spec.evaluation`, `spec.gates` and `spec.selection`: what is measured, and what is decided by it."""

import re
from typing import Annotated, Literal

from pydantic import Field

from dapt_operator.api.v1alpha1.base import CANDIDATE_PATTERN, TASK_PATTERN, Base, Integer, Rule
from dapt_operator.api.v1alpha1.texts.addresses import SourceUri

DEFAULT_AVERAGE = 3
"""Default number of last checkpoints whose mean is a candidate; a run with fewer averages all of them."""

_FILE_NAME = "([.]([yY][aA]?[mM][lL]|[pP][yY]|[jJ][sS][oO][nN][lL]?)$|[.][.])"
"""Names of which the harness would load a file, in any case of letters."""


class Task(Base):
    """One task of the evaluation."""

    RULES = (
        Rule(
            "name",
            lambda task: task.source is not None or not re.search(_FILE_NAME, task.name),
            f"has(self.source) || !self.name.matches('{_FILE_NAME}')",
            "a task of lm-evaluation-harness is given by its name, not by a file: write its name, or give your own"
            " questions as source",
        ),
    )

    name: Annotated[str, Field(pattern=TASK_PATTERN, min_length=1, max_length=40)]
    """A task of lm-evaluation-harness, or, with source, your own name for your own task."""
    source: SourceUri | None = None
    """JSONL with question, choices and answer. Absent: the task is one of lm-evaluation-harness."""
    few_shot: Annotated[Integer, Field(ge=0, le=100)] | None = None
    """Examples shown before each item. Absent: evaluation.fewShot."""


class TaskSide(Base):
    """Tasks of one side, domain or general."""

    tasks: Annotated[tuple[Task, ...], Field(strict=False, max_length=8)] = ()
    """Tasks of this side, at most 8, since their scores travel in a message of 3.75 KiB. Default none: perplexities
    are measured in any case."""


class ProbeSource(Base):
    """One set of probes."""

    source: SourceUri
    """JSONL with prompt, choices and answer, or with prompt and order."""


class Probes(Base):
    """Small questions that show directly whether a fact is known."""

    domain: Annotated[tuple[ProbeSource, ...], Field(strict=False, max_length=2)] = ()
    """Probes of the domain. Default none."""
    general: Annotated[tuple[ProbeSource, ...], Field(strict=False, max_length=2)] = ()
    """Probes of general knowledge. Default none."""


_UNIQUE_TASKS = (
    "self.domain.tasks.all(t, self.domain.tasks.exists_one(o, o.name == t.name)"
    " && !self.general.tasks.exists(o, o.name == t.name))"
    " && self.general.tasks.all(t, self.general.tasks.exists_one(o, o.name == t.name))"
)


def _names_are_unique(evaluation: "Evaluation") -> bool:
    names = [task.name for task in (*evaluation.domain.tasks, *evaluation.general.tasks)]
    return len(names) == len(set(names))


class Evaluation(Base):
    """What is measured besides the perplexities, on the base model and on every candidate alike."""

    RULES = (
        Rule(
            "",
            _names_are_unique,
            _UNIQUE_TASKS,
            "the names of tasks must be unique over domain and general, since scores are kept by name:"
            " rename or remove the repeated one",
        ),
    )

    domain: TaskSide = TaskSide()
    """Tasks that show what was learned."""
    general: TaskSide = TaskSide()
    """Tasks that show what was forgotten."""
    probes: Probes = Probes()
    """Sets of probes."""
    few_shot: Annotated[Integer, Field(ge=0, le=100)] = 5
    """Examples shown before each item, for tasks that set no fewShot. Default 5: base models need to see the form
    of an answer."""
    limit: Annotated[Integer, Field(ge=1, le=1_000_000_000)] | None = None
    """Items per task, for quick runs. Absent: all."""
    when: Literal["everyCheckpoint", "candidates", "end"] = "everyCheckpoint"
    """When tasks run (perplexities are always measured). everyCheckpoint: for every checkpoint; candidates: for
    those that pass the perplexity gate; both in parallel with pretraining. end: after it, for those that selection
    asks for. Default everyCheckpoint."""


class Rollback(Base):
    """What a new attempt changes after a breach."""

    max_rollbacks: Annotated[Integer, Field(ge=0, le=10)] = 2
    """New attempts after the first. Default 2: by then the rate is a quarter and the replay fourfold."""
    learning_rate_factor: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Multiplies the learning rate of the attempt before. Default 0.5."""
    replay_factor: Annotated[float, Field(ge=1, le=100)] = 2.0
    """Multiplies the replay fraction of the attempt before, at most to 0.5. Default 2.0."""


class Gates(Base):
    """Limits that a candidate must keep to be published."""

    RULES = (
        Rule(
            "hardStopFactor",
            lambda gates: gates.hard_stop_factor > 1,
            "self.hardStopFactor > 1.0",
            "hardStopFactor must be above 1: a hard stop at or below the limit itself would end every run"
            " before patience is asked; write for example 4.0",
        ),
        Rule(
            "minDomainPerplexityDecrease",
            lambda gates: gates.min_domain_perplexity_decrease < 1,
            "self.minDomainPerplexityDecrease < 1.0",
            "minDomainPerplexityDecrease must be below 1: it is a share of the base model's perplexity, and"
            " no model can pass at 1 or more; for 15 % write 0.15",
        ),
        Rule(
            "rollback",
            lambda gates: (
                gates.on_breach != "Rollback"
                or gates.rollback.learning_rate_factor < 1
                or gates.rollback.replay_factor > 1
            ),
            "self.onBreach != 'Rollback' || self.rollback.learningRateFactor < 1.0"
            " || self.rollback.replayFactor > 1.0",
            "with learningRateFactor 1 and replayFactor 1 a rollback would repeat the attempt that failed:"
            " lower the first or raise the second",
        ),
        Rule(
            "rollback.maxRollbacks",
            lambda gates: gates.on_breach != "Rollback" or gates.rollback.max_rollbacks > 0,
            "self.onBreach != 'Rollback' || self.rollback.maxRollbacks > 0",
            "onBreach: Rollback with maxRollbacks 0 never rolls back: write onBreach: Block, or at least 1",
        ),
    )

    max_general_perplexity_increase: Annotated[float, Field(gt=0, le=100)] = 0.15
    """Largest rise of general perplexity over the base model's, as a share. Default 0.15."""
    max_general_score_drop: Annotated[float, Field(ge=0, le=100)] = 3.0
    """Points that any one general task or general probe set may lose. More fails where the loss is real: where
    chance would show it in fewer than one of twenty adaptations, corrected for the number of tasks. Default 3.0."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] | None = None
    """With which every limit must be kept, for example 0.95: the loss on general tasks, the rise of general
    perplexity, the fall of domain perplexity. A model fails too when items or held-out text are too few to show it.
    Absent: a task fails only when more than the limit was really lost, and the readings of perplexities judge."""
    min_domain_perplexity_decrease: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Smallest fall of domain perplexity under the base model's, as a share. Default 0.0: any gain counts."""
    patience: Annotated[Integer, Field(ge=1, le=50)] = 2
    """Checkpoints in a row over twice the limit and not falling before a run is stopped. Default 2: re-warming
    lifts the loss for a while and it falls again."""
    hard_stop_factor: Annotated[float, Field(gt=0, le=1000)] = 4.0
    """A rise of general perplexity of this many times the limit stops a run at once, as divergence does.
    Default 4.0."""
    on_breach: Literal["Rollback", "Block", "Warn"] = "Rollback"
    """What follows a breach. Rollback: a new attempt with a lower learning rate and more replay; Block: everything
    is kept and the user decides; Warn: continue and say so in the model card. Default Rollback."""
    rollback: Rollback = Rollback()
    """What a new attempt changes."""


class SelectionWeights(Base):
    """Weights of the gain, which is domainPerplexity x (fall of ln domain perplexity) + domainTasks x (mean share
    of the missing score won)."""

    RULES = (
        Rule(
            "",
            lambda weights: weights.domain_perplexity > 0 or weights.domain_tasks > 0,
            "self.domainPerplexity > 0.0 || self.domainTasks > 0.0",
            "at least one of domainPerplexity and domainTasks must be above 0: otherwise every candidate has"
            " the same gain",
        ),
    )

    domain_perplexity: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Weight of the fall of ln domain perplexity. Default 1.0."""
    domain_tasks: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Weight of the mean over domain tasks of (score - base) / (1 - base). Default 1.0."""


class Selection(Base):
    """How one candidate is chosen: the one with the largest gain of those that pass the gates."""

    RULES = (
        Rule(
            "interpolate",
            lambda selection: len(set(selection.interpolate)) == len(selection.interpolate),
            "self.interpolate.all(a, self.interpolate.exists_one(b, b == a))",
            "the shares in interpolate must differ from each other: remove the repeated one",
        ),
    )

    weights: SelectionWeights = SelectionWeights()
    """Weights of the terms of the gain."""
    interpolate: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(strict=False, min_length=1, max_length=10)
    ] = (0.6, 0.8, 1.0)
    """Candidates between base model and checkpoint, base + a x (checkpoint - base), for these a; [1.0] switches
    them off. Default [0.6, 0.8, 1.0]: a merge with the base model costs no training and often forgets less."""
    average_last: Annotated[Integer, Field(ge=1, le=50)] = DEFAULT_AVERAGE
    """The mean of this many last checkpoints, or of as many as exist, is a candidate too; 1 switches it off.
    Default 3."""
    pin: Annotated[str, Field(pattern=CANDIDATE_PATTERN, max_length=64)] | None = None
    """Id of a candidate that the user chooses, recorded in the model card. Absent: the largest gain decides."""
