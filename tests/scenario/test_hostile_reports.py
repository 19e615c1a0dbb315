"""Whatever a pod reports, the adaptation goes on or says what is wrong, and what is stored is valid."""

from __future__ import annotations

import copy
import json
import math
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dapt_contract.pod.environment import TERMINATION_MESSAGE_BYTES
from dapt_contract.pod.failure import Cause
from dapt_contract.pod.progress import Progress
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.pretrain import PretrainConfig
from dapt_operator.cluster.progress_reading import parse_reading
from dapt_operator.runtime.metrics import read
from dapt_operator.testing.objects import Ends, Stays
from support.builders import checkpoint, healthy, pretrain_facts
from support.worlds import World

HOSTILE: st.SearchStrategy[Any] = st.sampled_from(
    [math.nan, math.inf, -math.inf, 1e300, -1e300, 1e-300, 0, -1, 10**15, 10**16, 2**63, 10**400, True, None, "",
     "x" * 900, "NaN", "9" * 900, [], [[]], [0] * 200, {}, {"a": 1}]
)  # fmt: skip
CHANGES = st.lists(st.tuples(st.integers(0, 10**6), HOSTILE), min_size=1, max_size=3)
QUICK = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
STAGES = ["prepare", "baseline", "pretrain", "blend", "evaluate", "finetune", "align", "verify", "publish"]
SPEC = {
    "selection": {"interpolate": [0.5, 1.0], "averageLast": 2},
    "preference": {"data": [{"source": "file:///text/pairs.jsonl"}]},
}


@cache
def lived(stage: str) -> World:
    """An adaptation whose run of this stage has just ended well, which nobody has observed yet."""
    world = World(SPEC)
    world.live_until(stage)
    world.cluster.run_pods(world.key, healthy)
    return world


def places(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: list[tuple[Any, ...]] = []
    for key, item in items:
        found += [(*prefix, key), *places(item, (*prefix, key))]
    return found


def changed(body: dict[str, Any], changes: list[tuple[int, Any]]) -> dict[str, Any]:
    """The JSON value with hostile ones at some of its places."""
    body = copy.deepcopy(body)
    for number, value in changes:
        known = places(body)
        if not known:
            break
        *holders, last = known[number % len(known)]
        holder: Any = body
        for part in holders:
            holder = holder[part]
        holder[last] = copy.deepcopy(value)
    return body


def reports_of(world: World) -> list[dict[str, Any]]:
    """The terminated states with the messages of the newest run's pods."""
    key = world.runs[-1].run.key[:16]
    pods = [pod for (kind, _), pod in world.cluster.stored(world.key).objects.items() if kind == "Pod"]
    return [
        pod["status"]["containerStatuses"][0]["state"]["terminated"]
        for pod in pods
        if pod["metadata"]["labels"]["dapt.dev/run"] == key
    ]


def check(world: World) -> None:
    """What is stored is JSON that the API server takes, and metrics can be read from it."""
    json.dumps(world.status, allow_nan=False)
    assert all(abs(value) < 2**63 for value in integers(world.status))
    raw = world.cluster.observe(world.key).resource
    assert raw is not None
    read(raw)


def integers(value: Any) -> list[int]:
    if isinstance(value, int):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [number for item in items for number in integers(item)]


@pytest.mark.parametrize("stage", STAGES)
@QUICK
@given(CHANGES)
def test_no_message_stops_the_operator(stage: str, changes: list[tuple[int, Any]]) -> None:
    world = copy.deepcopy(lived(stage))
    for report in reports_of(world):
        text = json.dumps(changed(json.loads(report["message"]), changes), separators=(",", ":"))
        report["message"] = text[-TERMINATION_MESSAGE_BYTES:]
    for _ in range(3):
        world.reconcile()
        check(world)


@QUICK
@given(CHANGES)
def test_no_reading_stops_the_operator(changes: list[tuple[int, Any]]) -> None:
    world = copy.deepcopy(training())
    config = world.config("pretrain")
    assert isinstance(config, PretrainConfig)
    body = Progress(
        run_key=world.runs[-1].run.key, stage="pretrain", activity="training", fraction=0.5, step=20, total_steps=40,
        tokens=20_480, tokens_per_second=100.0, loss_nats=2.5, learning_rate=1e-4, gradient_norm=1.0,
        domain_perplexity=20.0, general_perplexity=18.0, checkpoints=(checkpoint(10), checkpoint(20)), eta_seconds=60.0,
    )  # fmt: skip
    text = json.dumps(changed(json.loads(body.model_dump_json()), changes))
    reading = parse_reading(text.encode())
    if reading is not None:
        world.cluster.run_pods(world.key, lambda run: Stays(progress=reading))
    world.cluster.advance(60)
    for _ in range(3):
        world.reconcile()
        check(world)


@cache
def training() -> World:
    world = World({"evaluation": {"when": "everyCheckpoint"}})
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, lambda run: Stays())
    world.settle()
    return world


