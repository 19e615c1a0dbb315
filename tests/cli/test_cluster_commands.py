"""The commands on a cluster, before an API server in the test's own process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dapt_operator.cli import main, main_of_kubectl
from dapt_operator.cluster.kubernetes.resources import KINDS
from support.api_double import ApiDouble, Odd, Request
from support.builders import adaptation, profile
from support.kubeconfigs import write_kubeconfig

NAMESPACE = "health"
PATH = KINDS["DomainAdaptation"].path(NAMESPACE, "clinical")
TIME = "2026-01-31T12:00:00Z"


def condition(type_: str, status: str, reason: str, message: str) -> dict[str, Any]:
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": TIME,
    }


WAITS = condition("Reconciling", "True", "WaitingForNodes", "0/4 nodes are available: 4 Insufficient gpu")
STALLS = condition("Stalled", "True", "BadInput", "notes.jsonl, line 7: no field 'text'")
PUBLISHED = condition("Finished", "True", "Published", "model published to s3://models/clinical")


def resource(name: str = "clinical", *conditions: dict[str, Any], **status: Any) -> dict[str, Any]:
    """An adaptation on the cluster, with what its status says."""
    made = adaptation(name, output={"destination": "s3://models/clinical"})
    made["metadata"] |= {"generation": 1}
    return made | {"status": {"conditions": list(conditions), **status}}


def stage(state: str = "Running", **fields: Any) -> dict[str, Any]:
    return {
        "name": "pretrain",
        "kind": "pretrain",
        "state": state,
        "try": 1,
        "startTime": TIME,
        "runKey": "0" * 64,
    } | fields


def pod(name: str, kind: str, run: str, rank: int, created: str = TIME, **status: Any) -> dict[str, Any]:
    labels = {
        "dapt.dev/adaptation": "clinical",
        "dapt.dev/uid": "uid-of-it",
        "dapt.dev/kind": kind,
        "dapt.dev/attempt": "1",
        "dapt.dev/try": "2" if run.endswith("2") else "1",
        "dapt.dev/run": run,
        "batch.kubernetes.io/job-completion-index": str(rank),
    }
    metadata = {"name": name, "namespace": NAMESPACE, "labels": labels, "creationTimestamp": created}
    return {"kind": "Pod", "metadata": metadata, "status": status}


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiDouble]:
    """A cluster that the kubeconfig names, with its namespace."""
    with ApiDouble() as double:
        path = write_kubeconfig(tmp_path / "kubeconfig", double.url, NAMESPACE)
        monkeypatch.setenv("KUBECONFIG", str(path))
        monkeypatch.chdir(tmp_path)
        yield double


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command; return its exit code, the lines of stdout and those of stderr."""

    def run(*arguments: str) -> tuple[object, list[str], list[str]]:
        with pytest.raises(SystemExit) as end:
            main(arguments)
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out.splitlines(), captured.err.splitlines()

    return run


def write_manifest(path: Path, document: dict[str, Any]) -> None:
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(document, file)


MANIFEST: dict[str, Any] = {
    "apiVersion": "dapt.dev/v1alpha1",
    "kind": "DomainAdaptation",
    "metadata": {"name": "clinical"},
    "spec": {
        "model": {"source": "hf://org/model-8B"},
        "corpus": {
            "domain": [{"source": "s3://text/notes.jsonl"}],
            "general": [{"source": "s3://text/general.jsonl"}],
        },
        "output": {"destination": "s3://models/clinical"},
        "resources": {"nodes": 1, "gpusPerNode": 8},
    },
}


# --- status ---


def test_status_lists_the_adaptations_of_the_context_namespace(api: ApiDouble, call: Any) -> None:
    api.add(
        PATH,
        resource("clinical", WAITS, phase="Pretraining", progress={"fraction": 0.25, "etaSeconds": 7200}),
    )
    code, lines, _ = call("status")
    assert code == 0
    assert lines[0].split() == [
        "NAME",
        "PHASE",
        "REASON",
        "LEFT",
        "PROGRESS",
        "FORGETTING",
        "GAIN",
        "SELECTED",
    ]
    assert lines[1].split()[:3] == ["clinical", "Pretraining", "WaitingForNodes"]
    assert "25 %" in lines[1]


