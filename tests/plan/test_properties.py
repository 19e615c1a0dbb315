"""Safety of the planner, whatever happens. The cluster in memory refuses impossible worlds on its own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dapt_contract.measure import Measure
from dapt_contract.pod.failure import Cause
from dapt_contract.pod.progress import Progress
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.align import AlignConfig
from dapt_contract.stages.baseline import BaselineFacts
from dapt_contract.stages.evaluate import EvaluateConfig, EvaluateFacts
from dapt_contract.stages.finetune import FinetuneConfig
from dapt_contract.stages.prepare import PrepareConfig
from dapt_contract.stages.pretrain import CheckpointFacts
from dapt_contract.stages.tuning_data import TuningDataConfig
from dapt_contract.stages.verify import VerifyFacts
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.launchers import LAUNCHERS, all_states
from dapt_operator.plan.decide import decide
from dapt_operator.plan.gates import GATES, GateFacts
from dapt_operator.plan.ledger.stage_facts import Facts
from dapt_operator.plan.observed import observe
from dapt_operator.plan.selection.choose import MAX_JUDGED, Breached, NeedsMeasure, Selected, choose
from dapt_operator.testing.objects import Ends, OperatorKilledError, Stays, job_spec
from support.builders import adaptation, base_measure, checkpoint, facts_for, full_digest, pretrain_facts
from support.strategies import Place, Step, limited, lives, measures, places, tables
from support.worlds import World

SLOW = settings(max_examples=35, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def outcome(step: Step) -> Any:
    """The kubelet's script for a step."""

    def script(stage: StageFile) -> Ends | Stays:
        if step.what == "start":
            return Stays()
        if step.what == "read":
            known = Progress(run_key=stage.run.key, stage=stage.kind, checkpoints=step.table)
            return Stays(known if stage.kind == "pretrain" else None)
        if step.what == "end training" and stage.kind != "pretrain":
            return Stays()
        if step.what == "end evaluations":
            if stage.kind != "evaluate":
                return Stays()
            if step.number == 0:
                return Ends(64, message="a task is broken", cause=Cause.BAD_INPUT)
        if step.what == "limit" and stage.kind == "pretrain":
            return limited(step.table)
        if step.ends is not None:
            return step.ends
        if stage.kind == "pretrain" and step.table:
            return Ends(facts=pretrain_facts(list(step.table)))
        if isinstance(stage.config, EvaluateConfig) and step.measured:
            scored = step.measured.model_copy(update={"digest": full_digest(stage.config)})
            return Ends(facts=EvaluateFacts(candidate=stage.config.candidate, measure=scored))
        if stage.kind == "verify" and step.measured:
            return Ends(facts=VerifyFacts(final=step.measured, digests=()))
        return Ends(facts=facts_for(stage))

    return script


def happen(world: World, step: Step) -> None:
    """One step of a life."""
    cluster = world.cluster
    if step.what in RUNS:
        cluster.run_pods(world.key, outcome(step))
    elif step.what == "advance":
        cluster.advance(step.number)
    elif step.what == "gates":
        world.edit(gates={"maxGeneralPerplexityIncrease": step.number / 100})
    elif step.what == "rollbacks":
        world.edit(gates={"onBreach": "Rollback", "rollback": {"maxRollbacks": step.number}})
    elif step.what == "shares":
        world.edit(selection={"interpolate": SHARES[step.number]})
    elif step.what == "crash":
        cluster.crash_at = len(cluster.verbs) + step.number // 2
        cluster.crash_after = step.number % 2 == 1
    elif step.what in ("suspend", "resume"):
        world.edit(suspend=step.what == "suspend")
    elif step.what == "conflict":
        cluster.num_conflicts = 1
    elif step.what == "lose jobs":
        cluster.delete_jobs(world.key)
    elif step.what == "queue":
        cluster.queues["team"] = QUEUE_SAYS[step.number]
    elif step.what == "refuse":
        cluster.num_taken_names = 1
    elif step.what == "edit":
        edit_what_may_change(world, EDITS[step.number])
    elif step.what == "image":
        world.offer(trainerImage=f"registry.example/dapt-trainer:1.0.{len(world.plans)}")
    else:
        happen_to_pods(world, step)


def edit_what_may_change(world: World, over: dict[str, Any]) -> None:
    """The edit of a user, where the API server does not refuse it."""
    frozen = world.status.get("frozen", {})
    if not any(frozen.get(block) for block in over):
        world.edit(**over)


