"""The five verbs before an API server in the process."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from dapt_operator.cluster.errors import CannotCreateError, ConflictError, NameTakenError
from dapt_operator.cluster.kubernetes import ApiError, NotLeaderError, RequestRefusedError
from dapt_operator.cluster.kubernetes import cluster as adapter_module
from dapt_operator.cluster.port import Event, Key, ObjectReference
from dapt_operator.launchers import indexed_job
from dapt_operator.reconcile import signing_secret
from dapt_operator.stage_run import plain
from support.api_double import Adapter, ApiDouble, Odd
from support.cluster_objects import KEY, adaptation, job, pod, rendered
from support.launch_builders import UID, owner, profile

HEALTH = "/api/v1/namespaces/health"
JOBS = "/apis/batch/v1/namespaces/health/jobs"
RESOURCE = "/apis/dapt.dev/v1alpha1/namespaces/health/domainadaptations/clinical-llama"
FORBIDDEN = Odd(403, {}, b'{"reason":"Forbidden","message":"no right"}')


@pytest.fixture(autouse=True)
def _resource(adapter: Adapter) -> None:
    adapter.add_resource(adaptation())


def version(adapter: Adapter) -> str:
    resource = adapter.cluster.observe(KEY).resource
    assert resource is not None
    return str(resource["metadata"]["resourceVersion"])


# --- observe ---


def test_observing_costs_no_request(adapter: Adapter) -> None:
    world = adapter.cluster.observe(KEY)
    assert world.resource is not None
    assert world.profile is None
    assert world.now.tzinfo is not None
    assert adapter.double.requests == []


def test_what_is_not_there_is_nothing(adapter: Adapter) -> None:
    world = adapter.cluster.observe(Key("health", "another"))
    assert (world.resource, world.profile, world.children.jobs) == (None, None, ())


def put_profile(adapter: Adapter, name: str, default: str | None = None) -> None:
    annotations = {} if default is None else {"dapt.dev/default": default}
    metadata = {"name": name, "uid": name, "resourceVersion": "7", "annotations": annotations}
    adapter.store.put({"kind": "AdaptationProfile", "metadata": metadata, "spec": {}})


def test_the_profile_is_the_one_that_is_named_or_the_only_default(adapter: Adapter) -> None:
    put_profile(adapter, "cpu", "yes")
    put_profile(adapter, "gpu", "true")
    world = adapter.cluster.observe(KEY)
    assert world.profile is not None
    assert (world.profile["metadata"]["name"], world.default_profiles) == ("gpu", ("gpu",))
    put_profile(adapter, "big", "true")
    world = adapter.cluster.observe(KEY)
    assert (world.profile, world.default_profiles) == (None, ("big", "gpu"))
    adapter.store.put(adaptation(10**6, profile="cpu"))
    world = adapter.cluster.observe(KEY)
    assert world.profile is not None
    assert (world.profile["metadata"]["name"], world.default_profiles) == ("cpu", ())


# --- apply ---


def test_an_own_job_is_seen_at_once(adapter: Adapter) -> None:
    config, made = rendered()
    adapter.cluster.apply(KEY, config)
    adapter.cluster.apply(KEY, made)
    world = adapter.cluster.observe(KEY)
    assert [item["metadata"]["name"] for item in world.children.jobs] == [made["metadata"]["name"]]
    assert [str(request) for request in adapter.double.requests] == [
        f"POST {HEALTH}/configmaps",
        f"POST {JOBS}",
    ]
    assert {request.query["fieldManager"] for request in adapter.double.requests} == {"dapt"}


def test_doing_it_twice_is_doing_it_once(adapter: Adapter) -> None:
    token = bytes(32)
    manifests = [*rendered(), *indexed_job.shared(profile(), owner(), 2), signing_secret(owner(), token)]
    for manifest in [*manifests, *manifests]:
        adapter.cluster.apply(KEY, manifest)
    kinds = sorted(item["kind"] for item in adapter.double.objects.values())
    assert kinds == ["ConfigMap", "DomainAdaptation", "Job", "PersistentVolumeClaim", "Secret", "Service"]
    assert adapter.double.sent(r"GET .*/secrets") == [], "there is no right to read Secrets"
    patches = adapter.double.sent("PATCH")
    assert len(patches) == 2, "what is as it should be is not written again"
    assert {request.headers["Content-Type"] for request in patches} == {"application/apply-patch+yaml"}
    assert {(request.query["fieldManager"], request.query["force"]) for request in patches} == {
        ("dapt", "true")
    }


def test_a_second_token_does_not_replace_the_signing_key(adapter: Adapter) -> None:
    adapter.cluster.apply(KEY, signing_secret(owner(), b"a" * 32))
    first = [item for item in adapter.double.objects.values() if item["kind"] == "Secret"]
    adapter.cluster.apply(KEY, signing_secret(owner(), b"b" * 32))
    assert [item for item in adapter.double.objects.values() if item["kind"] == "Secret"] == first


def test_whether_the_name_of_the_secret_is_free_is_asked_without_creating_or_reading_it(
    adapter: Adapter,
) -> None:
    secret = signing_secret(owner(), bytes(32))
    assert adapter.cluster.can_create(KEY, secret)
    assert adapter.cluster.can_create(KEY, secret), "nothing was stored"
    adapter.cluster.apply(KEY, secret)
    assert not adapter.cluster.can_create(KEY, secret)
    assert [(request.method, request.query.get("dryRun")) for request in adapter.double.requests] == [
        ("POST", "All"),
        ("POST", "All"),
        ("POST", None),
        ("POST", "All"),
    ]


def test_secret_that_would_be_refused_is_reported_when_its_name_is_asked_for(adapter: Adapter) -> None:
    adapter.double.odd("POST .*/secrets", FORBIDDEN)
    with pytest.raises(CannotCreateError, match="no right"):
        adapter.cluster.can_create(KEY, signing_secret(owner(), bytes(32)))


def taken(adapter: Adapter, manifest: Any) -> str:
    with pytest.raises(NameTakenError) as raised:
        adapter.cluster.apply(KEY, manifest)
    assert raised.value.kind == manifest["kind"]
    return raised.value.why


def place(adapter: Adapter, manifest: Any, **changes: Any) -> None:
    """Somebody's object of our name."""
    path = f"{JOBS}/" if manifest["kind"] == "Job" else f"{HEALTH}/configmaps/"
    theirs = plain(manifest)
    theirs["metadata"] |= changes
    adapter.double.add(path + manifest["metadata"]["name"], theirs)


