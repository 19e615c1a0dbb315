"""Hypothesis strategies: what can befall an adaptation, and what can be measured."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from dapt_contract.measure import Measure
from dapt_contract.pod.failure import Cause
from dapt_contract.stages.pretrain import CheckpointFacts
from dapt_operator.testing.objects import Ends
from support.builders import checkpoint, measure, pretrain_facts

increases = st.floats(-0.1, 0.6).map(lambda value: round(value, 3))
domain_losses = st.floats(2.0, 3.2).map(lambda value: round(value, 3))


@st.composite
def tables(draw: st.DrawFn) -> list[CheckpointFacts]:
    """One to eight checkpoints."""
    return [
        checkpoint(10 * (index + 1), draw(domain_losses), draw(increases), draw(increases))
        for index in range(draw(st.integers(1, 8)))
    ]


@st.composite
def measures(draw: st.DrawFn) -> Measure:
    """A model anywhere around the gates."""
    return measure(
        domain_nats=draw(domain_losses),
        increase=draw(increases),
        general_drop=draw(st.floats(-0.1, 0.15)),
        domain_gain=draw(st.floats(-0.2, 0.3)),
        error=draw(st.floats(0.001, 0.05)),
    )


@dataclass(frozen=True)
class Place:
    """Where a life is lived."""

    nodes: int = 1
    launcher: str = "IndexedJob"
    graceful: bool = False
    queue: bool = False
    when: str = "end"
    on_breach: str = "Block"
    blends: bool = False
    concurrency: int = 1
    volume: str = ""
    """Access mode of a work volume of its own; empty: a claim that is there."""


places = st.builds(
    Place,
    nodes=st.sampled_from([1, 2]),
    launcher=st.sampled_from(["IndexedJob", "JobSet"]),
    graceful=st.booleans(),
    queue=st.booleans(),
    when=st.sampled_from(["end", "everyCheckpoint", "candidates"]),
    on_breach=st.sampled_from(["Block", "Rollback", "Rollback"]),
    blends=st.booleans(),
    concurrency=st.integers(1, 3),
    volume=st.sampled_from(["", "", "ReadWriteMany", "ReadWriteOnce"]),
)


@st.composite
def failures(draw: st.DrawFn) -> Ends:
    """Any end but success."""
    code, cause = draw(
        st.sampled_from(
            [
                (1, None),
                (64, Cause.BAD_INPUT),
                (70, Cause.OUT_OF_MEMORY),
                (75, Cause.INFRASTRUCTURE),
                (75, Cause.HANG),
                (76, Cause.FORGETTING_LIMIT),
                (77, Cause.DIVERGED),
                (137, None),
                (143, Cause.STOPPED),
            ]
        )
    )
    return Ends(
        exit_code=code,
        cause=cause,
        message=draw(st.sampled_from(["", "it broke"])),
        facts=None,
        disrupted=draw(st.booleans()) and code in (137, 143),
        oom_killed=draw(st.booleans()) and code == 137,
        lose_message=draw(st.booleans()),
    )


@dataclass(frozen=True)
class Step:
    """One thing that happens."""

    what: str
    ends: Ends | None = None
    table: tuple[CheckpointFacts, ...] = ()
    measured: Measure | None = None
    number: int = 0


def _plain(what: str) -> st.SearchStrategy[Step]:
    return st.just(Step(what))


steps = st.one_of(
    st.builds(Step, what=st.just("succeed"), table=tables().map(tuple), measured=measures()),
    st.builds(Step, what=st.just("succeed"), table=tables().map(tuple), measured=measures()),
    st.builds(Step, what=st.just("succeed"), table=st.just((checkpoint(40),)), measured=st.just(measure())),
    st.builds(Step, what=st.just("fail"), ends=failures()),
    st.builds(Step, what=st.just("limit"), table=tables().map(tuple)),
    st.builds(Step, what=st.just("crash"), number=st.integers(0, 7)),
    st.builds(Step, what=st.just("advance"), number=st.sampled_from([1, 11, 60, 4000])),
    st.builds(Step, what=st.just("gates"), number=st.integers(1, 50)),
    _plain("suspend"),
    _plain("resume"),
    _plain("conflict"),
    _plain("lose jobs"),
    _plain("start"),
    st.builds(Step, what=st.just("read"), table=tables().map(tuple)),
    st.builds(Step, what=st.just("read"), table=tables().map(tuple)),
    st.builds(Step, what=st.just("end evaluations"), measured=measures(), number=st.integers(0, 3)),
    st.builds(Step, what=st.just("end training"), table=tables().map(tuple)),
    st.builds(Step, what=st.just("rollbacks"), number=st.integers(1, 3)),
    st.builds(Step, what=st.just("shares"), number=st.integers(0, 2)),
    st.builds(Step, what=st.just("break"), ends=failures(), number=st.integers(0, 1)),
    st.builds(Step, what=st.just("wait"), number=st.integers(0, 3)),
    st.builds(Step, what=st.just("queue"), number=st.integers(0, 3)),
    st.builds(Step, what=st.just("edit"), number=st.integers(0, 7)),
    st.builds(Step, what=st.just("edit"), number=st.integers(0, 7)),
    _plain("tamper"),
    _plain("lose file"),
    _plain("refuse"),
    _plain("image"),
)
"""Anything that can happen between two reconciles."""

_TABLE = (checkpoint(20, 2.8), checkpoint(40))
_BAD_TABLE = (checkpoint(10, 2.9), checkpoint(20, 2.8, 0.7))
_SUCCEED = Step("succeed", table=_TABLE, measured=measure())
healthy_steps = st.lists(
    st.sampled_from(
        [_SUCCEED, _SUCCEED, _SUCCEED, Step("limit", table=_BAD_TABLE), Step("read", table=_TABLE)]
    ),
    max_size=9,
)
lives = st.builds(
    lambda begun, calm, wild: [*[_SUCCEED] * begun, *calm, *wild],
    st.sampled_from([0, 2, 2]),
    healthy_steps,
    st.lists(steps, min_size=1, max_size=25),
)
"""A calm beginning, so that every stage meets trouble; then anything."""


def limited(table: tuple[CheckpointFacts, ...]) -> Ends:
    """Pretraining stopped by the forgetting limit after these checkpoints."""
    return Ends(76, facts=pretrain_facts(list(table), "ForgettingLimit"), cause=Cause.FORGETTING_LIMIT)
