"""Values in another unit: refused with the value that was meant, or accepted with a warning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dapt_operator.api.schema.crd import structural
from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.api.validation.hints.units import Unit, unit_of
from dapt_operator.api.validation.validate import check, warnings_of
from dapt_operator.api.validation.yaml_source import load

ADAPTATION = """\
apiVersion: dapt.dev/v1alpha1
kind: DomainAdaptation
metadata: {name: one}
spec:
  model: {source: hf://org/base@1}
  corpus: {domain: [{source: s3://c/d.jsonl}], general: [{source: s3://c/g.jsonl}]}
  output: {destination: s3://models/one}
  resources: {nodes: 1}
"""
PROFILE = """\
apiVersion: dapt.dev/v1alpha1
kind: AdaptationProfile
metadata: {name: h100}
spec:
  trainerImage: registry.example/trainer:1
  accelerator: {memoryGiB: 80}
  storage: {existingClaim: work}
"""


def text_with(fragment: str) -> str:
    """Return the manifest that has the field, with the fragment in place of its line or as its last one."""
    profile_fields = ("accelerator", "startup", "termination", "pending", "limits: {gpu")
    text = PROFILE if fragment.startswith(profile_fields) else ADAPTATION
    field = fragment.split(":")[0]
    lines = [line for line in text.splitlines() if not line.startswith(f"  {field}:")]
    return "\n".join([*lines, f"  {fragment}"])


def hint_of(fragment: str) -> str:
    """Return what the message about the one problem proposes at its end."""
    (document,) = load(text_with(fragment))
    (problem,) = check(document, local=True)[1]
    assert problem.advice is not None, str(problem)
    assert str(problem).endswith(f"; {problem.advice.text}")
    return problem.advice.text


def warned(fragment: str) -> list[str]:
    (document,) = load(text_with(fragment))
    assert check(document, local=True)[1] == []
    return [str(warning) for warning in warnings_of(document)]


CORPUS = "corpus: {domain: [{source: s3://c/d.jsonl}], general: [{source: s3://c/g.jsonl}], "

HINTS = {
    CORPUS + "replayFraction: 15}": "for 15 % write 0.15",
    CORPUS + "replayFraction: 15%}": "for 15% write 0.15",
    CORPUS + 'replayFraction: "15 %"}': "for 15 % write 0.15",
    CORPUS + "replayFraction: 15 percent}": "for 15 percent write 0.15",
    CORPUS + 'replayFraction: "0,15"}': "write 0.15",
    CORPUS + "heldOut: {fraction: 2}}": "for 2 % write 0.02",
    CORPUS + "heldOut: {fraction: 0.5%}}": "for 0.5% write 0.005",
    CORPUS + "badRecords: {maxFraction: 5}}": "for 5 % write 0.05",
    CORPUS + "sequenceLength: 4k}": "for 4k write 4096",
    CORPUS + 'sequenceLength: "4096"}': "write it without quotes: 4096",
    "corpus: {domain: [{source: s3://c/d, maxTokens: 1B}], general: [{source: s3://c/g}]}": (
        "for 1B write 1000000000"
    ),
    "pretraining: {budget: {tokens: 2.5B tokens}}": "for 2.5B tokens write 2500000000",
    "pretraining: {budget: {tokens: 300M}}": "for 300M write 300000000",
    'pretraining: {budget: {tokens: "2,000,000"}}': "write it without separators: 2000000",
    "pretraining: {schedule: {warmupFraction: 3}}": "for 3 % write 0.03",
    "pretraining: {schedule: {minimumRatio: 10%}}": "for 10% write 0.1",
    "pretraining: {method: {lora: {dropout: 5}}}": "for 5 % write 0.05",
    "gates: {maxGeneralPerplexityIncrease: 15%}": "for 15% write 0.15",
    "gates: {maxGeneralPerplexityIncrease: 150}": "for 150 % write 1.5",
    "gates: {maxGeneralScoreDrop: 3%}": "for 3% write 3",
    "gates: {maxGeneralScoreDrop: 2 points}": "for 2 points write 2",
    "gates: {rollback: {learningRateFactor: 50}}": "for 50 % write 0.5",
    "selection: {interpolate: [60, 1.0]}": "for 60 % write 0.6",
    "limits: {gpuHours: 2d}": "for 2d write 48",
    "cleanup: {afterSeconds: 7d}": "for 7d write 604800",
    "cleanup: {afterSeconds: 1h30m}": "for 1h30m write 5400",
    "startupTimeoutSeconds: 15 min": "for 15 min write 900",
    "startupTimeoutSeconds: 900000": "for 900000 milliseconds write 900",
    "accelerator: {memoryGiB: 80GB}": "for 80GB write 74.5058",
    "accelerator: {memoryGiB: 80Gi}": "for 80Gi write 80",
    "accelerator: {memoryGiB: 85899345920}": "for 85899345920 bytes write 80",
    "accelerator: {memoryGiB: 80, peakTflops: 989e12}": "for 989000000000000 FLOP/s write 989",
    "model: /models/base": "write {source: file:///models/base}",
    "model: {source: /models/base}": "write file:///models/base",
    "model: {source: ../base}": "write file://../base",
    "model: {source: org/base}": "write hf://org/base",
    "model: {source: https://huggingface.co/org/base}": "write hf://org/base",
    "model: {source: https://huggingface.co/org/base/tree/main}": "write hf://org/base@main",
    "model: {source: 'https://huggingface.co/org/base/resolve/main/m.gguf?download=true'}": (
        "write hf://org/base@main/m.gguf"
    ),
    "model: {source: https://x.example/models/base/}": "download the model into a folder, and write file://base",
    "model: {source: 'C:\\models'}": "under WSL write file:///mnt/c/models",
    "model: {source: 'D:/models/base'}": "under WSL write file:///mnt/d/models/base",
    "output: s3://models/one": "write {destination: s3://models/one}",
    "corpus: {domain: s3://c/d, general: [{source: s3://c/g}]}": "write it as a list: [{source: s3://c/d}]",
    "corpus: {domain: [s3://c/d], general: [{source: s3://c/g}]}": "write {source: s3://c/d}",
    "evaluation: {general: {tasks: [mmlu]}}": "write {name: mmlu}",
    "pretraining: {method: lora}": "write {lora: {}}",
    "pretraining: {method: LoRA}": "write {lora: {}}",
    "pretraining: {method: {lora: true}}": "write {}",
    "pretraining: [{method: {full: {}}}]": "it is no list: remove the '- ' before its first field",
    "pretraining: [{method: {full: {}}}, {globalBatchSize: 8}]": "it is no list: remove the '- ' before its fields",
    "selection: {interpolate: 0.8}": "write it as a list: [0.8]",
    "evaluation: {limit: [100]}": "write the value alone, without a list",
    "evaluation: {domain: [{name: mmlu}]}": "write it below tasks, a field of this block",
    CORPUS + "heldOut: 0.01}": "write {fraction: 0.01}",
    CORPUS + "heldOut: 1%}": "for 1% write 0.01 as {fraction: 0.01}",
    CORPUS + "badRecords: 0.01}": "write {maxFraction: 0.01}",
    "pretraining: {checkpoints: 5}": "write {count: 5}",
    "pretraining: {schedule: cosine}": "write {type: cosine}",
    "resources: {memory: 64GB}": "write 64G",
    "resources: {memory: 64 GiB}": "write 64Gi",
    "resources: {memory: 64}": "for 64 GiB write '64Gi'",
    "resources: {cpu: 0.5}": "write it in quotes: '0.5'",
    "resources: {cpu: 500 m}": "write 500m",
    "resources: {cpu: 8 cores}": "write 8",
    "model: {source: gpt2}": "write file://gpt2 for a path from the manifest's folder, or hf://ORG/gpt2",
    "model: {source: 'https://x.example/m.gguf?download=1'}": "download it, and write file://m.gguf",
    "corpus: {domain: [{source: s3://c/d}], general: [{source: https://x.example/a/g.jsonl.gz}]}": (
        "download it, and write file://g.jsonl.gz"
    ),
    "corpus: {domain: [{source: s3://c/d}], general: [{source: text\\g.jsonl}]}": "write file://text/g.jsonl",
    "corpus: {domain: [{source: s3://c/d}], general: [{source: https://huggingface.co/datasets/a/b/resolve/main/g.jsonl}]}": (  # noqa: E501
        "write hf://datasets/a/b@main/g.jsonl"
    ),
    "corpus: {domain: [{source: s3://c/d}], general: [{source: https://x.example/}]}": (
        "download it as JSON lines or Parquet into a folder, and write file://x"
    ),
    "corpus: {domain: [{source: s3://c/d}], general: [{source: 'https://x.example/a/g.csv?raw=1'}]}": (
        "download it as JSON lines or Parquet into a folder, and write file://g"
    ),
    "corpus: {domain: [{source: s3://c/d}], general: [{source: 'C:\\text\\*.jsonl'}]}": (
        "under WSL write file:///mnt/c/text/*.jsonl"
    ),
    "corpus: {domain: [{source: s3://c/d}], general: [{source: '\\\\server\\share\\g.jsonl'}]}": (
        "mount the share, and write file:///mnt/share/g.jsonl"
    ),
    "output: {destination: 'C:\\models\\one'}": "under WSL write file:///mnt/c/models/one",
    "resources: {gpusPerNode: 0}": "without GPUs it counts processes: write 1",
    "resources: {gpusPerNode: cpu}": "without GPUs it counts processes: write 1",
    "stageResources: {finetune: {gpus: 0}}": "without GPUs it counts processes: write 1",
    "finetuning: {data: [{source: s3://c/s.jsonl, format: alpaca}]}": (
        "Alpaca, ShareGPT and others are found by the fields of a record: leave it out, or map names with `fields`"
    ),
    "model: {source: 'file:/models/base'}": "write file:///models/base",
    "model: {source: 'file:models/base'}": "write file://models/base",
    "corpus: {domain: [{source: s3://c/d}], general: [{source: corpus/g.jsonl}]}": "write file://corpus/g.jsonl",
    "corpus: {domain: [{source: s3://c/d}], general: [{source: corpus/*.jsonl}]}": "write file://corpus/*.jsonl",
    "corpus: {domain: [{source: s3://c/d}], general: [{source: org/text}]}": (
        "write file://org/text for a path from the manifest's folder, or hf://datasets/org/text"
    ),
    "output: {destination: models/one}": (
        "write file://models/one for a path from the manifest's folder, or hf://models/one"
    ),
    "output: {destination: 'file:/models/one'}": "write file:///models/one",
    "model: {source: 'hf:org/base'}": "write hf://org/base",
    "model: {source: 's3:/bucket/base'}": "write s3://bucket/base",
}


@pytest.mark.parametrize("fragment", HINTS)
def test_value_in_another_unit_is_refused_with_what_was_meant(fragment: str) -> None:
    assert hint_of(fragment) == HINTS[fragment]


def test_a_path_that_exists_is_not_taken_for_a_repository() -> None:
    (document,) = load(text_with("model: {source: models/base}"))
    (problem,) = check(document, local=True, is_path=lambda text: text == "models/base")[1]
    assert str(problem).endswith("; write file://models/base")


def test_a_source_of_both_sides_gets_a_warning() -> None:
    assert warned(
        "corpus: {domain: [{source: s3://c/d}], general: [{source: s3://c/g}, {source: s3://c/d}]}"
    ) == [
        "spec.corpus.general[1].source (line 8): s3://c/d is spec.corpus.domain[0].source too: learning and forgetting"
        " cannot be told apart on it, and nothing of it is held out; remove it from one of the two"
    ]


@pytest.mark.parametrize(
    ("fragment", "warning"),
    [
        (
            "output: {destination: s3://m/one, language: [en, de, en]}",
            "spec.output.language[2] (line 8): it repeats 'en' of spec.output.language[0]; remove one of the two",
        ),
        (
            "corpus: {domain: [{source: s3://c/d}, {source: s3://c/d}], general: [{source: s3://c/g}]}",
            "spec.corpus.domain[1] (line 8): it repeats spec.corpus.domain[0]; remove one of the two",
        ),
        (
            "finetuning: {data: [{source: s3://c/a, format: plain}, {format: plain, source: s3://c/a}]}",
            "spec.finetuning.data[1] (line 9): it repeats spec.finetuning.data[0]; remove one of the two",
        ),
        (
            "credentials: [{secretName: dapt-a, use: read}, {secretName: dapt-a, use: read}]",
            "spec.credentials[1] (line 9): it repeats spec.credentials[0]; remove one of the two",
        ),
        (
            "limits: {gpuHours: 9, namespaces: [a, a]}",
            "spec.limits.namespaces[1] (line 8): it repeats 'a' of spec.limits.namespaces[0]; remove one of the two",
        ),
    ],
)
def test_item_that_a_list_has_twice_gets_a_warning(fragment: str, warning: str) -> None:
    assert warned(fragment) == [warning]


@pytest.mark.parametrize(
    "fragment",
    [
        "credentials: [{secretName: dapt-a, use: read}, {secretName: dapt-a, use: write}]",
        "corpus: {domain: [{source: s3://c/d}, {source: s3://c/d, weight: 2}], general: [{source: s3://c/g}]}",
        "pretraining: {optimizer: {betas: [0.9, 0.9]}}",
    ],
)
def test_items_that_differ_or_have_their_place_get_no_warning(fragment: str) -> None:
    assert warned(fragment) == []


@pytest.mark.parametrize("fragment", HINTS)
def test_what_a_message_proposes_is_accepted(fragment: str) -> None:
    (document,) = load(text_with(fragment))
    (problem,) = check(document, local=True)[1]
    assert problem.advice is not None
    changed = type(document)(problem.advice.applied(document.data))
    assert check(changed, local=True)[1] == []


@pytest.mark.parametrize(
    "fragment",
    [
        CORPUS + "heldOut: {fraction: 60}}",  # 0.6 is over the bound as well
        "seed: 1.5",
        "pretraining: {budget: 3}",  # epochs, tokens or steps
        "output: {destination: https://x.example/models/one}",
        "evaluation: {probes: [{source: s3://c/p}]}",  # of the domain, or general
        "pretraining: {globalBatchSize: many}",
        "model: {source: 'a b://c'}",
        "gates: {hardStopFactor: -1}",
    ],
)
def test_no_value_is_proposed_that_is_refused_too(fragment: str) -> None:
    (document,) = load(text_with(fragment))
    assert [problem.advice for problem in check(document, local=True)[1]] == [None]


def test_a_file_is_not_proposed_for_the_cluster() -> None:
    (document,) = load(text_with("model: {source: /models/base}"))
    assert [problem.advice for problem in check(document, local=False)[1]] == [None]


WARNINGS = {
    "gates: {maxGeneralPerplexityIncrease: 15}": "15 is a share of 1, that is 1500 %: for 15 % write 0.15",
    "gates: {maxGeneralPerplexityIncrease: 1.5}": "1.5 is a share of 1, that is 150 %: for 1.5 % write 0.015",
    "gates: {maxGeneralPerplexityIncrease: 0.0015}": (
        "0.0015 is a share of 1, that is 0.15 %: for 15 % write 0.15"
    ),
    "gates: {maxGeneralScoreDrop: 0.03}": "0.03 is in points of 100: for 3 points write 3",
    CORPUS + "heldOut: {fraction: 0.5}}": "0.5 is a share of 1, that is 50 %: for 0.5 % write 0.005",
    CORPUS + "badRecords: {maxFraction: 1}}": "1 is a share of 1, that is 100 %: for 1 % write 0.01",
    CORPUS + "replayFraction: 0.001}": "0.001 is a share of 1, that is 0.1 %: for 10 % write 0.1",
    "pretraining: {schedule: {warmupFraction: 0.5}}": "0.5 is a share of 1, that is 50 %: for 0.5 % write 0.005",
    "pretraining: {optimizer: {learningRate: 0.1}}": (
        "0.1 is very large for a language model: usual are 2e-5 (all weights) and 1e-4 (LoRA); check the exponent"
    ),
    "pretraining: {optimizer: {learningRate: 2e-15}}": (
        "2e-15 is very small for a language model: usual are 2e-5 (all weights) and 1e-4 (LoRA); check the exponent"
    ),
    "pretraining: {budget: {tokens: 2}}": "2 is in tokens, less than a page: for 2 million write 2000000",
    "pretraining: {globalBatchSize: 262144}": (
        "262144 is in sequences: for so many tokens divide by the tokens of a sequence"
    ),
    "startupTimeoutSeconds: 15": "15 is in seconds: for 15 minutes write 900",
    "pendingTimeoutSeconds: 30": "30 is in seconds: for 30 minutes write 1800",
    "terminationGracePeriodSeconds: 5": "5 is in seconds: for 5 minutes write 300",
    "cleanup: {afterSeconds: 7}": "7 is in seconds: for 7 minutes write 420",
    "accelerator: {memoryGiB: 81559}": "81559 is in GiB: for 81559 MiB write 79.6",
    "accelerator: {memoryGiB: 80, peakTflops: 989000}": "989000 is in TFLOP/s: for 989000 GFLOP/s write 989",
    "resources: {memory: '64'}": "64 is 64 bytes: for 64 GiB write 64Gi",
    "resources: {cpu: '8000'}": "8000 is 8000 CPUs: for 8000 thousandths write 8000m",
    "model: {source: file://$HOME/base}": (
        "$HOME in file://$HOME/base is taken as it is written, not replaced by a variable's value: write the whole path"
    ),
    'output: {destination: "s3://models/${USER}/one"}': (
        "${USER} in s3://models/${USER}/one is taken as it is written, not replaced by a variable's value: write the"
        " whole path"
    ),
    "model: {source: file:///data/~/base}": (
        "~ in file:///data/~/base is taken as it is written, not as a home folder: write the whole path"
    ),
    "model: {source: pvc://claim/~/base}": (
        "~ in pvc://claim/~/base is taken as it is written, not as a home folder: write the whole path"
    ),
}


@pytest.mark.parametrize("fragment", WARNINGS)
def test_accepted_value_that_looks_like_another_unit_warns(fragment: str) -> None:
    (warning,) = warned(fragment)
    assert warning.split(": ", 1)[1] == WARNINGS[fragment]
    assert " (line " in warning


@pytest.mark.parametrize(
    "fragment",
    [
        "gates: {maxGeneralPerplexityIncrease: 0.05, maxGeneralScoreDrop: 0.5, hardStopFactor: 15}",
        CORPUS + "heldOut: {fraction: 0.2}, replayFraction: 0.5}",
        "pretraining: {optimizer: {learningRate: 5.0e-3}, schedule: {warmupFraction: 0.1, minimumRatio: 0.001}}",
        "selection: {interpolate: [0.05, 1.0]}",
        "resources: {memory: 64Gi, cpu: 500m}",
        "cleanup: {afterSeconds: 0}",
        "startupTimeoutSeconds: 120",
        "terminationGracePeriodSeconds: 30",
        "model: {source: file://~/models/base}",
        "model: {source: file://models/base~1}",
        "accelerator: {kind: cpu, memoryGiB: 4, peakTflops: 0.5}",
    ],
)
def test_usual_values_are_not_warned_about(fragment: str) -> None:
    assert warned(fragment) == []


def _numbers(schema: dict[str, Any], name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if schema.get("type") in ("number", "integer"):
        yield name, schema
    for child_name, child in schema.get("properties", {}).items():
        yield from _numbers(child, child_name)
    if "items" in schema:
        yield from _numbers(schema["items"], name)


PLAIN = {
    "vocabularySize", "minimumFrequency", "weight", "rank", "alpha", "epochs", "steps", "weightDecay", "gradientClip",
    "strength", "samples", "zeroStage", "count", "beta", "fewShot", "limit", "maxRollbacks", "replayFactor", "patience",
    "hardStopFactor", "domainPerplexity", "domainTasks", "averageLast", "nodes", "gpusPerNode", "gpus", "seed",
    "gpusPerModel", "perNode", "pricePerHour", "coordinator", "progress", "concurrency", "infrastructure",
    "outOfMemory", "hang", "disruption", "sequenceParallel",
    # Their unit is in their name.
    "minAllReduceGiBPerSecond", "minPointToPointGiBPerSecond", "minWriteMiBPerSecond", "minReadMiBPerSecond",
    "minSharedMemoryMiB",
    "volumeBytesPerSecond",
}  # fmt: skip


def test_every_number_of_the_api_has_a_unit_or_is_known_to_have_none() -> None:
    for model in (DomainAdaptation, AdaptationProfile):
        for name, schema in _numbers(structural(model)["properties"]["spec"]):
            unit = unit_of(name, schema)
            assert (unit is Unit.PLAIN) == (name in PLAIN), (name, unit)


@pytest.mark.parametrize(
    ("name", "schema", "unit"),
    [
        ("newFraction", {"type": "number"}, Unit.SHARE),
        ("confidence", {"type": "number", "maximum": 1}, Unit.SHARE),
        (
            "maxDrop",
            {"type": "number", "maximum": 100, "description": "Largest drop, as a share."},
            Unit.SHARE,
        ),
        (
            "maxDrop",
            {"type": "number", "maximum": 100, "description": "Points that may be lost."},
            Unit.POINTS,
        ),
        ("idleTimeoutSeconds", {"type": "integer"}, Unit.SECONDS),
        ("hostMemoryGiB", {"type": "number"}, Unit.GIB),
        ("name", {"type": "string"}, None),
    ],
)
def test_a_new_field_gets_its_unit_from_its_name(
    name: str, schema: dict[str, Any], unit: Unit | None
) -> None:
    assert unit_of(name, schema) is unit
