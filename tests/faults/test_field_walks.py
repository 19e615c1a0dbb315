"""Every field of a DomainAdaptation is set to valid and invalid values, and back: nothing crashes, nothing is silent.

A value is refused by the schema, refused in the status, or has an effect: on the status, or on what the stages are
given in the rest of the life. One that has none although the spec means something else is a field that is ignored.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from dapt_contract.pod.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.pretrain import PretrainConfig
from dapt_operator.api.schema import crd
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.testing.objects import Ends, Script, Stays
from support.builders import checkpoint, healthy, merged, pretrain_facts
from support.campaigns import Campaign, chosen
from support.schema_values import ABSENT, Place, at, leaves, refusal, values_of, with_value
from support.worlds import World

SAMPLE = 16
FULL = Path(__file__).parents[1] / "api/full_adaptation.yaml"
CLAIM = {"claimTemplate": {"accessModes": ["ReadWriteOnce"]}, "existingClaim": None}
OFFERED: dict[str, Any] = {
    "accelerator": {"perNode": 4},
    "limits": {"priorityClasses": ["research"]},
    "storage": CLAIM,
}
GPUS_OF_STAGES = {
    "prepare": 0,
    "baseline": 2,
    "evaluate": 2,
    "finetune": 4,
    "align": 1,
    "verify": 2,
    "publish": 0,
}
"""By stage; 0: it takes none."""
PASSING = (
    "lastTransitionTime",
    "observedGeneration",
    "startTime",
    "completionTime",
    "created",
    "generation",
    "digests",
    "digest",
    "run_digest",
)
"""Parts of a status or a stage's configuration that differ without an effect: times, the generation, and digests of the
spec or of whole blocks of it."""


def base_spec() -> dict[str, Any]:
    """A spec with every block, as it fits the profile of the tests.

    Each optional number differs from what an absent one stands for, so that removing it has an effect too.
    """
    full = YAML(typ="safe").load(FULL.read_text())["spec"]
    spec: dict[str, Any] = json.loads(json.dumps(full))
    changes = {
        "profile": "bench",
        "queue": None,
        "model": {"tokenizer": None, "source": "hf://example/base@main"},
        "resources": {"nodes": 1, "gpusPerNode": 2, "cpu": "8", "memory": "32Gi"},
        "selection": {"pin": None, "interpolate": [1.0], "averageLast": 1},
        "evaluation": {"when": "end"},
        "pretraining": {
            "method": {"full": None, "lora": {"rank": 8, "alpha": 24}},
            "budget": {"epochs": None, "steps": 40},
            "checkpoints": {"count": 2},
            "globalBatchSize": 8,
            "microBatchSize": 2,
            "regularization": None,
            "distribution": {"zeroStage": 1, "offload": "optimizer", "precision": "fp32"},
        },
        "finetuning": {"method": {"lora": {"alpha": 48}}, "globalBatchSize": 16, "microBatchSize": 2},
        "preference": {"globalBatchSize": 8},
        "corpus": {"sequenceLength": 128},
        "stageResources": {
            stage: {"cpu": "4", "memory": "16Gi"} | ({"gpus": gpus} if gpus else {})
            for stage, gpus in GPUS_OF_STAGES.items()
        },
        "cleanup": {"afterSeconds": 60},
    }
    return merged(spec, changes)


def spec_schema() -> Mapping[str, Any]:
    (version,) = crd.adaptation_definition()["spec"]["versions"]
    schema: Mapping[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return schema


def new_world(spec: dict[str, Any]) -> World:
    """An adaptation with just this spec, and its first stage."""
    world = World(offered=OFFERED)
    replace_spec(world, spec)
    world.settle()
    return world


def replace_spec(world: World, new: dict[str, Any]) -> None:
    def change(spec: dict[str, Any]) -> None:
        spec.clear()
        spec.update(copy.deepcopy(new))

    world.cluster.edit(world.key, change)


def without_passing(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_passing(item) for name, item in value.items() if name not in PASSING}
    return [without_passing(item) for item in value] if isinstance(value, list) else value


def effects(world: World) -> str:
    """Everything that a spec has led to so far: the status, the objects of all runs, what was deleted, and when."""
    kinds = ("ConfigMap", "Job")
    rendered = [manifest for plan in world.plans for manifest in plan.apply if manifest["kind"] in kinds]
    deleted = [(removal.kind, removal.name) for plan in world.plans for removal in plan.delete]
    status = {name: value for name, value in world.status.items() if name != "ledger"}
    return json.dumps(
        [
            without_passing(status),
            [_content(manifest) for manifest in rendered],
            deleted,
            world.cluster.now.isoformat(),
        ],
        sort_keys=True,
        default=dict,
    )


def _content(manifest: Any) -> Any:
    if manifest["kind"] == "ConfigMap":
        return without_passing(json.loads(manifest["data"]["stage.json"])["config"])
    pod = manifest["spec"]["template"]["spec"]
    containers = [
        {name: value for name, value in container.items() if name != "args"}
        for container in pod["containers"]
    ]
    queue = manifest["metadata"]["labels"].get("kueue.x-k8s.io/queue-name")
    return queue, {name: value for name, value in pod.items() if name != "containers"}, containers


def forgetting(stage: StageFile) -> Ends | Stays:
    """The first attempt is stopped because it forgets, and rolled back; all else goes well."""
    if not isinstance(stage.config, PretrainConfig) or stage.run.attempt > 1:
        return healthy(stage)
    first, *_, last = stage.config.checkpoint_steps
    facts = pretrain_facts([checkpoint(first, 2.9), checkpoint(last, 2.8, 0.7)], "ForgettingLimit")
    return Ends(76, facts=facts, message="past the limit", cause=Cause.FORGETTING_LIMIT)


LIVES: tuple[Script, ...] = (healthy, forgetting)
"""What the pods do in a whole life: a field has an effect in one of them."""


def effects_of_life(spec: dict[str, Any], script: Script) -> str:
    world = new_world(spec)
    world.live(script)
    return effects(world)


class Walker:
    """Takes one field after the other from the base spec to another value and back."""

    def __init__(self) -> None:
        self.base = base_spec()
        self.schema = spec_schema()
        self.settled = new_world(self.base)
        self.unchanged = {script: effects_of_life(self.base, script) for script in LIVES}
        """The effects of the base spec over whole lives."""

    def problem(self, place: Place, value: Any) -> str:
        """Set a field and set it back; return what is wrong, mostly nothing."""
        new = with_value(self.base, place, value)
        if refusal(self.schema, new):
            return ""
        world = copy.deepcopy(self.settled)
        before = effects(world)
        replace_spec(world, new)
        world.settle()
        if world.status.get("observedGeneration") != self._generation(world):
            return "the status is not about the new generation"
        accepted = world.condition("Accepted")
        try:
            meaning = DomainAdaptationSpec.model_validate(new)
        except ValidationError:
            meaning = None
        if meaning is None and accepted[0] == "True":
            return "it is invalid and accepted"
        is_silent = effects(world) == before
        replace_spec(world, self.base)
        world.settle()
        if world.condition("Accepted")[0] != "True":
            return f"back at the old value it is not accepted: {world.condition('Accepted')}"
        if not is_silent or meaning is None or meaning == DomainAdaptationSpec.model_validate(self.base):
            return ""
        if any(effects_of_life(new, script) != known for script, known in self.unchanged.items()):
            return ""
        return "it changes nothing in the whole life"

    @staticmethod
    def _generation(world: World) -> int:
        return int(world.cluster.stored(world.key).resource["metadata"]["generation"])


def shown(value: Any) -> str:
    text = "absent" if value is ABSENT else json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:37]}..."


def case_name(place: Place, value: Any) -> str:
    return f"{'.'.join(map(str, place))} = {shown(value)}"


def test_every_field_of_the_spec_takes_every_kind_of_value_and_back() -> None:
    walker = Walker()
    every_leaf = list(leaves(walker.schema))
    cases = [
        (place, value) for place, node in every_leaf for value in values_of(node, at(walker.base, place))
    ]
    per_leaf = [len(values_of(node, at(walker.base, place))) for place, node in every_leaf]
    assert min(per_leaf) >= 6
    assert 2 * len(cases) >= 1000
    campaign = Campaign("field-walks", "fields of the spec, each to every kind of value and back")
    for place, value in chosen(cases, SAMPLE):
        case = case_name(place, value)
        try:
            problem = walker.problem(place, value)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        campaign.count(case, problem)
    campaign.facts = {"fields": len(every_leaf), "transitions": 2 * campaign.cases}
    campaign.finish()
