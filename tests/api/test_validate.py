"""Validation accepts what it should, and reports every problem word for word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapt_contract.inputs.harness import unknown_task_message
from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.api.validation.unsupported import ADAPTATION, PROFILE, unsupported_messages
from dapt_operator.api.validation.validate import check
from dapt_operator.api.validation.yaml_source import YamlDocument, load

HERE = Path(__file__).parent

LINES = (
    "apiVersion: dapt.dev/v1alpha1",
    "kind: DomainAdaptation",
    "metadata: {name: clinical}",
    "spec:",
    "  model: {source: hf://org/base@1}",
    "  corpus: {domain: [{source: s3://c/d.jsonl}], general: [{source: s3://c/g.jsonl}]}",
    "  output: {destination: s3://models/clinical}",
    "  resources: {nodes: 1}",
)
"""A valid manifest; a fragment replaces one of its lines or is added as line 9."""

PROFILE_LINES = (
    "apiVersion: dapt.dev/v1alpha1",
    "kind: AdaptationProfile",
    "metadata: {name: h100}",
    "spec:",
    "  trainerImage: registry.example/trainer:1",
    "  accelerator: {memoryGiB: 80}",
    "  storage: {existingClaim: work}",
)


def manifest(lines: tuple[str, ...], fragment: str) -> str:
    """The lines with `fragment` in place of the line whose field it names, or after the last."""
    field = fragment.split(":")[0]
    kept = [fragment if line.split(":")[0] == field else line for line in lines]
    return "\n".join(kept if fragment in kept else [*kept, fragment])


def problems(text: str, *, local: bool = False) -> list[str]:
    (document,) = load(text, "m.yaml")
    model, found = check(document, local=local)
    assert (model is None) == bool(found)
    return [str(problem) for problem in found]


SOURCE = "hf://datasets/ORG/NAME@REVISION/FILES, s3://BUCKET/FILES, gs://BUCKET/FILES, pvc://CLAIM/FILES or file://FILES"
OUT = ", or leave the field out"

INVALID = {
    "an unknown field gets the nearest name": (
        "  gates: {patiance: 3}",
        "spec.gates.patiance (line 9): unknown field; nearest known name is 'patience'; rename or remove it",
    ),
    "a Python name gets the YAML name": (
        "  gates: {on_breach: Warn}",
        "spec.gates.on_breach (line 9): unknown field; nearest known name is 'onBreach'; rename or remove it",
    ),
    "a field in the wrong block is sent to its own": (
        "  learningRate: 1.0e-5",
        "spec.learningRate (line 9): unknown field here; it is known as spec.pretraining.optimizer.learningRate;"
        " move it there",
    ),
    "a field that resembles nothing gets the list": (
        "  pretraining: {schedule: {zzz: 1}}",
        "spec.pretraining.schedule.zzz (line 9): unknown field; known here: type, warmupFraction, minimumRatio;"
        " remove it",
    ),
    "a field in a block that has none": (
        "  pretraining: {method: {full: {zzz: 8}}}",
        "spec.pretraining.method.full.zzz (line 9): unknown field; this block has no fields; remove it",
    ),
    "a misspelled required field is one problem": (
        "  model: {sorce: hf://org/base}",
        "spec.model.sorce (line 5): unknown field; nearest known name is 'source'; rename or remove it",
    ),
    "a number with a comma within braces is no shorter number": (
        "  pretraining: {budget: {tokens: 10,000}}",
        "spec.pretraining.budget.000 (line 9): a comma within braces ends a value: write a number without commas, such"
        " as 10000000 or 1.5",
    ),
    "an unknown field without a value is refused too": (
        "  pretraining: {schedule: {zzz: }}",
        "spec.pretraining.schedule.zzz (line 9): unknown field; known here: type, warmupFraction, minimumRatio;"
        " remove it",
    ),
    "a method without fields is written out": (
        "  pretraining: {method: {lora: }}",
        "spec.pretraining.method (line 9): exactly one of full and lora must be given: keep one of them; lora has no"
        " fields here, which counts as left out: write lora: {}",
    ),
    "resources of pretraining are those of the whole": (
        "  stageResources: {pretrain: {gpus: 8}}",
        "spec.stageResources.pretrain (line 9): pretraining runs on all of spec.resources; set nodes, gpusPerNode, cpu"
        " and memory there",
    ),
    "a name with a line break comes in quotes": (
        '  "evil\\nname": 1',
        "spec['evil\\nname'] (line 9): unknown field; known here: profile, suspend, queue, priorityClassName, seed,"
        " model, corpus, pretraining, evaluation, gates, selection, finetuning, preference, output, credentials,"
        " resources, stageResources, limits, cleanup; remove it",
    ),
    "an unknown field of the metadata": (
        "metadata: {name: a, lables: {}}",
        "metadata.lables (line 3): unknown field; nearest known name is 'labels'; rename or remove it",
    ),
    "a pod template belongs to the profile": (
        "  podTemplate: {spec: {}}",
        "spec.podTemplate (line 9): belongs to the profile, which the platform team writes; remove it here and ask"
        " for it in the AdaptationProfile",
    ),
    "an image belongs to the profile": (
        "  image: evil",
        "spec.image (line 9): belongs to the profile, which the platform team writes; remove it here and ask for it"
        " in the AdaptationProfile",
    ),
    "an environment belongs to the profile": (
        "  resources: {env: []}",
        "spec.resources.env (line 8): belongs to the profile, which the platform team writes; remove it here and ask"
        " for it in the AdaptationProfile",
    ),
    "a service account belongs to the profile": (
        "  serviceAccountName: admin",
        "spec.serviceAccountName (line 9): belongs to the profile, which the platform team writes; remove it here and"
        " ask for it in the AdaptationProfile",
    ),
    "a namespace belongs to the metadata": (
        "  namespace: other",
        "spec.namespace (line 9): belongs to metadata.namespace; move it there",
    ),
    "prepare takes no GPU": (
        "  stageResources: {prepare: {gpus: 1}}",
        "spec.stageResources.prepare.gpus (line 9): prepare takes no GPU; remove it",
    ),
    "a text for a whole number": (
        "  seed: abc",
        f"spec.seed (line 9): 'abc' is not accepted; write a whole number from 0 to 4294967295{OUT} for 17",
    ),
    "a number in quotes": (
        '  pretraining: {optimizer: {learningRate: "2e-5"}}',
        "spec.pretraining.optimizer.learningRate (line 9): '2e-5' is not accepted; write a number above 0 and at most"
        f" 1{OUT}; write it without quotes: 2e-5",
    ),
    "a fraction for a whole number": (
        "  pretraining: {globalBatchSize: 6.5}",
        "spec.pretraining.globalBatchSize (line 9): 6.5 is not accepted; write a whole number from 1 to"
        f" 1000000{OUT}",
    ),
    "an infinite number": (
        "  gates: {hardStopFactor: .inf}",
        "spec.gates.hardStopFactor (line 9): inf is not accepted; write a number above 0 and at most"
        f" 1000{OUT} for 4.0",
    ),
    "a truth that YAML 1.2 does not know": (
        "  suspend: yes",
        f"spec.suspend (line 9): 'yes' is not accepted; write true or false{OUT} for false",
    ),
    "a number where a quantity is wanted": (
        "  resources: {cpu: 1.5}",
        "spec.resources.cpu (line 8): 1.5 is not accepted; write a whole number, or a Kubernetes quantity in quotes,"
        f" such as '500m' or '0.5'{OUT}; write it in quotes: '1.5'",
    ),
    "a number for a block": (
        "  gates: 5",
        "spec.gates (line 9): 5 is not accepted; write a block with the fields maxGeneralPerplexityIncrease,"
        " maxGeneralScoreDrop, confidence, minDomainPerplexityDecrease, patience, hardStopFactor, onBreach and"
        f" rollback{OUT}",
    ),
    "a block for a list": (
        "  corpus: {domain: {source: s3://c/d}, general: [{source: s3://c/g}]}",
        "spec.corpus.domain (line 6): a block is not accepted; write a list of 1 to 10 items; its items begin with"
        " '- ': put it before the first field",
    ),
    "a misspelled choice": (
        "  pretraining: {schedule: {type: cosin}}",
        "spec.pretraining.schedule.type (line 9): 'cosin' is not accepted; write one of cosine, wsd (nearest:"
        f" cosine){OUT} for cosine",
    ),
    "a choice in the wrong case": (
        "  gates: {onBreach: warn}",
        "spec.gates.onBreach (line 9): 'warn' is not accepted; write one of Rollback, Block, Warn (nearest:"
        f" Warn){OUT} for Rollback",
    ),
    "too many checkpoints": (
        "  pretraining: {checkpoints: {count: 51}}",
        "spec.pretraining.checkpoints.count (line 9): 51 is not accepted; write a whole number from 1 to"
        f" 50{OUT} for 10",
    ),
    "one beta": (
        "  pretraining: {optimizer: {betas: [0.9]}}",
        f"spec.pretraining.optimizer.betas (line 9): a list of 1 items is not accepted; write a list of 2 items{OUT}",
    ),
    "a beta of 1": (
        "  pretraining: {optimizer: {betas: [0.9, 1.0]}}",
        "spec.pretraining.optimizer.betas[1] (line 9): 1.0 is not accepted; write a number of at least 0 and below 1",
    ),
    "a path without a scheme": (
        "  corpus: {domain: [{source: /data/x.jsonl}], general: [{source: s3://c/g}]}",
        f"spec.corpus.domain[0].source (line 6): '/data/x.jsonl' is not accepted; write {SOURCE}",
    ),
    "a source that is too long": (
        f"  corpus: {{domain: [{{source: s3://{'x' * 1030}}}], general: [{{source: s3://c/g}}]}}",
        f"spec.corpus.domain[0].source (line 6): 's3://{'x' * 52}...' is not accepted; write {SOURCE}, at most 1024"
        " characters",
    ),
    "a destination of an unknown kind": (
        "  output: {destination: http://x}",
        "spec.output.destination (line 7): 'http://x' is not accepted; write s3://BUCKET/FOLDER, gs://BUCKET/FOLDER,"
        " pvc://CLAIM/FOLDER, hf://ORG/NAME or file://PATH",
    ),
    "no destination": (
        "  output: {}",
        "spec.output.destination (line 7): missing, but required: the finished model has to go somewhere; add it:"
        " s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, pvc://CLAIM/FOLDER, hf://ORG/NAME or file://PATH",
    ),
    "a licence in words": (
        "  output: {destination: s3://m/x, license: Apache 2.0}",
        "spec.output.license (line 7): 'Apache 2.0' is not accepted; write the id of a licence, such as apache-2.0,"
        f" cc-by-4.0, llama3.1 or other{OUT}",
    ),
    "one language without a list": (
        "  output: {destination: s3://m/x, language: en}",
        f"spec.output.language (line 7): 'en' is not accepted; write a list of 1 to 16 items{OUT}; write it as a list:"
        " [en]",
    ),
    "a language in words": (
        "  output: {destination: s3://m/x, language: [en, English]}",
        "spec.output.language[1] (line 7): 'English' is not accepted; write a language's code of ISO 639, such as en,"
        " de or zho, multilingual or code",
    ),
    "no general text": (
        "  corpus: {domain: [{source: s3://c/d}]}",
        "spec.corpus.general (line 6): missing, but required: without general text forgetting cannot be measured; add"
        " it: a list of 1 to 10 items",
    ),
    "an empty list of general text": (
        "  corpus: {domain: [{source: s3://c/d}], general: []}",
        "spec.corpus.general (line 6): an empty list is not accepted; write a list of 1 to 10 items: without general"
        " text forgetting cannot be measured",
    ),
    "a name that Kubernetes refuses": (
        "metadata: {name: Clinical_1}",
        "metadata.name (line 3): 'Clinical_1' is not accepted; write a name for hosts (lower-case letters, digits"
        " and '-', a letter first)",
    ),
    "a credential without use": (
        "  credentials: [{secretName: dapt-s3}]",
        "spec.credentials[0].use (line 9): missing, but required; add it: one of read, write",
    ),
    "replay with general text that is only measured": (
        "  corpus: {domain: [{source: s3://c/d}], general: [{source: s3://c/g}], generalUse: measure,"
        " replayFraction: 0.1}",
        "spec.corpus.replayFraction (line 6): 0.1 is not accepted; generalUse: measure keeps general text out of"
        " training, so replayFraction must be 0 or left out; for replay write generalUse: train",
    ),
    "no replay with general text for training": (
        "  corpus: {domain: [{source: s3://c/d}], general: [{source: s3://c/g}], replayFraction: 0}",
        "spec.corpus.replayFraction (line 6): 0 is not accepted; replayFraction 0 with generalUse: train trains on no"
        " general text; write generalUse: measure to switch replay off on purpose, or leave replayFraction out for"
        " the measured default",
    ),
    "two methods": (
        "  pretraining: {method: {full: {}, lora: {}}}",
        "spec.pretraining.method (line 9): exactly one of full and lora must be given: keep one of them",
    ),
    "no method": (
        "  pretraining: {method: {}}",
        "spec.pretraining.method (line 9): exactly one of full and lora must be given: keep one of them",
    ),
    "two ways to say the budget": (
        "  pretraining: {budget: {epochs: 1, tokens: 1_000_000}}",
        "spec.pretraining.budget (line 9): exactly one of epochs, tokens and steps must be given, since each alone"
        " is the whole budget: keep one of them",
    ),
    "two ways to say the budget of fine-tuning": (
        "  finetuning: {data: [{source: s3://c/s}], budget: {epochs: 1, steps: 5}}",
        "spec.finetuning.budget (line 9): exactly one of epochs and steps must be given, since each alone is the"
        " whole budget: keep one of them",
    ),
    "betas in the wrong order": (
        "  pretraining: {optimizer: {betas: [0.95, 0.9]}}",
        "spec.pretraining.optimizer.betas (line 9): the first beta (mean of gradients) must not be above the second"
        " (mean of their squares): write them as [0.9, 0.95]",
    ),
    "a domain gate that nothing can pass": (
        "  gates: {minDomainPerplexityDecrease: 15}",
        "spec.gates.minDomainPerplexityDecrease (line 9): 15 is not accepted; minDomainPerplexityDecrease must be"
        " below 1: it is a share of the base model's perplexity, and no model can pass at 1 or more; for 15 % write"
        " 0.15",
    ),
    "a hard stop below the limit": (
        "  gates: {hardStopFactor: 0.5}",
        "spec.gates.hardStopFactor (line 9): 0.5 is not accepted; hardStopFactor must be above 1: a hard stop at or"
        " below the limit itself would end every run before patience is asked; write for example 4.0",
    ),
    "one task on both sides": (
        "  evaluation: {domain: {tasks: [{name: mmlu}]}, general: {tasks: [{name: mmlu}]}}",
        "spec.evaluation (line 9): the names of tasks must be unique over domain and general, since scores are kept by"
        " name: rename or remove the repeated one",
    ),
    "a task that the harness has not": (
        '  evaluation: {general: {tasks: [{name: mmlu}, {name: own, source: "s3://q/q.jsonl"}, {name: financeqa}]}}',
        "spec.evaluation.general.tasks[2].name (line 9): 'financeqa' is not accepted; "
        f"{unknown_task_message('financeqa')}",
    ),
    "weights that rank nothing": (
        "  selection: {weights: {domainPerplexity: 0, domainTasks: 0}}\n"
        "  evaluation: {domain: {tasks: [{name: mmlu}]}}",
        "spec.selection.weights (line 9): at least one of domainPerplexity and domainTasks must be above 0: otherwise"
        " every candidate has the same gain",
    ),
    "ranking by tasks that are not there": (
        "  selection: {weights: {domainPerplexity: 0}}",
        "spec.selection.weights (line 9): domainPerplexity 0 ranks candidates by domain tasks alone, and"
        " evaluation.domain.tasks is empty: add a task, or give domainPerplexity a weight",
    ),
    "another API version": (
        "apiVersion: dapt.dev/v1",
        "apiVersion (line 1): 'dapt.dev/v1' is not accepted; write dapt.dev/v1alpha1",
    ),
    "another kind": (
        "kind: DomainAdaption",
        "kind (line 2): 'DomainAdaption' is not accepted; write DomainAdaptation or AdaptationProfile (nearest:"
        " DomainAdaptation)",
    ),
    "a file of this machine on the cluster": (
        "  model: {source: file:///models/base}",
        "spec.model.source (line 5): 'file:///models/base' is not accepted; the cluster's pods cannot read a file"
        " of your machine; use pvc://, s3://, gs:// or hf://, or run the manifest on this machine with `dapt run`",
    ),
    "an adaptation as base model": (
        "  model: {source: adaptation://other}",
        "not supported yet: spec.model.source adaptation://other (line 5): the result of another adaptation is not"
        " looked up; give the address where it was published",
    ),
    "offload without ZeRO": (
        "  pretraining: {distribution: {zeroStage: 0, offload: optimizer}}",
        "spec.pretraining.distribution.offload (line 9): 'optimizer' is not accepted; offload optimizer needs zeroStage"
        " 1, 2 or 3: ZeRO moves the optimizer's state; leave zeroStage out",
    ),
    "weights offloaded without ZeRO 3": (
        "  pretraining: {distribution: {zeroStage: 2, offload: all}}",
        "spec.pretraining.distribution.offload (line 9): 'all' is not accepted; offload all needs zeroStage 3, which"
        " fetches weights as they are used: write 3, or leave zeroStage out",
    ),
    "an adapter of full training": (
        "  output: {destination: s3://m/x, form: adapter}",
        "spec.output.form (line 7): 'adapter' is not accepted; form: adapter needs method.lora in pretraining,"
        " finetuning and preference: use lora there, or write form: merged",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_manifest_gets_its_message(name: str) -> None:
    fragment, expected = INVALID[name]
    assert problems(manifest(LINES, fragment)) == [expected]


INVALID_PROFILES = {
    "no storage": (
        "  storage: {}",
        "spec.storage (line 7): exactly one of claimTemplate and existingClaim must be given: keep one of them",
    ),
    "equal ports": (
        "  ports: {coordinator: 9400}",
        "spec.ports.progress (line 8): progress and coordinator must be two different ports: both are served by the"
        " first pod",
    ),
    "no memory": (
        "  accelerator: {kind: gpu}",
        "spec.accelerator.memoryGiB (line 6): missing, but required; add it: a number above 0 and at most 100000",
    ),
    "an image with a space": (
        "  trainerImage: foo bar",
        "spec.trainerImage (line 5): 'foo bar' is not accepted; write the name of an image, such as"
        " registry.example/team/dapt-trainer:0.1.0",
    ),
    "an unknown launcher": (
        "  launcher: PyTorchJob",
        "spec.launcher (line 8): 'PyTorchJob' is not accepted; write one of IndexedJob, JobSet, or leave the field out"
        " for IndexedJob",
    ),
    "an unknown field": (
        "  limits: {gpuHour: 5}",
        "spec.limits.gpuHour (line 8): unknown field; nearest known name is 'gpuHours'; rename or remove it",
    ),
}


@pytest.mark.parametrize("name", INVALID_PROFILES)
def test_an_invalid_profile_gets_its_message(name: str) -> None:
    fragment, expected = INVALID_PROFILES[name]
    assert problems(manifest(PROFILE_LINES, fragment)) == [expected]


def test_a_pod_template_is_accepted_in_a_profile() -> None:
    assert problems(manifest(PROFILE_LINES, "  podTemplate: {spec: {nodeSelector: {gpu: h100}}}")) == []


@pytest.mark.parametrize(
    "fragment",
    [
        "  seed: 2e9",
        "  pretraining: {budget: {tokens: 2_000_000_000}}",
        "  pretraining: {optimizer: {learningRate: 2e-5}}",
        "  pretraining: {distribution: {zeroStage: 2, offload: none, precision: fp32}}",
        "  pretraining: {distribution: {zeroStage: 3, offload: all}}",
        "  pretraining: {schedule: {type: wsd}}",
        "  pretraining: {method: {lora: {rank: 8}}}",
        "  pretraining:",
        "  finetuning: {data: [{source: s3://c/s, format: promptResponse}], method: {full: {}}}",
        "  gates: {onBreach: Warn, patience: null}",
        "  suspend: true",
        "  evaluation: {probes: {domain: [{source: s3://e/p.jsonl}]}, domain: {tasks: [{name: own, source: s3://e/t}]}}",
        "  corpus: {domain: [{source: s3://c/d}], general: [{source: s3://c/g}], generalUse: measure}",
        "  corpus: {domain: [{source: s3://c/d}], general: [{source: s3://c/g}], deduplicate: none}",
        "  credentials: [{secretName: dapt-s3, use: read}]",
        "status: {anything: [goes]}",
    ],
)
def test_what_is_supported_is_accepted(fragment: str) -> None:
    assert problems(manifest(LINES, fragment)) == []


def test_local_files_are_accepted_only_in_a_local_run() -> None:
    text = manifest(LINES, "  model: {source: file://models/base.gguf}")
    assert problems(text, local=True) == []
    assert len(problems(text, local=False)) == 1


def test_all_problems_are_reported_at_once_in_line_order_without_consequences() -> None:
    text = """
