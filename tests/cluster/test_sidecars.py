"""Tests a container that a mesh adds to each pod and that never ends, with the real Job controller."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from testcluster.adaptations import STAGES, Adaptation, healthy, make_claim, make_profile
from testcluster.control_plane import ControlPlane
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.operator_process import OperatorProcess
from testcluster.pod_life import Life, ScriptedPod
from testcluster.waiting import eventually

pytestmark = pytest.mark.cluster

SIDECAR = {"name": "proxy", "image": "registry.example/proxy:1"}


def lingers(pod: ScriptedPod) -> Life:
    """A healthy run whose sidecar goes on."""
    life = healthy(pod)
    return life if life.then is None else replace(life, then=replace(life.then, lingers=True))


@pytest.fixture
def place(control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet) -> Iterator[str]:
    make_claim(control_plane, namespace)
    kubelet.script = lingers
    with OperatorProcess(control_plane, [namespace]):
        yield namespace


def test_adaptation_with_endless_sidecars_is_published_and_leaves_no_pod(
    control_plane: ControlPlane, place: str
) -> None:
    profile = make_profile(control_plane, podTemplate={"spec": {"containers": [SIDECAR]}})
    adaptation = Adaptation(control_plane, place, profile)
    adaptation.wait_for_phase("Published")
    assert {stage["try"] for stage in adaptation.status["stages"]} == {1}
    assert {stage["name"] for stage in adaptation.status["stages"]} == set(STAGES)
    eventually(lambda: adaptation.children("Pod") == adaptation.children("Job") == [], "the sidecars' end")