@pytest.mark.parametrize("index", [0, 1], ids=["ConfigMap", "Job"])
def test_apply_reports_the_owner_of_a_foreign_object_with_our_name(adapter: Adapter, index: int) -> None:
    manifest = rendered()[index]
    place(adapter, manifest, ownerReferences=[])
    assert taken(adapter, manifest) == "it has no owner"
    other = {"kind": "CronJob", "name": "nightly", "uid": "c", "controller": True}
    place(adapter, manifest, ownerReferences=[other])
    assert taken(adapter, manifest) == "it belongs to CronJob nightly"
    older = {"kind": "DomainAdaptation", "name": "clinical-llama", "uid": "older", "controller": True}
    place(adapter, manifest, ownerReferences=[older], deletionTimestamp="2026-01-31T12:00:00Z")
    assert taken(adapter, manifest) == "it belongs to DomainAdaptation clinical-llama and is being deleted"
    place(adapter, manifest, deletionTimestamp="2026-01-31T12:00:00Z")
    assert taken(adapter, manifest) == "it is being deleted, wait until it is gone"
    assert adapter.cluster.observe(KEY).children.jobs == ()


def test_apply_refuses_an_existing_config_map_with_other_content(adapter: Adapter) -> None:
    config = rendered()[0]
    place(adapter, config | {"data": {"stage.json": "{}"}})
    assert taken(adapter, config) == "its content is not what was written"


def test_apply_waits_for_an_object_that_is_being_deleted(adapter: Adapter) -> None:
    adapter.double.odd("POST", Odd(409, {}, b'{"reason":"AlreadyExists"}'))
    assert taken(adapter, rendered()[1]) == "it is being deleted"
    adapter.cluster.apply(KEY, rendered()[1])
    assert len(adapter.cluster.observe(KEY).children.jobs) == 1


