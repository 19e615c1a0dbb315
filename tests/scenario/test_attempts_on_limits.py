"""What a tenant may write to get more than a profile offers: each attempt starts nothing and is named in the status."""

from __future__ import annotations

from typing import Any

import pytest

from support.builders import merged
from support.worlds import World

OFFERED: dict[str, Any] = {
    "limits": {
        "nodes": 2,
        "gpuHours": 100,
        "namespaces": ["health", "team-*"],
        "sources": ["s3://corpora/team/*", "pvc://data/*", "hf://org/*"],
        "destinations": ["s3://out/team/*", "pvc://results/*"],
        "secretNames": ["dapt-team-*"],
        "priorityClasses": ["research"],
    },
    "storage": {"existingClaim": "work"},
    "modelCache": {"existingClaim": "models"},
}
WITHIN: dict[str, Any] = {
    "model": {"source": "hf://org/base@0e9e39f"},
    "corpus": {
        "domain": [{"source": "s3://corpora/team/d.jsonl"}],
        "general": [{"source": "pvc://data/g.jsonl"}],
    },
    "evaluation": {
        "domain": {"tasks": [{"name": "codes", "source": "s3://corpora/team/codes.jsonl"}]},
        "general": {"tasks": [{"name": "general", "source": "s3://corpora/team/general.jsonl"}]},
    },
    "finetuning": {"data": [{"source": "s3://corpora/team/i.jsonl"}]},
    "output": {"destination": "s3://out/team/model"},
}


def source(address: str) -> dict[str, Any]:
    return {"corpus": {"domain": [{"source": address}]}}


def task(address: str) -> dict[str, Any]:
    return {"evaluation": {"domain": {"tasks": [{"name": "codes", "source": address}]}}}


def stage(name: str, **own: Any) -> dict[str, Any]:
    return {"stageResources": {name: own}}


def secret(name: str) -> dict[str, Any]:
    return {"credentials": [{"secretName": name, "use": "read"}]}


def destination(address: str) -> dict[str, Any]:
    return {"output": {"destination": address}}


ATTEMPTS: dict[str, tuple[dict[str, Any], str]] = {
    "more nodes": ({"resources": {"nodes": 3}}, "spec.resources.nodes is 3; at most 2"),
    "a thousand nodes": ({"resources": {"nodes": 1000}}, "spec.resources.nodes is 1000; at most 2"),
    "more GPUs a node": ({"resources": {"gpusPerNode": 4}}, "spec.resources.gpusPerNode is 4; a node has 2"),
    "more GPU-hours": ({"limits": {"gpuHours": 101}}, "spec.limits.gpuHours is 101; at most 100"),
    "GPUs of baseline": (stage("baseline", gpus=3), "spec.stageResources.baseline.gpus is 3"),
    "GPUs of evaluate": (stage("evaluate", gpus=8), "spec.stageResources.evaluate.gpus is 8"),
    "GPUs of finetune": (stage("finetune", gpus=3), "spec.stageResources.finetune.gpus is 3"),
    "GPUs of align": (stage("align", gpus=3), "spec.stageResources.align.gpus is 3"),
    "GPUs of verify": (stage("verify", gpus=3), "spec.stageResources.verify.gpus is 3"),
    "another bucket": (source("s3://others/d.jsonl"), "source s3://others/d.jsonl is not allowed"),
    "a prefix that looks the same": (source("s3://corpora/team-b/d.jsonl"), "is not allowed"),
    "a path that leads out": (source("s3://corpora/team/../b/d.jsonl"), "'..'"),
    "an encoded path that leads out": (source("s3://corpora/team/%2e%2e/b.jsonl"), "encoded"),
    "an encoded slash": (source("s3://corpora/team/..%2fb.jsonl"), "encoded"),
    "a double slash": (source("s3://corpora/team//b.jsonl"), "is not allowed"),
    "a chained address": (source("s3://corpora/team/x.zip::s3://others/b"), "'::'"),
    "another claim": (source("pvc://secrets/d.jsonl"), "source pvc://secrets/d.jsonl is not allowed"),
    "a claim that leads out": (source("pvc://data/../secrets/d.jsonl"), "'..'"),
    "another organization": (source("hf://datasets/org/d@main/d.jsonl"), "is not allowed"),
    "upper case": (source("S3://others/d.jsonl"), "spec.corpus.domain[0].source"),
    "the metadata server": (source("http://169.254.169.254/latest"), "spec.corpus.domain[0].source"),
    "a file of the node": (source("file:///etc/shadow"), "is not allowed"),
    "another model": ({"model": {"source": "hf://other/base@0e9e39f"}}, "is not allowed"),
    "a model from another bucket": ({"model": {"source": "s3://others/base"}}, "is not allowed"),
    "a task from another bucket": (task("s3://others/codes.jsonl"), "is not allowed"),
    "a task of the harness": (
        {"evaluation": {"general": {"tasks": [{"name": "hellaswag"}]}}},
        "task hellaswag reads data sets of the hub",
    ),
    "tuning data from another bucket": (
        {"finetuning": {"data": [{"source": "s3://others/i.jsonl"}]}},
        "source s3://others/i.jsonl is not allowed",
    ),
    "pairs from another bucket": (
        {"preference": {"data": [{"source": "s3://others/p.jsonl"}]}},
        "source s3://others/p.jsonl is not allowed",
    ),
    "probes from another bucket": (
        {"evaluation": {"probes": {"domain": [{"source": "s3://others/p.jsonl"}]}}},
        "is not allowed",
    ),
    "another destination": (destination("s3://others/model"), "destination s3://others/model is not allowed"),
    "a destination that leads out": (destination("s3://out/team/../b"), "'..'"),
    "a destination with a like prefix": (destination("s3://out/team-b/model"), "is not allowed"),
    "the hub as destination": (destination("hf://org/model"), "is not allowed"),
    "the work claim": (destination("pvc://work/model"), "is not allowed"),
    "the model cache": (destination("pvc://models/base"), "is not allowed"),
    "the root of a claim": (destination("pvc://results/"), "spec.output.destination"),
    "another team's Secret": (secret("dapt-b-s3"), "Secret dapt-b-s3 is not allowed"),
    "a Secret of the platform": (secret("registry"), "Secret registry is not allowed"),
    "the signing key": (secret("dapt-team-0123abcd-signing"), "signs checkpoints"),
    "a priority class": (
        {"priorityClassName": "system-node-critical"},
        "spec.priorityClassName system-node-critical is not allowed",
    ),
    "memory of exabytes": (stage("prepare", memory="8Ei"), "spec.stageResources.prepare.memory"),
    "another profile's name": ({"profile": "admins"}, "admins"),
}
LEAST_ATTEMPTS = 40


def test_the_attempts_are_many() -> None:
    assert len(ATTEMPTS) >= LEAST_ATTEMPTS


def test_what_is_within_the_limits_runs() -> None:
    world = World(WITHIN, offered=OFFERED)
    world.live()
    assert world.status["phase"] == "Published"


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_on_a_limit_starts_nothing_and_is_named(name: str) -> None:
    change, said = ATTEMPTS[name]
    world = World(merged(WITHIN, change), offered=OFFERED)
    world.settle()
    assert world.cluster.objects(world.key, "Job") == []
    conditions = {item["type"]: item for item in world.status["conditions"]}
    assert conditions["Accepted"]["status"] == "False"
    assert said in conditions["Accepted"]["message"]