def test_status_of_all_namespaces_names_them(api: ApiDouble, call: Any) -> None:
    api.add(PATH, resource())
    _, lines, _ = call("status", "-A")
    assert [line.split()[0] for line in lines] == ["NAMESPACE", NAMESPACE]


def test_status_of_one_shows_stages_and_the_reason(api: ApiDouble, call: Any) -> None:
    api.add(PATH, resource("clinical", STALLS, phase="Stalled", stages=[stage("Failed", reason="BadInput")]))
    code, lines, _ = call("status", "clinical")
    assert code == 0
    assert lines[0] == "clinical  Stalled"
    assert any(line.split()[:2] == ["✗", "pretrain"] for line in lines)
    assert "BadInput: notes.jsonl, line 7: no field 'text'" in lines


def test_status_shows_how_far_each_stage_is(api: ApiDouble, call: Any) -> None:
    reached = {"fraction": 0.25, "etaSeconds": 90.0, "activity": "tokenizing domain[0]", "time": TIME}
    preparing = stage(name="prepare", kind="prepare", progress=reached)
    api.add(PATH, resource("clinical", WAITS, phase="Preparing", stages=[preparing]))
    _, lines, _ = call("status", "clinical")
    assert any("25 %" in line and "tokenizing domain[0]" in line and "left" in line for line in lines), lines


def test_status_as_json_leaves_the_ledger_out(api: ApiDouble, call: Any) -> None:
    api.add(PATH, resource("clinical", WAITS, phase="Pretraining", ledger={"runs": []}))
    _, lines, _ = call("status", "clinical", "--output", "json")
    shown = json.loads("\n".join(lines))
    assert (shown["metadata"]["name"], shown["status"]["phase"]) == ("clinical", "Pretraining")
    assert "ledger" not in shown["status"]
    _, lines, _ = call("status", "-o", "json")
    assert [item["metadata"]["name"] for item in json.loads("\n".join(lines))["items"]] == ["clinical"]


def test_an_unknown_name_is_answered_with_those_that_exist(api: ApiDouble, call: Any) -> None:
    api.add(PATH, resource())
    assert call("status", "clinicla") == (
        1,
        [],
        [
            "dapt: no adaptation 'clinicla' in namespace health; there are: clinical; name one, give its namespace with"
            " -n, or --local for a run in a folder of this machine"
        ],
    )


def test_options_of_both_worlds_are_refused(api: ApiDouble, call: Any) -> None:
    code, _, errors = call("status", "-n", "team", "--local")
    assert code == 2
    assert errors[0].endswith("give options of one of them")


def test_local_runs_are_shown_where_asked_for(api: ApiDouble, call: Any) -> None:
    assert call("status", "--local")[2] == [
        "dapt: no run in runs; start one with `dapt run MANIFEST`, or give --runs-dir"
    ]
    assert api.requests == []


def test_another_context_brings_its_namespace(api: ApiDouble, call: Any) -> None:
    assert call("status", "--context", "there")[2][0].startswith(
        "dapt: no adaptation in namespace elsewhere;"
    )
    [message] = call("status", "--context", "nowhere")[2]
    assert message.startswith("dapt: no cluster to ask: the kubeconfig")
    assert message.endswith(
        "; set KUBECONFIG to a file that can be used, or work on this machine with `dapt run` and the option --local"
        " of status, report and rejudge"
    )


def test_a_missing_right_is_reported_with_the_servers_message(api: ApiDouble, call: Any) -> None:
    refusal = {"kind": "Status", "reason": "Forbidden", "message": 'User "me" cannot list domainadaptations'}
    api.odd("GET", Odd(403, {}, json.dumps(refusal).encode()))
    assert call("status")[2] == [
        'dapt: cannot list adaptations in namespace health: User "me" cannot list domainadaptations; ask the cluster\'s'
        " administrators for this right"
    ]