def prepared_folders(world: World, before: int) -> set[str]:
    """Folders of tuning data that runs with a smaller fence were to write."""
    configs = [run.config for run in world.runs if run.run.fence < before]
    prepared = [
        data for config in configs if isinstance(config, PrepareConfig) for data in config.tuning_data
    ]
    return {data.folder for data in (*prepared, *configs) if isinstance(data, TuningDataConfig)}


def happen_to_pods(world: World, step: Step) -> None:
    """What befalls the runs that live."""
    cluster = world.cluster
    files = {one["metadata"]["name"] for one in cluster.objects(world.key, "ConfigMap")}
    for job in cluster.live_jobs(world.key):
        name, held = job["metadata"]["name"], job["spec"].get("suspend")
        if job["metadata"].get("deletionTimestamp") or name not in files:
            continue
        if step.what == "break" and not held and step.ends is not None:
            nodes = int(job_spec(job)["completions"])
            cluster.fail_pod(cluster.stored(world.key), job, step.number % nodes, step.ends)
        elif step.what == "wait":
            cluster.run_pods(world.key, lambda stage: WAITS[step.number])
        elif step.what == "tamper":
            cluster.tamper(world.key, name)
        elif step.what == "lose file":
            cluster.delete_object(world.key, "ConfigMap", name)
            files.discard(name)


EDITS: tuple[dict[str, Any], ...] = (
    {"finetuning": {"data": [{"source": "s3://corpora/version-2.jsonl"}]}},
    {"finetuning": {"data": [{"source": "file:///text/instructions.jsonl"}]}},
    {"preference": {"data": [{"source": "s3://corpora/pairs.jsonl"}]}},
    {"preference": None},
    {"evaluation": {"domain": {"tasks": [{"name": "codes", "source": "s3://eval/codes-2.jsonl"}]}}},
    {"evaluation": {"domain": {"tasks": [{"name": "codes", "source": "file:///eval/codes.jsonl"}]}}},
    {"output": {"destination": "file:///out/other"}},
    {"output": {"destination": "file:///out/model"}},
)
RUNS = ("succeed", "fail", "limit", "start", "read", "end training", "end evaluations")
SHARES = ([1.0], [0.5, 1.0], [0.3, 0.5])
QUEUE_SAYS = (
    "",
    "",
    "couldn't assign flavors to pod set main: insufficient unused quota for cpu in flavor default, 1 more needed",
    "LocalQueue team doesn't exist",
)
WAITS = (
    Stays(waiting='CreateContainerConfigError: secret "dapt-hub" not found'),
    Stays(waiting="ErrImagePull: no such image"),
    Stays(pending_reason="Unschedulable: 0/3 nodes are available"),
    Stays(waiting="ContainerCreating"),
)


def begin(place: Place) -> World:
    """A world of that kind."""
    spec: dict[str, Any] = {"queue": "team"} if place.queue else {}
    spec |= {"evaluation": {"when": place.when}, "gates": {"onBreach": place.on_breach}}
    spec |= {"selection": {"interpolate": SHARES[place.blends], "averageLast": 3 if place.blends else 1}}
    offered: dict[str, Any] = {"launcher": place.launcher, "evaluation": {"concurrency": place.concurrency}}
    if place.volume:
        claim = {"accessModes": [place.volume], "resources": {"requests": {"storage": "1Gi"}}}
        offered["storage"] = {"existingClaim": None, "claimTemplate": claim}
    if place.nodes > 1:
        spec |= {"resources": {"nodes": place.nodes}, "pretraining": {"globalBatchSize": 16}}
    world = World(spec, offered, graceful=place.graceful)
    world.cluster.queues["team"] = ""
    return world


@SLOW
@given(places, lives)
def test_random_events_never_lead_to_an_impossible_world(place: Place, life: list[Step]) -> None:
    """No run twice, none beside another that may not be, numbers only rise, what is terminal stays, an attempt is
    written down before it starts and never changed, nothing is deleted twice or before it is known, conditions never
    contradict each other (`MemoryCluster` checks each). No stage learns from data that nobody was to prepare."""
    world = begin(place)
    for step in life:
        world.crashing_reconcile()
        happen(world, step)
    world.cluster.crash_at = None
    world.settle()
    for run in world.runs:
        if isinstance(run.config, FinetuneConfig | AlignConfig):
            assert run.config.data_folder in prepared_folders(world, run.run.fence)


