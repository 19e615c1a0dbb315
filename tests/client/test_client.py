"""The Python client, before an API server in the test's own process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dapt_client import Client, NotPublishedError, UserError, WaitTimeoutError
from dapt_operator.cluster.kubernetes.resources import KINDS
from support.api_double import ApiDouble, Odd, Request
from support.hostile_texts import HOSTILE_TEXTS, assert_inert
from support.kubeconfigs import write_kubeconfig

NAMESPACE = "health"
PATH = KINDS["DomainAdaptation"].path(NAMESPACE, "clinical")
PUBLISHED = ("Finished", "Published", "model published to s3://models/clinical")
STALLED = ("Stalled", "BadInput", "notes.jsonl, line 7: no field 'text'")


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiDouble]:
    with ApiDouble() as double:
        path = write_kubeconfig(tmp_path / "kubeconfig", double.url, NAMESPACE)
        monkeypatch.setenv("KUBECONFIG", str(path))
        yield double


def manifest(**spec: Any) -> dict[str, Any]:
    corpus = {"domain": [{"source": "s3://text/a.jsonl"}], "general": [{"source": "s3://text/b.jsonl"}]}
    return {
        "apiVersion": "dapt.dev/v1alpha1",
        "kind": "DomainAdaptation",
        "metadata": {"name": "clinical"},
        "spec": {
            "model": {"source": "hf://org/model-8B"},
            "corpus": corpus,
            "output": {"destination": "s3://models/clinical"},
            "resources": {"nodes": 1, "gpusPerNode": 8},
            **spec,
        },
    }


def stored(*conditions: tuple[str, str, str], generation: int = 1, observed: int = 1) -> dict[str, Any]:
    made = manifest()
    made["metadata"] |= {"namespace": NAMESPACE, "generation": generation}
    shown = [
        {
            "type": type_,
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": "2026-01-31T12:00:00Z",
        }
        for type_, reason, message in conditions
    ]
    return made | {"status": {"phase": "Running", "observedGeneration": observed, "conditions": shown}}


def change_when_watched(api: ApiDouble, resource: dict[str, Any]) -> None:
    def change(request: Request) -> Odd | None:
        if request.query.get("watch"):
            api.add(PATH, resource)
        return None

    api.interfere = change


def test_a_manifest_is_submitted_from_a_mapping_and_from_a_file(api: ApiDouble, tmp_path: Path) -> None:
    client = Client()
    assert client.submit(manifest(seed=3)) == "clinical"
    assert api.objects[PATH]["spec"]["seed"] == 3
    assert api.sent("PATCH")[0].query["fieldManager"] == "dapt-cli"
    (tmp_path / "m.json").write_text(json.dumps(manifest(seed=4)))
    assert client.submit(tmp_path / "m.json") == "clinical"
    assert api.objects[PATH]["spec"]["seed"] == 4


def test_every_problem_of_a_mapping_is_reported_at_once_without_lines(api: ApiDouble) -> None:
    with pytest.raises(UserError) as caught:
        Client().submit(manifest(seed="three", nonsense=1))
    assert [problem.partition(": ")[2].split(":")[0] for problem in caught.value.problems] == [
        "spec.nonsense",
        "spec.seed",
    ]
    assert not api.sent("PATCH")


def test_one_adaptation_is_submitted_at_a_time(api: ApiDouble, tmp_path: Path) -> None:
    first = manifest()
    second = {**first, "metadata": {**first["metadata"], "name": "another"}}
    (tmp_path / "two.yaml").write_text(f"{json.dumps(first)}\n---\n{json.dumps(second)}\n")
    with pytest.raises(UserError, match="the manifest has 2 adaptations; submit one at a time"):
        Client().submit(tmp_path / "two.yaml")
    assert not api.sent("PATCH")


def test_a_status_is_the_model_of_the_api(api: ApiDouble) -> None:
    api.add(PATH, stored(STALLED))
    client = Client()
    assert client.status("clinical").conditions[0].reason == "BadInput"
    assert {name: status.phase for name, status in client.statuses().items()} == {"clinical": "Running"}
    assert Client(context="there").namespace == "elsewhere"
    with pytest.raises(UserError, match="no adaptation 'clinicla' in namespace health; there are: clinical"):
        client.status("clinicla")


def test_wait_returns_once_the_model_is_published(api: ApiDouble) -> None:
    api.add(PATH, stored())
    change_when_watched(api, stored(PUBLISHED))
    seen: list[int] = []
    status = Client().wait("clinical", on_update=lambda status: seen.append(len(status.conditions)))
    assert status.conditions[0].reason == "Published"
    assert seen == [0, 1]


def test_wait_raises_when_user_action_is_required(api: ApiDouble) -> None:
    api.add(PATH, stored(STALLED))
    with pytest.raises(NotPublishedError, match=r"health/clinical: BadInput: .* line 7: .*; next: correct"):
        Client().wait("clinical")


def test_what_a_client_raises_steers_no_terminal(api: ApiDouble) -> None:
    for text in (text for text in HOSTILE_TEXTS if text.isascii()):
        api.add(PATH, stored(("Stalled", "BadInput", text)))
        with pytest.raises(NotPublishedError) as caught:
            Client().wait("clinical")
        assert_inert(str(caught.value))


def test_wait_does_not_take_an_end_from_before_the_last_change(api: ApiDouble) -> None:
    api.add(PATH, stored(STALLED, generation=2, observed=1))
    change_when_watched(api, stored(PUBLISHED, generation=2, observed=2))
    assert Client().wait("clinical").conditions[0].reason == "Published"


def test_wait_ends_when_its_time_is_over(api: ApiDouble) -> None:
    api.add(PATH, stored())
    with pytest.raises(WaitTimeoutError, match="not ended after 0 s, phase Running; it continues"):
        Client().wait("clinical", timeout_seconds=0)


def test_the_report_is_written_below_the_folder(api: ApiDouble, tmp_path: Path) -> None:
    api.add(PATH, stored(STALLED))
    page = Client().report("clinical", tmp_path / "pages")
    assert page == tmp_path / "pages/clinical/report.html"
    assert "no field &#39;text&#39;" in page.read_text()