@pytest.mark.parametrize("odd", [Odd(cut=True, after_effect=True), Odd(500, {}, b"?", after_effect=True)])
def test_apply_adopts_the_job_whose_create_response_was_lost(adapter: Adapter, odd: Odd) -> None:
    adapter.double.odd("POST", odd)
    adapter.cluster.apply(KEY, rendered()[1])
    assert len(adapter.cluster.observe(KEY).children.jobs) == 1
    assert [request.method for request in adapter.double.requests] == ["POST", "POST", "GET"]


def test_a_claim_that_cannot_be_changed_any_more_serves_as_it_is(
    adapter: Adapter, caplog: pytest.LogCaptureFixture
) -> None:
    claim = indexed_job.shared(profile(), owner(), 1)[0]
    adapter.cluster.apply(KEY, claim)
    adapter.double.odd("PATCH", Odd(422, {}, b'{"reason":"Invalid","message":"spec is immutable"}'))
    with caplog.at_level(logging.WARNING):
        adapter.cluster.apply(KEY, plain(claim) | {"spec": {"accessModes": ["ReadWriteOnce"]}})
    assert caplog.messages == [
        "PersistentVolumeClaim health/clinical-llama-0b7c8a52-work stays as it is: spec is immutable"
    ]


def test_what_the_server_refuses_is_raised_with_its_sentence(adapter: Adapter) -> None:
    adapter.double.odd("POST", FORBIDDEN)
    of = rendered()[1]
    with pytest.raises(
        CannotCreateError, match=f"^the cluster refuses Job {of['metadata']['name']}: no right"
    ):
        adapter.cluster.apply(KEY, of)