def test_a_report_out_of_bounds_is_a_failure_that_names_field_and_value() -> None:
    world = copy.deepcopy(lived("prepare"))
    for report in reports_of(world):
        body = json.loads(report["message"])
        body["facts"]["domain_tokens"] = -5
        report["message"] = json.dumps(body)
    world.reconcile()
    (failed,) = [run for run in world.status["ledger"]["runs"] if run["stage"] == "prepare"]
    assert "domain_tokens is -5: Input should be greater than or equal to 0" in str(
        [notice.message for notice in world.cluster.events(world.key)] + [failed.get("message")]
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"nll_nats": -1.0}, "must be 0 or more: a probability is at most 1"),
        ({"score": 1.7}, "must be between 0 and 1"),
        ({"score": -0.2}, "must be between 0 and 1"),
        ({"difference": -1.5}, "must be between -1 and 1"),
        ({"standard_error": -0.1}, "must be between 0 and 2"),
    ],
    ids=str,
)
def test_measure_that_no_model_can_have_fails_its_stage(change: dict[str, float], problem: str) -> None:
    world = copy.deepcopy(lived("evaluate"))
    (field, value), *_ = change.items()
    for report in reports_of(world):
        body = json.loads(report["message"])
        measure = body["facts"]["measure"]
        if field == "nll_nats":
            measure["general"]["a"][0] = value
        else:
            row = {
                "name": "t",
                "side": "domain",
                "kind": "task",
                "items": 9,
                "score": 0.5,
                "standard_error": 0.1,
            }
            measure["scores"] = [row | change]
        report["message"] = json.dumps(body)
    world.reconcile()
    assert world.status["stages"][-1]["state"] != "Succeeded"
    messages = [notice.message for notice in world.cluster.events(world.key)]
    assert any(f"{field} is {value:g}" in message and problem in message for message in messages), messages


def test_refused_report_of_a_stopped_training_is_named_and_spends_no_retry_for_a_lost_one() -> None:
    def script(stage: StageFile) -> Ends | Stays:
        if stage.kind != "pretrain":
            return healthy(stage)
        facts = pretrain_facts([checkpoint(10, 2.8, 0.7)], "ForgettingLimit")
        refused = facts.model_copy(update={"steps": -5})
        return Ends(76, facts=refused, message="past the limit", cause=Cause.FORGETTING_LIMIT)

    world = World()
    world.live(script)
    (failed,) = [run for run in world.status["ledger"]["runs"] if run["stage"] == "pretrain"]
    assert failed["failures"] == {"infrastructure": 3}
    assert world.condition("Stalled")[:2] == ("True", "RetriesExhausted")
    assert (
        "last by Crash: its report cannot be used (termination message of pretrain: steps is -5: Input should be"
        " greater than or equal to 0), so its end cannot be judged: past the limit;"
    ) in world.condition("Stalled")[2]


ELSEWHERE = ("/etc", "../other", "a/../../b", "..", "")


@pytest.mark.parametrize(
    ("stage", "field"),
    [
        ("finetune", "weights"),
        ("finetune", "origin"),
        ("finetune", "averaged_with"),
        ("align", "adapters"),
        ("align", "tuned"),
    ],
)
@pytest.mark.parametrize("path", ELSEWHERE, ids=repr)
def test_a_tuned_model_lies_on_the_work_volume(stage: str, field: str, path: str) -> None:
    lists: dict[str, Any] = {"averaged_with": [{"weights": path}], "adapters": ["a", path], "tuned": [path]}
    world = copy.deepcopy(lived(stage))
    for report in reports_of(world):
        body = json.loads(report["message"])
        body["facts"]["model"][field] = lists.get(field, path)
        report["message"] = json.dumps(body)
    world.reconcile()
    assert world.status["stages"][-1]["state"] != "Succeeded"
    messages = [notice.message for notice in world.cluster.events(world.key)]
    assert any("must be a path below the work volume" in message for message in messages)


def test_the_destination_in_the_status_is_that_of_the_spec() -> None:
    world = copy.deepcopy(lived("publish"))
    for report in reports_of(world):
        body = json.loads(report["message"])
        body["facts"]["destination"] = "s3://evil/model"
        report["message"] = json.dumps(body)
    world.live()
    assert world.status["phase"] == "Published"
    assert world.status["output"]["destination"] == "file:///out/model"
    assert "model published to file:///out/model" in str(world.status["conditions"])


def test_an_evaluation_that_reports_about_another_candidate_has_failed() -> None:
    world = copy.deepcopy(lived("evaluate"))
    candidate = world.runs[-1].run.candidate
    for report in reports_of(world):
        body = json.loads(report["message"])
        body["facts"]["candidate"] = "a9-s9"
        report["message"] = json.dumps(body)
    world.reconcile()
    assert any(
        f"its report is about candidate 'a9-s9' and not about {candidate}" in notice.message
        for notice in world.cluster.events(world.key)
    )
    world.live()
    assert world.status["phase"] == "Published"