@SLOW
@given(places, lives)
def test_when_nothing_happens_nothing_is_written(place: Place, life: list[Step]) -> None:
    """Ten minutes in which only the clock moves, looked at as often as the plans ask for and more."""
    world = begin(place)
    for step in life:
        world.crashing_reconcile()
        happen(world, step)
    world.cluster.crash_at = None
    world.cluster.num_taken_names = 0
    world.settle()
    world.cluster.advance(4000)  # backoffs, lost runs and patience come to their end
    world.settle()
    verbs = len(world.cluster.verbs)
    for _ in range(10):
        world.cluster.advance(60)
        assert world.reconcile().is_empty
    assert len(world.cluster.verbs) == verbs


@SLOW
@given(places, lives)
def test_planning_twice_changes_nothing(place: Place, life: list[Step]) -> None:
    world = begin(place)
    for step in life:
        world.crashing_reconcile()
        happen(world, step)
        raw = world.cluster.observe(world.key)
        assert raw.resource is not None
        launcher = LAUNCHERS[place.launcher]
        observed = observe(raw.resource, raw.profile, all_states(raw.children, raw.now), raw.now)
        assert decide(observed, launcher) == decide(observed, launcher)
    world.cluster.crash_at = None
    world.settle()
    writes = world.cluster.writes
    assert world.reconcile().is_empty
    assert world.cluster.writes == writes


@SLOW
@given(places, lives)
def test_no_model_is_published_that_a_gate_failed(place: Place, life: list[Step]) -> None:
    world = begin(place)
    for step in life:
        with_crash(world)
        happen(world, step)
    for run in world.runs:
        if run.kind != "publish":
            continue
        records = {(r["stage"], r.get("candidate")): r for r in world.status["ledger"]["runs"]}
        verified = records[("verify", run.run.candidate)]
        assert verified["state"] == "Succeeded"


def with_crash(world: World) -> None:
    """A reconcile after which a run of publish was planned only on passing verdicts, by the spec of that moment."""
    before = len(world.runs)
    try:
        world.reconcile()
    except OperatorKilledError:
        return
    for run in world.runs[before:]:
        if run.kind != "publish":
            continue
        raw = world.cluster.observe(world.key)
        assert raw.resource is not None
        spec = DomainAdaptation.model_validate(
            {name: value for name, value in raw.resource.items() if name != "status"}
            | {"metadata": {"name": "x"}}
        ).spec
        status = world.status["ledger"]["runs"]
        (facts,) = [
            r["facts"] for r in status if r["stage"] == "verify" and r["candidate"] == run.run.candidate
        ]
        final = VerifyFacts.model_validate(facts).final
        compared = GateFacts("x", base_measure(), final)
        assert all(verdict.passed for gate in GATES for verdict in gate.judge(spec, compared))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tables(), st.lists(measures(), min_size=8, max_size=8), st.integers(1, 50))
def test_selection_takes_only_what_passes_and_judges_three_at_most(
    table: list[CheckpointFacts], measured: list[Measure], limit: int
) -> None:
    spec = DomainAdaptation.model_validate(
        adaptation(gates={"maxGeneralPerplexityIncrease": limit / 100})
    ).spec
    facts = Facts(baseline=BaselineFacts(measure=base_measure()), pretrains={1: pretrain_facts(table)})
    asked: list[str] = []
    while True:
        choice = choose(spec, facts)
        if not isinstance(choice, NeedsMeasure):
            break
        name = choice.candidate.id
        assert name not in asked
        asked.append(name)
        facts = Facts(
            baseline=facts.baseline,
            pretrains=facts.pretrains,
            measures={**facts.measures, name: measured[len(asked) - 1]},
        )
    assert len(asked) <= MAX_JUDGED
    if isinstance(choice, Selected):
        assert choice.passes
        assert choice.candidate.passes
        assert choice.candidate.passes_a
        assert choice.candidate.id == asked[-1]
    else:
        assert isinstance(choice, Breached)


@pytest.mark.parametrize("on_breach", ["Block", "Warn"])
def test_a_warning_always_ends_in_a_choice(on_breach: str) -> None:
    spec = DomainAdaptation.model_validate(adaptation(gates={"onBreach": on_breach}, evaluation=None)).spec
    facts = Facts(
        baseline=BaselineFacts(measure=base_measure()),
        pretrains={1: pretrain_facts([checkpoint(10, 3.1, 0.5)])},
    )
    choice = choose(spec, facts)
    assert isinstance(choice, Selected if on_breach == "Warn" else Breached)