def test_apply_reports_how_to_fix_a_kind_that_is_not_installed(adapter: Adapter) -> None:
    adapter.double.odd("POST", Odd(404, {"Content-Type": "text/plain"}, b"404 page not found\n"))
    of = rendered()[1] | {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet"}
    with pytest.raises(
        CannotCreateError, match="JobSet is not installed here; install it, or give the profile the launcher"
    ):
        adapter.cluster.apply(KEY, of)


def test_a_server_in_trouble_refuses_nothing(adapter: Adapter) -> None:
    adapter.double.odd("POST", Odd(404, {}, b'{"reason":"NotFound","message":"namespaces health not found"}'))
    with pytest.raises(ApiError, match="namespaces health not found"):
        adapter.cluster.apply(KEY, rendered()[1])


def test_apply_reports_whether_it_has_created_the_object(adapter: Adapter) -> None:
    manifests = [*rendered(), *indexed_job.shared(profile(), owner(), 2), signing_secret(owner(), bytes(32))]
    assert [adapter.cluster.apply(KEY, manifest) for manifest in manifests] == [True] * 5
    assert [adapter.cluster.apply(KEY, manifest) for manifest in manifests] == [False] * 5


@pytest.mark.parametrize("index", [0, 1], ids=["PersistentVolumeClaim", "Service"])
def test_shared_object_of_somebody_else_is_reported_and_never_taken(adapter: Adapter, index: int) -> None:
    manifest = indexed_job.shared(profile(), owner(), 2)[index]
    plural = ("persistentvolumeclaims", "services")[index]
    metadata = {"name": manifest["metadata"]["name"], "namespace": "health"}
    theirs = adapter.double.add(f"{HEALTH}/{plural}/{metadata['name']}", {**manifest, "metadata": metadata})
    assert taken(adapter, manifest) == "it has no owner"
    assert adapter.double.sent("PATCH") == []
    assert adapter.double.objects[f"{HEALTH}/{plural}/{metadata['name']}"] == theirs


def test_shared_object_that_differs_is_applied_again(adapter: Adapter) -> None:
    service = plain(indexed_job.shared(profile(), owner(), 2)[1])
    adapter.cluster.apply(KEY, service)
    service["spec"]["ports"][0]["port"] = 29501
    assert not adapter.cluster.apply(KEY, service)
    assert len(adapter.double.sent("PATCH")) == 2


def test_claim_that_was_taken_from_its_owner_is_still_ours(adapter: Adapter) -> None:
    claim = plain(indexed_job.shared(profile(), owner(), 1)[0])
    path = f"{HEALTH}/persistentvolumeclaims/{claim['metadata']['name']}"
    adapter.double.add(path, claim | {"metadata": claim["metadata"] | {"ownerReferences": []}})
    assert not adapter.cluster.apply(KEY, claim)
    assert adapter.double.objects[path]["metadata"]["ownerReferences"] == claim["metadata"]["ownerReferences"]


def test_job_of_another_spec_that_no_watch_has_reported_is_observed_and_not_adopted(adapter: Adapter) -> None:
    made = rendered()[1]
    metadata = plain(made["metadata"])
    metadata["annotations"]["dapt.dev/generation"] = "1"
    adapter.double.add(f"{JOBS}/{made['metadata']['name']}", made | {"metadata": metadata})
    with pytest.raises(ConflictError, match="created from another spec or profile"):
        adapter.cluster.apply(KEY, made)
    (seen,) = adapter.cluster.observe(KEY).children.jobs
    assert seen["metadata"]["annotations"]["dapt.dev/generation"] == "1"


# --- what live runs use ---


def test_objects_of_live_runs_are_looked_at_once_an_interval(adapter: Adapter) -> None:
    now = 1000.0
    adapter.clock = lambda: now
    assert not adapter.cluster.observe(KEY).is_check_due
    now += 599.0
    assert not adapter.cluster.observe(KEY).is_check_due
    now += 1.0
    assert adapter.cluster.observe(KEY).is_check_due
    assert not adapter.cluster.observe(KEY).is_check_due


def test_objects_of_runs_that_another_process_has_left_are_looked_at_at_once(adapter: Adapter) -> None:
    adapter.store.put(job())
    assert adapter.cluster.observe(KEY).is_check_due
    assert not adapter.cluster.observe(KEY).is_check_due


@pytest.mark.parametrize("odd", [FORBIDDEN, Odd(503)])
def test_objects_that_could_not_be_made_again_are_looked_at_once_more(adapter: Adapter, odd: Odd) -> None:
    adapter.store.put(job())
    assert adapter.cluster.observe(KEY).is_check_due
    adapter.double.odd("PATCH", *[odd] * 4)
    with pytest.raises((CannotCreateError, ApiError)):
        adapter.cluster.apply(KEY, indexed_job.shared(profile(), owner(), 2)[1])
    assert adapter.cluster.observe(KEY).is_check_due


# --- delete ---


def test_a_job_goes_with_its_pods(adapter: Adapter) -> None:
    of = rendered()[1]
    adapter.cluster.apply(KEY, of)
    uid = adapter.cluster.observe(KEY).children.jobs[0]["metadata"]["uid"]
    adapter.cluster.delete(KEY, ObjectReference("Job", of["metadata"]["name"]))
    (request,) = adapter.double.sent("DELETE")
    assert request.body["propagationPolicy"] == "Foreground"
    assert request.body["preconditions"] == {"uid": uid}
    adapter.cluster.delete(KEY, ObjectReference("Job", of["metadata"]["name"]))  # it is gone: no effect


def test_job_that_is_being_deleted_is_seen_so_at_once(adapter: Adapter) -> None:
    of = rendered()[1]
    adapter.cluster.apply(KEY, of)
    adapter.double.slow_deletions = True
    adapter.cluster.delete(KEY, ObjectReference("Job", of["metadata"]["name"]))
    (seen,) = adapter.cluster.observe(KEY).children.jobs
    assert seen["metadata"]["deletionTimestamp"]


def test_conflict_at_a_deletion_does_not_mean_that_the_job_is_gone(adapter: Adapter) -> None:
    of = rendered()[1]
    adapter.cluster.apply(KEY, of)
    adapter.double.odd("DELETE", Odd(409, {}, b'{"reason":"Conflict"}'))
    adapter.cluster.delete(KEY, ObjectReference("Job", of["metadata"]["name"]))
    assert len(adapter.cluster.observe(KEY).children.jobs) == 1


@pytest.mark.parametrize("is_there", [True, False])
def test_job_that_is_gone_is_not_seen_any_more(adapter: Adapter, is_there: bool) -> None:
    of = rendered()[1]
    adapter.cluster.apply(KEY, of)
    if not is_there:
        del adapter.double.objects[f"{JOBS}/{of['metadata']['name']}"]
    adapter.cluster.delete(KEY, ObjectReference("Job", of["metadata"]["name"]))
    assert adapter.cluster.observe(KEY).children.jobs == ()
    assert adapter.woken == [KEY], "whatever waits for its end goes on"


def test_a_pod_can_be_killed_at_once(adapter: Adapter) -> None:
    of = job()
    adapter.store.put(of)
    peer = pod(of, 1)
    adapter.store.put(peer)
    name = peer["metadata"]["name"]
    adapter.double.add(f"{HEALTH}/pods/{name}", peer)
    adapter.cluster.delete(KEY, ObjectReference("Pod", name, grace_seconds=0))
    (request,) = adapter.double.requests
    assert request.body["gracePeriodSeconds"] == 0
    assert request.body["preconditions"] == {"uid": peer["metadata"]["uid"]}
    assert f"{HEALTH}/pods/{name}" not in adapter.double.objects


def test_delete_leaves_foreign_objects(adapter: Adapter) -> None:
    config, foreign = rendered()
    place(adapter, config, ownerReferences=[])
    place(
        adapter,
        foreign,
        ownerReferences=[{"kind": "CronJob", "name": "nightly", "uid": "c", "controller": True}],
    )
    for reference in (
        ObjectReference("ConfigMap", config["metadata"]["name"]),
        ObjectReference("Job", foreign["metadata"]["name"]),
        ObjectReference("Pod", "somebody"),
        ObjectReference("Service", "not-there"),
    ):
        adapter.cluster.delete(KEY, reference)
    assert adapter.double.sent("DELETE") == []


def test_delete_reads_an_object_that_is_not_cached_first(adapter: Adapter) -> None:
    config = rendered()[0]
    adapter.cluster.apply(KEY, config)
    adapter.cluster.delete(KEY, ObjectReference("ConfigMap", config["metadata"]["name"]))
    assert [request.method for request in adapter.double.requests] == ["POST", "GET", "DELETE"]
    assert not [path for path in adapter.double.objects if "configmaps" in path]


def test_an_object_that_was_replaced_in_between_is_spared(adapter: Adapter) -> None:
    of = rendered()[1]
    adapter.cluster.apply(KEY, of)
    del adapter.double.objects[f"{JOBS}/{of['metadata']['name']}"]
    place(adapter, of, uid="another")
    adapter.cluster.delete(KEY, ObjectReference("Job", of["metadata"]["name"]))
    assert f"{JOBS}/{of['metadata']['name']}" in adapter.double.objects


# --- write_status ---


def test_a_status_is_written_with_its_version_and_seen_at_once(adapter: Adapter) -> None:
    before = version(adapter)
    adapter.cluster.write_status(KEY, {"phase": "Training"}, before)
    world = adapter.cluster.observe(KEY)
    assert world.resource is not None
    assert world.resource["status"] == {"phase": "Training"}
    assert version(adapter) != before
    (request,) = adapter.double.requests
    assert str(request) == f"PUT {RESOURCE}/status"
    assert request.body["metadata"]["resourceVersion"] == before


def test_after_a_conflict_the_newest_version_is_observed(adapter: Adapter) -> None:
    before = version(adapter)
    newer = adapter.double.objects[RESOURCE] | {"spec": {"suspend": True}}
    adapter.double.add(RESOURCE, newer)
    with pytest.raises(ConflictError, match=r"^health/clinical-llama: the object has been modified$"):
        adapter.cluster.write_status(KEY, {"phase": "Training"}, before)
    world = adapter.cluster.observe(KEY)
    assert world.resource is not None
    assert world.resource["spec"] == {"suspend": True}
    adapter.cluster.write_status(KEY, {"phase": "Training"}, version(adapter))


def test_a_status_whose_answer_was_lost_is_written_and_no_conflict(adapter: Adapter) -> None:
    adapter.double.odd("PUT", Odd(cut=True, after_effect=True))
    adapter.cluster.write_status(KEY, {"phase": "Training"}, version(adapter))
    world = adapter.cluster.observe(KEY)
    assert world.resource is not None
    assert world.resource["status"] == {"phase": "Training"}
    assert [request.method for request in adapter.double.requests] == ["PUT", "PUT", "GET"]


def test_the_status_of_a_resource_that_is_gone_is_a_conflict_and_it_is_gone(adapter: Adapter) -> None:
    before = version(adapter)
    del adapter.double.objects[RESOURCE]
    with pytest.raises(ConflictError, match="is gone"):
        adapter.cluster.write_status(KEY, {"phase": "Training"}, before)
    assert adapter.cluster.observe(KEY).resource is None


def test_a_status_that_the_schema_refuses_is_no_conflict(adapter: Adapter) -> None:
    adapter.double.odd(
        "PUT", Odd(422, {}, b'{"reason":"Invalid","message":"status.phase: Unsupported value"}')
    )
    with pytest.raises(RequestRefusedError, match="Unsupported value"):
        adapter.cluster.write_status(KEY, {"phase": "?"}, version(adapter))


# --- record ---


def test_an_event_names_the_resource_and_who_reports(adapter: Adapter) -> None:
    adapter.cluster.record(KEY, Event("Warning", "StageFailed", 2000 * "ä"))
    (event,) = [item for path, item in adapter.double.objects.items() if "/events/" in path]
    assert event["involvedObject"] | {"resourceVersion": ""} == {
        "apiVersion": "dapt.dev/v1alpha1",
        "kind": "DomainAdaptation",
        "namespace": "health",
        "name": "clinical-llama",
        "uid": UID,
        "resourceVersion": "",
    }
    assert (event["type"], event["reason"], event["count"]) == ("Warning", "StageFailed", 1)
    assert (event["reportingComponent"], event["source"]) == ("dapt", {"component": "dapt"})
    assert event["message"].endswith("ä...")
    assert len(event["message"].encode()) <= 1024


def test_an_event_that_is_sent_twice_is_posted_once(adapter: Adapter) -> None:
    adapter.double.odd("POST", Odd(cut=True, after_effect=True))
    adapter.cluster.record(KEY, Event("Normal", "Started", "it starts"))
    assert len([path for path in adapter.double.objects if "/events/" in path]) == 1


def test_an_event_that_cannot_be_posted_is_logged(adapter: Adapter, caplog: pytest.LogCaptureFixture) -> None:
    adapter.double.odd("POST", FORBIDDEN)
    adapter.cluster.record(KEY, Event("Normal", "Started", "it starts"))
    assert caplog.messages == [
        f"Event Started of health/clinical-llama is not posted: POST {HEALTH}/events: 403 Forbidden: no right"
    ]


# --- may_write ---


def test_without_the_lease_writes_raise_not_leader_and_observe_still_works(adapter: Adapter) -> None:
    of = job()
    adapter.store.put(of)
    adapter.may_write = False
    for verb in (
        lambda: adapter.cluster.apply(KEY, rendered()[0]),
        lambda: adapter.cluster.apply(KEY, indexed_job.shared(profile(), owner(), 2)[1]),
        lambda: adapter.cluster.delete(KEY, ObjectReference("Job", of["metadata"]["name"])),
        lambda: adapter.cluster.write_status(KEY, {}, version(adapter)),
        lambda: adapter.cluster.record(KEY, Event("Normal", "Started", "it starts")),
    ):
        with pytest.raises(NotLeaderError):
            verb()
    assert {request.method for request in adapter.double.requests} == {"GET"}
    assert adapter.cluster.observe(KEY).children.jobs


# --- conditions alone ---


def test_conditions_are_replaced_and_the_rest_of_the_status_stays(adapter: Adapter) -> None:
    status = {"phase": "Pretraining", "ledger": {"odd": 7}, "conditions": [{"type": "Ready"}]}
    adapter.double.add(RESOURCE, adaptation() | {"status": status})
    new = [{"type": "Stalled", "status": "True"}]
    assert adapter.cluster.change_conditions(KEY, lambda stored: new if stored["status"] == status else None)
    assert adapter.double.objects[RESOURCE]["status"] == status | {"conditions": new}
    assert adapter.cluster.observe(KEY).resource["status"]["conditions"] == new  # type: ignore[index]


def test_conditions_that_say_so_already_are_not_written(adapter: Adapter) -> None:
    assert not adapter.cluster.change_conditions(KEY, lambda _: None)
    assert adapter.double.sent("PUT") == []


def test_conditions_do_not_undo_what_was_written_meanwhile(adapter: Adapter) -> None:
    def somebody_writes(stored: Any) -> list[Any]:
        adapter.double.add(RESOURCE, adaptation() | {"status": {"phase": "Published"}})
        return []

    with pytest.raises(ApiError, match="409 Conflict"):
        adapter.cluster.change_conditions(KEY, somebody_writes)
    assert adapter.double.objects[RESOURCE]["status"] == {"phase": "Published"}


# --- resync ---


def test_resync_finds_changes_that_watches_missed(adapter: Adapter) -> None:
    of = rendered()[1]
    adapter.cluster.apply(KEY, of)
    assert adapter.cluster.resync() == set()
    del adapter.double.objects[f"{JOBS}/{of['metadata']['name']}"]
    adapter.double.version += 1
    other = adaptation() | {"metadata": {"name": "other", "namespace": "finance"}}
    adapter.double.add("/apis/dapt.dev/v1alpha1/namespaces/finance/domainadaptations/other", other)
    assert adapter.cluster.resync() == {KEY, Key("finance", "other")}
    assert adapter.cluster.observe(KEY).children.jobs == ()
    assert adapter.cluster.resync() == set()


def test_a_resync_reads_our_objects_alone_and_does_without_jobset(adapter: Adapter) -> None:
    adapter.cluster.resync()
    assert [(str(request), request.query.get("labelSelector")) for request in adapter.double.requests] == [
        ("GET /apis/dapt.dev/v1alpha1/domainadaptations", None),
        ("GET /apis/dapt.dev/v1alpha1/adaptationprofiles", None),
        ("GET /apis/jobset.x-k8s.io/v1alpha2/jobsets", "dapt.dev/adaptation"),
        ("GET /apis/batch/v1/jobs", "dapt.dev/adaptation"),
        ("GET /api/v1/pods", "dapt.dev/adaptation"),
    ]


def test_a_resync_finds_a_profile_that_changed(adapter: Adapter) -> None:
    path = "/apis/dapt.dev/v1alpha1/adaptationprofiles/gpu"
    adapter.double.add(path, {"kind": "AdaptationProfile", "metadata": {"name": "gpu"}, "spec": {}})
    assert adapter.cluster.resync() == {KEY}
    assert adapter.cluster.resync() == set()
    del adapter.double.objects[path]
    adapter.double.version += 1
    assert adapter.cluster.resync() == {KEY}


def test_resync_restarts_a_list_whose_resource_version_expired(adapter: Adapter) -> None:
    adapter.double.odd("GET .*/pods", Odd(410, {}, b'{"reason":"Expired","message":"too old"}'))
    assert adapter.cluster.resync() == set()
    assert len(adapter.double.sent("GET .*/pods")) == 2


def test_a_list_that_fails_leaves_everything_as_it_was(adapter: Adapter) -> None:
    adapter.double.odd("GET", *[Odd(503)] * 4)
    adapter.cluster.resync()
    assert adapter.cluster.observe(KEY).resource is not None
    assert [failure.kind for failure in adapter.cluster.lists.failures()] == [
        "DomainAdaptation",
        "AdaptationProfile",
    ]


def test_namespaces_are_listed_one_by_one(double: ApiDouble, adapter: Adapter) -> None:
    narrow = adapter_module.KubernetesCluster(
        double.connection(), adapter.store, on_change=adapter.woken.append, namespaces=("health", "finance")
    )
    narrow.resync()
    paths = [request.path for request in double.requests]
    assert "/api/v1/namespaces/health/pods" in paths
    assert "/api/v1/namespaces/finance/pods" in paths
    assert "/api/v1/pods" not in paths
    assert "/apis/dapt.dev/v1alpha1/adaptationprofiles" in paths
    assert adapter.store.keys() == (KEY,)
    narrow.close()
