"""Settings of the operator: what is refused, what comes by itself, and how kopf is set."""

from __future__ import annotations

import itertools
import logging

import kopf
import pytest

from dapt_operator.runtime.errors import BadSettingError
from dapt_operator.runtime.logging_setup import OncePerOutage
from dapt_operator.runtime.settings import Options, make_settings
from dapt_operator.runtime.watching.kopf_settings import EndlessPauses, set_kopf


@pytest.fixture(autouse=True)
def outside_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POD_NAMESPACE", raising=False)


def test_settings_error_lists_every_problem() -> None:
    with pytest.raises(BadSettingError) as raised:
        make_settings(
            Options(
                namespaces=["team-a", "Team_B"],
                instance="a/b c",
                lease_namespace="-",
                port=70000,
                workers=0,
                resync_seconds=0.5,
                log_format="xml",
                log_level="loud",
            )
        )
    assert raised.value.problems == (
        "--namespace 'Team_B': not a namespace; give the name of one, and the option again for each further one",
        "--instance 'a/b c': write NAMESPACE/RELEASE, at most 128 characters",
        "--lease-namespace '-': not a namespace",
        "--lease-name 'b c': not the name of an object",
        "--port 70000: a port is 1 to 65535, or 0 for any free one",
        "--workers 0: give a number from 1 to 64",
        "--resync-seconds 0.5: give a number from 1 to 3600",
        "--log-format 'xml': give json or text",
        "--log-level 'loud': give debug, info, warning or error",
    )


def test_who_the_operator_is_comes_from_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = make_settings(Options())
    assert (outside.instance, outside.lease_namespace, outside.lease_name) == (
        "default/dapt",
        "default",
        "dapt",
    )
    monkeypatch.setenv("POD_NAMESPACE", "platform")
    inside = make_settings(Options(namespaces=["a", "b", "a"]))
    assert (inside.instance, inside.lease_namespace) == ("platform/dapt", "platform")
    assert inside.namespaces == ("a", "b")
    released = make_settings(Options(instance="platform/second", lease_name="other"))
    assert (released.instance, released.lease_name) == ("platform/second", "other")
    assert make_settings(Options(instance="platform/second")).lease_name == "second"


def test_a_container_that_starts_again_in_its_pod_is_the_same_to_the_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POD_UID", "7b1c")
    assert make_settings(Options()).identity.endswith("_7b1c")


def test_kopf_only_watches() -> None:
    settings = kopf.OperatorSettings()
    set_kopf(settings)
    assert settings.posting.enabled is False
    assert settings.peering.standalone is True
    assert settings.scanning.disabled is True
    body = kopf.Body({"metadata": {"name": "a"}, "spec": {"b": 1}})
    assert settings.persistence.diffbase_storage.build(body=body) == {}
    assert settings.persistence.diffbase_storage.fetch(body=body) is None
    with pytest.raises(AssertionError, match="kopf must not write to an object"):
        settings.persistence.diffbase_storage.store(body=body, patch=kopf.Patch(), essence={})


def test_a_dead_watch_is_noticed_before_the_server_would_have_ended_it() -> None:
    settings = kopf.OperatorSettings()
    set_kopf(settings)
    watching = settings.watching
    assert watching.server_timeout is not None
    assert watching.client_timeout is not None
    assert 60 < watching.inactivity_timeout < watching.server_timeout < watching.client_timeout


def test_kopf_never_gives_up_on_the_api_server() -> None:
    pauses = list(itertools.islice(EndlessPauses(), 1000))
    assert pauses[:3] == [0.2, 0.5, 1.0]
    assert max(pauses) == pauses[-1] == 15.0


def test_of_an_outage_one_line_a_minute_is_logged() -> None:
    now = [0.0]
    keep = OncePerOutage(clock=lambda: now[0])

    def line(message: str) -> bool:
        return keep.filter(logging.LogRecord("kopf", logging.ERROR, "", 0, message, None, None))

    assert line("Request attempt #1 failed; will retry: GET https://registry.example")
    assert not line("Request attempt #2 failed; will retry: GET https://registry.example")
    assert line("something else")
    now[0] = 61.0
    assert line("Request attempt #9 failed; will retry: GET https://registry.example")
