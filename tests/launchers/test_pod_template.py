"""Tests what a profile's pod template may set, what is refused, and that no template can break a pod."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kubernetes import client

from dapt_operator.api.validation.pod_defaults import lifted_restrictions
from dapt_operator.api.validation.pod_fields import CONTAINER, METADATA, POD, Owner, Shape, ownership_table
from dapt_operator.api.validation.pod_template import problems
from dapt_operator.api.validation.validate import check
from dapt_operator.api.validation.yaml_source import load
from dapt_operator.launchers import LAUNCHERS
from dapt_operator.stage_run import plain
from support.launch_builders import owner, profile, stage_run
from support.launch_cases import platform

ROOT = Path(__file__).parents[2]
EXAMPLES: dict[Shape, Any] = {
    Shape.BLOCK: {"a": {"b": "c"}},
    Shape.BLOCKS: [{"name": "theirs", "image": "registry.example/side:1"}],
    Shape.TEXT: "theirs",
    Shape.NUMBER: 7,
    Shape.BOOLEAN: True,
    Shape.TEXT_MAP: {"theirs": "value"},
}
RUN = stage_run(nodes=2, secret_names=("dapt-s3",))


def pod_spec(template: Any, launcher: str = "IndexedJob") -> dict[str, Any]:
    """The pod that is made with a template."""
    (*_, gang) = LAUNCHERS[launcher].render(RUN, profile(podTemplate=template), owner())
    spec = plain(gang["spec"])
    if launcher == "JobSet":
        spec = spec["replicatedJobs"][0]["template"]["spec"]
    found: dict[str, Any] = spec["template"]
    return found


def trainer(template: Any) -> dict[str, Any]:
    found: dict[str, Any] = pod_spec(template)["spec"]["containers"][0]
    return found


def with_trainer(**fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "trainer"} | fields]}}


def said(template: Any) -> list[str]:
    """Problems as a user reads them."""
    text = "apiVersion: dapt.dev/v1alpha1\nkind: AdaptationProfile\nmetadata: {name: h100}\nspec:\n"
    text += "  trainerImage: registry.example/trainer:1\n"
    text += "  accelerator: {memoryGiB: 80}\n  storage: {existingClaim: w}\n"
    (document,) = load(text, "m.yaml")
    document.data["spec"]["podTemplate"] = template
    model, found = check(document, local=False)
    assert (model is None) == bool(found)
    return [re.sub(r" \(line \d+\)", "", str(problem)) for problem in found]


@pytest.mark.parametrize(
    ("table", "model"), [(POD, client.V1PodSpec), (CONTAINER, client.V1Container)], ids=["pod", "container"]
)
def test_the_table_has_every_field_of_kubernetes(table: dict[str, Any], model: Any) -> None:
    assert sorted(table) == sorted(model.attribute_map.values())


def test_the_documented_table_is_this_one() -> None:
    page = (ROOT / "docs/profiles.md").read_text()
    table = page.partition("<!-- table of pod_fields.py -->\n")[2].partition("<!-- end -->")[0]
    assert table == ownership_table(), "write pod_fields.ownership_table() into docs/profiles.md"


@pytest.mark.parametrize("name", [name for name, field in POD.items() if field.owner is Owner.OPERATOR])
def test_a_field_of_the_operators_own_is_refused_in_a_pod_and_has_no_effect(name: str) -> None:
    template = {"spec": {name: EXAMPLES[POD[name].shape]}}
    (sentence,) = said(template)
    assert sentence.startswith(f"spec.podTemplate.spec.{name}: ")
    assert sentence.endswith(f"is the operator's own ({POD[name].effect}); remove it")
    assert pod_spec(template) == pod_spec({})


@pytest.mark.parametrize("name", [name for name, field in CONTAINER.items() if field.owner is Owner.OPERATOR])
def test_a_field_of_the_operators_own_is_refused_in_the_trainer_and_has_no_effect(name: str) -> None:
    template = with_trainer(**{name: EXAMPLES[CONTAINER[name].shape]})
    (sentence,) = said(template)
    assert sentence.startswith(f"spec.podTemplate.spec.containers[0].{name}: ")
    assert sentence.endswith(f"is the operator's own ({CONTAINER[name].effect}); remove it")
    assert trainer(template) == trainer({})


@pytest.mark.parametrize("name", [name for name, field in POD.items() if field.owner is Owner.PROFILE])
def test_a_field_of_the_profiles_own_reaches_the_pod_as_written(name: str) -> None:
    value = EXAMPLES[POD[name].shape]
    assert said({"spec": {name: value}}) == []
    found = pod_spec({"spec": {name: value}})["spec"][name]
    if name == "initContainers":  # with the security context that every container gets
        assert [item.pop("securityContext")["capabilities"] for item in found] == [{"drop": ["ALL"]}]
    assert found == value


@pytest.mark.parametrize("name", ["imagePullPolicy", "volumeDevices"])
def test_a_field_of_the_profiles_own_reaches_the_trainer_as_written(name: str) -> None:
    value = EXAMPLES[CONTAINER[name].shape]
    assert said(with_trainer(**{name: value})) == []
    assert trainer(with_trainer(**{name: value}))[name] == value


def test_labels_and_annotations_join_the_runs_own() -> None:
    assert list(METADATA) == ["labels", "annotations"]
    found = pod_spec({"metadata": {"labels": {"zone": "a"}, "annotations": {"team": "ml"}}})["metadata"]
    assert found["annotations"] == pod_spec({})["metadata"]["annotations"] | {"team": "ml"}
    assert found["labels"]["zone"] == "a"
    assert found["labels"].items() > pod_spec({})["metadata"]["labels"].items()


def test_autoscalers_leave_the_node_of_a_running_gang_alone_unless_a_profile_says_otherwise() -> None:
    safe, karpenter = "cluster-autoscaler.kubernetes.io/safe-to-evict", "karpenter.sh/do-not-disrupt"
    assert pod_spec({})["metadata"]["annotations"] == {safe: "false", karpenter: "true"}
    own = pod_spec({"metadata": {"annotations": {safe: "true", "team": "ml"}}})
    assert own["metadata"]["annotations"] == {safe: "true", karpenter: "true", "team": "ml"}


def test_a_platform_that_assigns_user_ids_gets_pods_without_any() -> None:
    (*_, gang) = LAUNCHERS["IndexedJob"].render(RUN, profile(platformAssignsUserIds=True), owner())
    security = plain(gang["spec"])["template"]["spec"]["securityContext"]
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(security)
    assert security["runAsNonRoot"] is True
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}


def test_sidecar_containers_keep_the_restricted_standard() -> None:
    beside = {"name": "exporter", "image": "registry.example/exporter:1"}
    found = pod_spec({"spec": {"containers": [beside]}})["spec"]["containers"]
    assert [item["name"] for item in found] == ["trainer", "exporter"]
    assert found[1]["image"] == "registry.example/exporter:1"
    assert found[1]["securityContext"] == found[0]["securityContext"]


def test_what_belongs_to_both_is_added_field_by_field() -> None:
    template: dict[str, Any] = {
        "spec": {
            "priorityClassName": "low",
            "securityContext": {"fsGroup": 2000},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "volumes": [{"name": "cache", "emptyDir": {}}],
        }
    }
    template["spec"] |= with_trainer(
        env=[{"name": "NCCL_SOCKET_IFNAME", "value": "ib0"}, {"name": "OMP_NUM_THREADS", "value": "3"}],
        envFrom=[{"configMapRef": {"name": "site"}}],
        resources={"limits": {"rdma/hca": "1"}, "claims": [{"name": "nic"}]},
        securityContext={"capabilities": {"add": ["IPC_LOCK"]}},
        volumeMounts=[{"name": "cache", "mountPath": "/cache"}],
    )["spec"]
    assert said(template) == []
    spec, bare = pod_spec(template)["spec"], pod_spec({})["spec"]
    container, bare_container = spec["containers"][0], bare["containers"][0]
    assert spec["priorityClassName"] == "low"
    assert spec["securityContext"] == bare["securityContext"] | {"fsGroup": 2000}
    assert spec["tolerations"] == [*bare["tolerations"], {"key": "gpu", "operator": "Exists"}]
    assert spec["volumes"] == [*bare["volumes"], {"name": "cache", "emptyDir": {}}]
    assert container["env"][:-2] == bare_container["env"]
    assert container["env"][-2:] == template["spec"]["containers"][0]["env"]
    assert container["envFrom"] == [
        {"configMapRef": {"name": "site"}},
        {"prefix": "DAPT_SECRET_0_", "secretRef": {"name": "dapt-s3"}},
    ]
    assert container["resources"] == {
        "limits": {"rdma/hca": "1", "memory": "16Gi"},
        "requests": {"ephemeral-storage": "1280Mi", "memory": "1Gi"},
        "claims": [{"name": "nic"}],
    }
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert container["volumeMounts"][-1] == {"name": "cache", "mountPath": "/cache"}


def test_an_adaptations_priority_class_goes_before_the_templates() -> None:
    run = stage_run(priority_class_name="research")
    template = {"spec": {"priorityClassName": "low"}}
    (*_, job) = LAUNCHERS["IndexedJob"].render(run, profile(podTemplate=template), owner())
    assert job["spec"]["template"]["spec"]["priorityClassName"] == "research"


def test_a_run_without_accelerators_gets_none_from_a_template() -> None:
    asked = {"nvidia.com/gpu": "8", "rdma/hca": "1"}
    template = with_trainer(resources={"limits": asked, "requests": asked})
    assert trainer(template)["resources"] == {
        "limits": {"rdma/hca": "1", "memory": "16Gi"},
        "requests": {"rdma/hca": "1", "ephemeral-storage": "1280Mi", "memory": "1Gi"},
    }


def test_threads_follow_from_a_templates_cpu_request_too() -> None:
    template = with_trainer(resources={"requests": {"cpu": 6}})
    assert {"name": "OMP_NUM_THREADS", "value": "6"} in trainer(template)["env"]


def test_pods_on_the_hosts_network_still_find_each_other_by_name() -> None:
    assert pod_spec({"spec": {"hostNetwork": True}})["spec"]["dnsPolicy"] == "ClusterFirstWithHostNet"
    given_one = {"spec": {"hostNetwork": True, "dnsPolicy": "Default"}}
    assert pod_spec(given_one)["spec"]["dnsPolicy"] == "Default"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (
            {"specs": {}},
            "spec.podTemplate.specs: unknown field; a pod template has metadata and spec",
        ),
        ({"spec": []}, "spec.podTemplate.spec: an empty list is not accepted; must be a block"),
        (
            {"spec": {"nodeSelectors": {"gpu": "h100"}}},
            "spec.podTemplate.spec.nodeSelectors: unknown field; nearest known name is 'nodeSelector'; rename or"
            " remove it",
        ),
        (
            {"spec": {"nodeSelector": {"gpu": 8}}},
            "spec.podTemplate.spec.nodeSelector: a block is not accepted; must be a block of texts",
        ),
        (
            {"spec": {"tolerations": {"key": "gpu"}}},
            "spec.podTemplate.spec.tolerations: a block is not accepted; must be a list of blocks",
        ),
        (
            {"metadata": {"name": "x"}},
            "spec.podTemplate.metadata.name: the Job controller sets this field; write only labels and annotations",
        ),
        (
            {"metadata": {"labels": {"dapt.dev/stage": "x"}}},
            "spec.podTemplate.metadata.labels.dapt.dev/stage: is the operator's own label; remove it",
        ),
        (
            {"spec": {"volumes": [{"name": "work", "emptyDir": {}}]}},
            "spec.podTemplate.spec.volumes[0].name: 'work' is not accepted; one of the operator's own volumes has"
            " this name; choose another",
        ),
        (
            {"spec": {"volumes": [{"emptyDir": {}}]}},
            "spec.podTemplate.spec.volumes[0].name: must be a text: every volume has a name",
        ),
        (
            {"spec": {"volumes": [{"name": "a"}, {"name": "a"}]}},
            "spec.podTemplate.spec.volumes[1].name: 'a' is not accepted; given twice; choose another",
        ),
        (
            {"spec": {"containers": [{"command": ["sh"]}]}},
            "spec.podTemplate.spec.containers[0].name: must be a text: trainer for the container that runs the stage",
        ),
        (
            {"spec": {"containers": [{"name": "side"}]}},
            "spec.podTemplate.spec.containers[0].image: must be a text: a container other than trainer has an image of"
            " its own",
        ),
        (
            {"spec": {"containers": [{"name": "trainer"}, {"name": "trainer"}]}},
            "spec.podTemplate.spec.containers[1].name: 'trainer' is not accepted; given twice; choose another",
        ),
        (
            with_trainer(command=["sh"]),
            "spec.podTemplate.spec.containers[0].command: is the operator's own (the agent is process 1); remove it",
        ),
        (
            with_trainer(env=[{"name": "PET_NNODES", "value": "9"}]),
            "spec.podTemplate.spec.containers[0].env[0].name: 'PET_NNODES' is not accepted; the operator sets this"
            " variable; remove it",
        ),
        (
            with_trainer(env=[{"value": "9"}]),
            "spec.podTemplate.spec.containers[0].env[0].name: must be a text: every variable has a name",
        ),
        (
            with_trainer(volumeMounts=[{"name": "a", "mountPath": "/work/cache"}]),
            "spec.podTemplate.spec.containers[0].volumeMounts[0].mountPath: '/work/cache' is not accepted; the operator"
            " mounts /work, /scratch, /dev/shm, /etc/dapt, /mnt/claims, /mnt/model-cache itself; choose another folder",
        ),
        (
            with_trainer(resources={"requests": {"cpu": "many"}}),
            "spec.podTemplate.spec.containers[0].resources.requests.cpu: 'many' is not accepted; must be a Kubernetes"
            " quantity such as '8', '500m' or '64Gi'",
        ),
        (
            with_trainer(resources={"limits": ["rdma/hca"]}),
            "spec.podTemplate.spec.containers[0].resources.limits: a list of 1 items is not accepted; must be a block",
        ),
    ],
)
def test_refused_pod_template_is_reported_with_its_reason(template: Any, sentence: str) -> None:
    assert said(template) == [sentence]


@pytest.mark.parametrize(
    "folder", ["/", "/dev", "/etc", "/etc/dapt/stage", "/work", "/work/", "/mnt", "/mnt/claims/x"]
)
def test_nothing_is_mounted_on_below_or_over_the_runs_own_folders(folder: str) -> None:
    assert len(said(with_trainer(volumeMounts=[{"name": "a", "mountPath": folder}]))) == 1


@pytest.mark.parametrize("folder", ["/workspace", "/etc/site", "/dev/infiniband", "/cache", "/mnt/other"])
def test_other_folders_are_free(folder: str) -> None:
    assert said(with_trainer(volumeMounts=[{"name": "a", "mountPath": folder}])) == []


def test_every_fault_of_a_forged_template_is_named() -> None:
    found = {".".join(map(str, path)) for path, _, _ in problems(platform().pod_template)}
    assert found == {
        "metadata.labels.dapt.dev/stage",
        "spec.containers.0.image",
        "spec.containers.0.command",
        "spec.containers.0.livenessProbe",
        "spec.containers.0.env.1.name",
    }


NAMES = st.sampled_from(
    [*METADATA, *POD, *CONTAINER, "metadata", "spec", "name", "mountPath", "limits", "x", ""]
)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("trainer") | st.just("work")
)
ODD = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=25,
)
TEMPLATES = st.fixed_dictionaries(
    {"spec": st.fixed_dictionaries({"containers": st.lists(st.fixed_dictionaries({"name": LEAVES}, optional={
        name: ODD for name in CONTAINER if name != "name"}), max_size=2)}, optional={
            name: ODD for name in POD if name != "containers"})},
    optional={"metadata": ODD},
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(NAMES, ODD, max_size=3) | TEMPLATES)
def test_no_template_breaks_or_bends_a_pod(template: Any) -> None:
    list(problems(template))
    lifted_restrictions(profile(podTemplate=template))
    for launcher in LAUNCHERS:
        found, bare = pod_spec(template, launcher), pod_spec({}, launcher)
        for name in (name for name, field in POD.items() if field.owner is Owner.OPERATOR):
            assert found["spec"].get(name) == bare["spec"].get(name)
        ours, bare_ours = found["spec"]["containers"][0], bare["spec"]["containers"][0]
        for name in (name for name, field in CONTAINER.items() if field.owner is Owner.OPERATOR):
            assert ours.get(name) == bare_ours.get(name)
        assert found["metadata"]["labels"].items() >= bare["metadata"]["labels"].items()
        assert found["spec"]["volumes"][: len(bare["spec"]["volumes"])] == bare["spec"]["volumes"]
        variables = {item.get("name"): item for item in ours["env"]}
        assert all(variables[item["name"]] == item for item in bare_ours["env"])