# --- submit, suspend, resume, pin ---


def test_submit_creates_and_then_finds_unchanged(api: ApiDouble, call: Any, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.yaml", MANIFEST)
    assert call("submit", "m.yaml") == (0, ["health/clinical: created"], [])
    assert api.objects[PATH]["spec"] == MANIFEST["spec"]
    assert api.sent("PATCH")[0].query == {"fieldManager": "dapt-cli", "force": "true"}
    assert call("submit", "m.yaml")[1] == ["health/clinical: unchanged"]
    write_manifest(tmp_path / "m.yaml", MANIFEST | {"spec": {**MANIFEST["spec"], "suspend": True}})
    assert call("submit", "m.yaml")[1] == [
        "health/clinical: changed; it is suspended, `dapt resume clinical` starts it"
    ]


def test_submit_writes_nothing_when_a_file_has_a_problem(api: ApiDouble, call: Any, tmp_path: Path) -> None:
    write_manifest(tmp_path / "good.yaml", MANIFEST)
    write_manifest(tmp_path / "bad.yaml", MANIFEST | {"spec": {"model": {"source": "file:///models/base"}}})
    code, lines, errors = call("submit", "good.yaml", "bad.yaml")
    assert (code, lines) == (1, [])
    assert all(error.startswith("dapt: bad.yaml: ") for error in errors)
    assert not api.sent("PATCH|POST")


def test_submit_refuses_a_manifest_of_another_namespace(api: ApiDouble, call: Any, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.yaml", MANIFEST | {"metadata": {"name": "clinical", "namespace": "team"}})
    assert call("submit", "m.yaml")[2] == [
        "dapt: m.yaml: metadata.namespace: 'team' is not the namespace of this command (health); give -n team, or"
        " remove the field"
    ]


def test_submit_shows_what_the_api_server_refuses(api: ApiDouble, call: Any, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.yaml", MANIFEST)
    refusal = {"kind": "Status", "reason": "Invalid", "message": "spec.model: frozen since baseline started"}
    api.odd("PATCH", Odd(422, {}, json.dumps(refusal).encode()))
    assert call("submit", "m.yaml")[2] == [
        "dapt: cannot write adaptation clinical in namespace health: spec.model: frozen since baseline started; correct"
        " the field that it names"
    ]


def test_suspend_and_resume_change_that_field_alone(api: ApiDouble, call: Any) -> None:
    api.add(PATH, resource())
    assert call("suspend", "clinical")[1] == [
        "health/clinical: suspended; a running stage saves first, and `dapt resume clinical` continues it"
    ]
    sent = api.sent("PATCH")[0]
    assert (sent.body, sent.headers["Content-Type"]) == (
        {"spec": {"suspend": True}},
        "application/merge-patch+json",
    )
    assert call("resume", "clinical")[1] == ["health/clinical: resumed; `dapt watch clinical` shows it"]
    assert call("resume", "clinical")[1] == ["health/clinical: is not suspended"]


def test_pin_takes_a_candidate_that_exists(api: ApiDouble, call: Any) -> None:
    api.add(PATH, resource(candidates=[{"id": "a1-s10", "attempt": 1}, {"id": "a1-s20", "attempt": 1}]))
    assert call("pin", "clinical", "a1-s30")[2] == [
        "dapt: health/clinical: no candidate 'a1-s30'; there are: a1-s10, a1-s20; name one of them"
    ]
    assert call("pin", "clinical", "a1-s20")[0] == 0
    assert call("pin", "clinical", "--remove")[0] == 0
    assert [request.body["spec"] for request in api.sent("PATCH")] == [
        {"selection": {"pin": "a1-s20"}},
        {"selection": {"pin": None}},
    ]


def test_checkpoints_shows_the_measured_candidates(api: ApiDouble, call: Any) -> None:
    api.add(PATH, resource())
    assert call("checkpoints", "clinical")[2] == [
        "dapt: clinical: no candidate is measured yet; `dapt watch` shows how far it is"
    ]
    api.add(PATH, resource(candidates=[{"id": "a1-s10", "attempt": 1, "forgetting": 0.02, "passes": True}]))
    _, lines, _ = call("checkpoints", "clinical")
    assert lines[1].split()[0] == "a1-s10"
    assert lines[1].split()[-1] == "pass"


# --- profiles ---


def add_profile(api: ApiDouble, name: str, *, is_default: bool = False, **limits: Any) -> None:
    made = profile(name, limits=limits)
    if is_default:
        made["metadata"]["annotations"] = {"dapt.dev/default": "true"}
    api.add(KINDS["AdaptationProfile"].path(None, name), made)


def test_lint_cluster_checks_the_limits_of_the_profile(api: ApiDouble, call: Any, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.yaml", MANIFEST)
    add_profile(api, "small", is_default=True, namespaces=["research"])
    assert call("lint", "m.yaml") == (0, ["m.yaml: ok (DomainAdaptation clinical)"], [])
    assert api.requests == []
    code, _, errors = call("lint", "--cluster", "m.yaml")
    assert code == 1
    assert errors[0] == "dapt: m.yaml: profile small: namespace health may not use it (allowed: research)"


def test_lint_cluster_warns_where_profiles_may_not_be_read(api: ApiDouble, call: Any, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.yaml", MANIFEST)
    api.odd("GET", Odd(403, {}, b'{"kind": "Status", "message": "no right"}'))
    code, lines, errors = call("lint", "--cluster", "m.yaml")
    assert (code, errors) == (0, [])
    assert lines[1] == (
        "m.yaml: warning: the profile's limits are not checked: cannot list profiles in namespace health: no right; ask"
        " the cluster's administrators for this right"
    )


def test_plan_cluster_takes_the_profile_that_the_manifest_names(
    api: ApiDouble, call: Any, tmp_path: Path
) -> None:
    add_profile(api, "bench")
    named = MANIFEST | {
        "spec": MANIFEST["spec"] | {"profile": "bench", "resources": {"nodes": 1, "gpusPerNode": 2}}
    }
    write_manifest(tmp_path / "m.yaml", named)
    _, lines, _ = call("plan", "--cluster", "m.yaml", "--output", "json")
    shown = json.loads("\n".join(lines))
    assert (shown["name"], shown["profile"], shown["estimate"]["worldSize"]) == ("clinical", "bench", 2)
    write_manifest(tmp_path / "m.yaml", MANIFEST | {"spec": MANIFEST["spec"] | {"profile": "none"}})
    assert call("plan", "--cluster", "m.yaml")[2] == [
        "dapt: spec.profile: 'none' is not in the cluster; there are: bench; name one"
    ]


# --- explain and logs ---


def test_explain_says_why_it_waits_and_what_helps(api: ApiDouble, call: Any) -> None:
    made = resource("clinical", WAITS, phase="Pretraining", observedGeneration=1, stages=[stage()])
    made["metadata"] |= {"uid": "uid-of-it", "generation": 2}
    api.add(PATH, made)
    unscheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/4 nodes are available: 4 Insufficient nvidia.com/gpu.",
    }
    pods = KINDS["Pod"]
    api.add(
        pods.path(NAMESPACE, "p-0"),
        pod("p-0", "pretrain", "run-1", 0, phase="Pending", conditions=[unscheduled]),
    )
    event = {
        "kind": "Event",
        "metadata": {"name": "e", "namespace": NAMESPACE},
        "involvedObject": {"kind": "DomainAdaptation", "name": "clinical"},
        "type": "Warning",
        "reason": "StageFailed",
        "message": "pretrain: a node went away",
    }
    api.add(KINDS["Event"].path(NAMESPACE, "e"), event)
    code, lines, _ = call("explain", "clinical")
    assert code == 0
    assert lines[:4] == [
        "health/clinical: in progress",
        "  why:  WaitingForNodes: 0/4 nodes are available: 4 Insufficient gpu",
        "  note: the spec was changed since, and the operator has not reconciled it yet",
        "  next: nothing, if nodes are coming; else free some, or request less in spec.resources",
    ]
    assert "Pods that wait" in lines
    assert any(
        line.startswith("  - p-0 (pretrain): ") and "Insufficient nvidia.com/gpu" in line for line in lines
    )
    assert lines[-1] == "  - StageFailed: pretrain: a node went away"


def test_explain_shows_the_last_lines_of_what_failed(api: ApiDouble, call: Any) -> None:
    failed = stage("Failed", reason="BadInput", message="line 7: no field 'text'", lastLogLines=["a", "b"])
    api.add(PATH, resource("clinical", STALLS, stages=[failed]))
    _, lines, _ = call("explain", "clinical")
    assert lines[0] == f"health/clinical: user action is required (since {TIME})"
    assert lines[-4:] == [
        "Failed stages",
        "  - pretrain: BadInput: line 7: no field 'text'",
        "  -     a",
        "  -     b",
    ]


def test_explain_names_a_slow_rank_with_its_node(api: ApiDouble, call: Any) -> None:
    slow = "rank 3 on node n1 is 1 s behind its peers in each step of 4 s, 0.8 s of it waiting for its rows"
    api.add(PATH, resource("clinical", WAITS, stages=[stage()], progress={"fraction": 0.5, "slowRank": slow}))
    _, lines, _ = call("explain", "clinical")
    at = lines.index("Slow ranks")
    assert lines[at + 1] == (
        f"  - pretrain: {slow}; look at the load, the clock rates and the disk of that node"
    )


def test_explain_tells_of_an_operator_that_does_not_act(api: ApiDouble, call: Any) -> None:
    api.add(PATH, resource())
    assert call("explain", "clinical")[1] == [
        "health/clinical: no operator has reconciled it yet; ask the cluster's administrators whether dapt's operator"
        " runs and watches this namespace"
    ]


def add_pods(api: ApiDouble) -> None:
    made = resource("clinical", stages=[stage()])
    made["metadata"]["uid"] = "uid-of-it"
    api.add(PATH, made)
    for name, kind, run, rank, created in (
        ("prep-0", "prepare", "run-p1", 0, "2026-01-31T11:00:00Z"),
        ("train-a-0", "pretrain", "run-t1", 0, "2026-01-31T12:00:00Z"),
        ("train-b-1", "pretrain", "run-t2", 1, "2026-01-31T13:00:00Z"),
        ("train-b-0", "pretrain", "run-t2", 0, "2026-01-31T13:00:01Z"),
    ):
        api.add(KINDS["Pod"].path(NAMESPACE, name), pod(name, kind, run, rank, created))
        api.logs[name] = f"line of {name}\n".encode()


def test_logs_shows_the_ranks_of_the_newest_run(api: ApiDouble, call: Any) -> None:
    add_pods(api)
    assert call("logs", "clinical")[1] == ["[rank 0] line of train-b-0", "[rank 1] line of train-b-1"]
    assert call("logs", "clinical", "--rank", "1", "--tail", "5")[1] == ["line of train-b-1"]
    assert api.sent("/log")[-1].query == {"container": "trainer", "tailLines": "5"}


def test_logs_finds_an_earlier_try_and_another_stage(api: ApiDouble, call: Any) -> None:
    add_pods(api)
    assert call("logs", "clinical", "--stage", "pretrain", "--try", "1")[1] == ["line of train-a-0"]
    assert call("logs", "clinical", "--stage", "prepare")[1] == ["line of prep-0"]
    assert call("logs", "clinical", "-f")[1] == ["line of train-b-0"]
    code, _, errors = call("logs", "clinical", "--stage", "prtrain")
    assert (code, errors[0].split(";")[0]) == (2, "dapt: --stage prtrain: not a kind of stage")


def test_logs_of_pods_that_are_gone_come_from_the_status(api: ApiDouble, call: Any) -> None:
    api.add(
        PATH, resource("clinical", stages=[stage("Failed", lastLogLines=["step 3", "dapt: no space left"])])
    )
    assert call("logs", "clinical")[1] == [
        "the pods of pretrain are gone; the last lines of the rank that failed were:",
        "step 3",
        "dapt: no space left",
    ]
    assert call("logs", "clinical", "--stage", "publish")[2] == [
        "dapt: health/clinical: no run fits; stages that were started: pretrain; leave out an option, or correct it"
    ]


# --- watch and report ---


def test_watch_follows_changes_to_the_end(api: ApiDouble, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dapt_client.updates.PAUSE_SECONDS", 0.0)
    api.add(PATH, resource("clinical", WAITS, phase="Pretraining", stages=[stage()]))
    done = resource(
        "clinical", PUBLISHED, phase="Published", stages=[stage("Succeeded", completionTime=TIME)]
    )

    def finish(request: Request) -> Odd | None:
        # The first watch is cut; what happens meanwhile is found by the next read.
        if request.query.get("watch") and len(api.sent("domainadaptations$")) == 1:
            api.add(PATH, done)
            return Odd(cut=True)
        return None

    api.interfere = finish
    code, lines, errors = call("watch", "clinical")
    assert (code, errors) == (0, [])
    assert "] pretrain: running" in lines[0]
    assert any("] pretrain: done" in line for line in lines)


def test_watch_reads_the_events_of_the_server(
    api: ApiDouble, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.add(PATH, resource("clinical", WAITS, phase="Pretraining", stages=[stage()]))

    def stall(request: Request) -> Odd | None:
        if request.query.get("watch"):
            api.add(PATH, resource("clinical", STALLS, phase="Stalled"))
        return None

    api.interfere = stall
    code, _, errors = call("watch", "clinical")
    assert code == 1
    assert errors == [
        "dapt: health/clinical: BadInput: notes.jsonl, line 7: no field 'text'; next: correct the file and line, or the"
        " field, that the message names, then change the spec or create a new adaptation"
    ]


def test_watch_ends_when_the_adaptation_is_deleted(api: ApiDouble, call: Any) -> None:
    api.add(PATH, resource("clinical", WAITS))

    def delete(request: Request) -> Odd | None:
        if request.query.get("watch"):
            api.remove(PATH)
            api.changes[-1][1]["metadata"]["resourceVersion"] = str(api.version)
        return None

    api.interfere = delete
    code, _, errors = call("watch", "clinical")
    assert (code, errors) == (
        1,
        ["dapt: adaptation clinical was deleted while it was watched; create it again to run it"],
    )


def test_report_is_drawn_from_the_resource_alone(api: ApiDouble, call: Any, tmp_path: Path) -> None:
    api.add(PATH, resource("clinical", STALLS, phase="Stalled", stages=[stage("Failed", reason="BadInput")]))
    assert call("report", "clinical", "--out", "pages") == (0, ["wrote pages/clinical/report.html"], [])
    assert "no field &#39;text&#39;" in (tmp_path / "pages/clinical/report.html").read_text()


def test_a_reason_that_stalls_has_a_next_step() -> None:
    from dapt_client.next_steps import NEXT_STEPS
    from dapt_operator.api.v1alpha1.conditions import REASONS, STALLING

    assert set(STALLING) <= set(NEXT_STEPS) <= set(REASONS)


def test_kubectl_shows_its_own_name_in_the_usage(
    call: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("sys.argv", ["kubectl-dapt", "watch", "--help"])
    with pytest.raises(SystemExit):
        main_of_kubectl()
    assert capsys.readouterr().out.startswith("Usage: kubectl dapt watch")


def test_a_shell_completes_commands(monkeypatch: pytest.MonkeyPatch, call: Any) -> None:
    monkeypatch.setenv("_DAPT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "dapt exp")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert call()[1] == ["explain"]