apiVersion: dapt.dev/v1alpha1
kind: DomainAdaptation
metadata: {name: a}
spec:
  seed: -1
  queue: team
  model: {source: nowhere}
  corpus:
    domain: [{source: x}, {sourc: "s3://a", weight: 0}, 5]
    general: []
    generalUse: measure
    replayFraction: 0.1
  pretraining:
    method: {full: {}, lora: {rank: two}}
    budget: {epochs: many, tokens: 5}
    checkpoints: {count: none}
  selection: {averageLast: 0}
  gates: {hardStopFactor: 1, patiance: 3}
  output: {}
"""
    (document,) = load(text)
    _, found = check(document, local=True)
    assert [(problem.line, problem.field) for problem in found] == [
        (5, "spec.resources"),
        (6, "spec.seed"),
        (8, "spec.model.source"),
        (10, "spec.corpus.domain[0].source"),
        (10, "spec.corpus.domain[1].sourc"),
        (10, "spec.corpus.domain[1].weight"),
        (10, "spec.corpus.domain[2]"),
        (11, "spec.corpus.general"),
        (13, "spec.corpus.replayFraction"),
        (15, "spec.pretraining.method.lora.rank"),
        (16, "spec.pretraining.budget.epochs"),
        (17, "spec.pretraining.checkpoints.count"),
        (18, "spec.selection.averageLast"),
        (19, "spec.gates.hardStopFactor"),
        (19, "spec.gates.patiance"),
        (20, "spec.output.destination"),
    ]


def test_the_full_example_is_accepted_but_for_what_is_not_supported_yet() -> None:
    (document,) = load((HERE / "full_adaptation.yaml").read_text())
    _, found = check(document, local=False)
    assert [str(problem) for problem in found] == []


def test_the_full_profile_is_accepted_but_for_what_is_not_supported_yet() -> None:
    (document,) = load((HERE / "full_profile.yaml").read_text())
    _, found = check(document, local=False)
    assert [str(problem) for problem in found] == [
        "not supported yet: spec.tracking (line 14): curves are in the metrics and in the report; remove the field",
    ]


def test_the_planner_gets_the_same_refusals_without_lines() -> None:
    (document,) = load((HERE / "full_profile.yaml").read_text())
    profile = AdaptationProfile.model_validate(document.data)
    assert unsupported_messages(profile) == (
        "not supported yet: spec.tracking; curves are in the metrics and in the report; remove the field",
    )
    adaptation = DomainAdaptation.model_validate(load("\n".join(LINES))[0].data)
    assert unsupported_messages(adaptation) == ()


@pytest.mark.parametrize("entry", [*ADAPTATION, *PROFILE], ids=lambda entry: entry.field)
def test_every_refusal_names_a_field_that_exists_and_the_next_step(entry: Any) -> None:
    model = DomainAdaptation if entry in ADAPTATION else AdaptationProfile
    node: Any = model.model_json_schema()
    definitions = node["$defs"]
    for part in entry.field.split("."):
        node = node["properties"][part]
        choice = node if "$ref" in node else next((c for c in node.get("anyOf", ()) if "$ref" in c), None)
        node = definitions[choice["$ref"].removeprefix("#/$defs/")] if choice else node
    assert any(step in entry.instead for step in ("remove the field", "write ", "give "))


@pytest.mark.parametrize("version", ["apiVersion: v1\n", "apiVersion: dapt.dev/v1alpha1\n", ""])
def test_secret_in_a_manifest_is_refused_in_one_sentence_and_not_shown(version: str) -> None:
    (problem,) = problems(
        f"{version}kind: Secret\nmetadata: {{name: x}}\nstringData: {{HF_TOKEN: hf_canary}}"
    )
    assert problem.endswith(
        "'Secret' is not accepted; a manifest's file brings no credentials, and nothing of this document is used;"
        " remove it: a local run takes them from your environment, such as HF_TOKEN, and on a cluster the Secret is"
        " applied from a file of its own"
    )
    assert "canary" not in problem


@pytest.mark.parametrize("kind", ["[DomainAdaptation]", "{a: 1}", "1", "true"])
def test_kind_that_is_no_text_is_refused(kind: str) -> None:
    (problem,) = problems(f"apiVersion: dapt.dev/v1alpha1\nkind: {kind}\n")
    assert problem.startswith("kind (line 2): ")
    assert "is not accepted; write DomainAdaptation or AdaptationProfile" in problem


def test_missing_metadata_is_asked_for_without_the_fields_of_the_api_server() -> None:
    assert problems("apiVersion: dapt.dev/v1alpha1\nkind: DomainAdaptation\nmetadata:\nspec: {}\n")[0] == (
        "metadata (line 3): missing, but required; add it: a block with the fields name, namespace, labels and"
        " annotations"
    )


def test_a_document_that_is_no_block() -> None:
    assert problems("[1, 2]") == [
        "document (line 1): a document must be a block with apiVersion, kind, metadata and spec"
    ]
    assert problems("hello: 1") == [
        "apiVersion (line 1): missing, but required; write dapt.dev/v1alpha1",
        "kind (line 1): missing, but required; write DomainAdaptation or AdaptationProfile",
    ]


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats()
    | st.sampled_from(["", "x", "s3://a", "end", "Warn"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["source", "domain", "general", "method", "full", "lora", "budget", "epochs", "name", "zz"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
_fields = st.sampled_from(
    [
        *(
            name
            for name in DomainAdaptation.model_json_schema()["$defs"]["DomainAdaptationSpec"]["properties"]
        ),
        "oops",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(_fields, _values, max_size=5), st.booleans())
def test_any_spec_is_checked_without_raising_and_each_problem_is_one_sentence(
    spec: dict[str, Any], local: bool
) -> None:
    data = {
        "apiVersion": "dapt.dev/v1alpha1",
        "kind": "DomainAdaptation",
        "metadata": {"name": "a"},
        "spec": spec,
    }
    model, found = check(YamlDocument(data), local=local)
    assert (model is None) == bool(found)
    assert len({str(problem) for problem in found}) == len(found)
    for problem in found:
        assert "\n" not in str(problem)
        assert len(str(problem)) < 600
