"""`dapt plan`: the whole page for one manifest, and what is refused before anything runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dapt_operator.cli.app import app
from dapt_operator.cli.commands.plan import plan
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.inputs.manifests import read_request
from dapt_operator.cli.inputs.model_shape import active_in_name, parameters_in_name, typical_model
from dapt_operator.plan.sizing.compute import training_flops
from support.model_headers import write_model

MANIFEST = """\
apiVersion: dapt.dev/v1alpha1
kind: AdaptationProfile
metadata: {name: lab}
spec:
  trainerImage: trainer:1
  accelerator: {kind: gpu, perNode: 8, memoryGiB: 80, peakTflops: 989, pricePerHour: 2}
  storage: {existingClaim: work}
  limits: {nodes: 2}
---
apiVersion: dapt.dev/v1alpha1
kind: DomainAdaptation
metadata: {name: tiny}
spec:
  model: {source: "hf://example/Some-8B@abc"}
  corpus:
    domain: [{source: "s3://corpora/a.jsonl", maxTokens: 1_000_000_000}]
    general: [{source: "s3://corpora/b.jsonl", maxTokens: 100_000_000}]
    replayFraction: 0.2
    sequenceLength: 4096
  pretraining: {globalBatchSize: 64, distribution: {gradientCheckpointing: false}}
  output: {destination: "s3://models/tiny"}
  resources: {nodes: 1}
"""


def page(
    tmp_path: Path, *changes: tuple[str, str], parameters: float | None = None
) -> tuple[list[str], list[str]]:
    """Lines and problems for the manifest with some text replaced."""
    text = MANIFEST
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "m.yaml"
    path.write_text(text)
    found = plan(read_request(path, None), parameters)
    return list(found.lines), [problem.removeprefix(f"{path}: ") for problem in found.problems]


def test_the_whole_page(tmp_path: Path) -> None:
    lines, problems = page(tmp_path)
    assert problems == []
    assert lines[: lines.index("Memory of one GPU: 59.0 GiB of 80.0 GiB")] == [
        "tiny on profile lab: 1 node with 8 GPUs each",
        "  model     hf://example/Some-8B@abc: 8 B parameters by its name, in a typical shape",
        "",
        "Data",
        "  domain[0]            1 B tokens  s3://corpora/a.jsonl (its maxTokens)",
        "  general[0]         100 M tokens  s3://corpora/b.jsonl (its maxTokens)",
        "",
        "Pretraining",
        "  method         full, learning rate 2e-05",
        "  replay         0.2 of the tokens",
        "  tokens         1.25 B",
        "  steps          4,768 of 64 sequences of 4,096 tokens, 10 checkpoints",
        "  each rank      micro-batch 1 x 8 accumulated, ZeRO 2, bf16",
        "  trained        8 B parameters",
        "  checkpoints    327.8 GiB on the work volume",
        "",
    ]


def test_each_stage_has_a_row_with_what_it_takes(tmp_path: Path) -> None:
    lines, _ = page(tmp_path)
    start = lines.index("Stages (8% of a GPU stay free)")
    rows = [re.split(r"  +", line.strip()) for line in lines[start + 1 : lines.index("", start)]]
    assert rows == [
        ["stage", "runs on", "memory a GPU", "memory a node", "work volume", "sent a step", "how"],
        ["prepare", "CPU", "-", "1.0 GiB", "19.0 GiB", "-", "downloads, cleans and packs"],
        ["baseline", "1 GPU", "18.4 of 73.6 GiB", "5.0 GiB", "-", "-", "1 whole copy"],
        [
            *("pretrain", "8 GPUs", "59.0 of 73.6 GiB", "40.0 GiB", "327.8 GiB", "253.3 GiB"),
            "micro-batch 1 x 8 accumulated, ZeRO 2, bf16",
        ],
        ["blend", "1 GPU", "18.4 of 73.6 GiB", "5.0 GiB", "59.6 GiB", "-", "1 whole copy"],
        ["verify", "1 GPU", "18.4 of 73.6 GiB", "5.0 GiB", "-", "-", "1 whole copy"],
        ["publish", "CPU", "-", "5.0 GiB", "-", "-", "copies files, merges adapters"],
    ]


def test_hours_carry_their_formula_and_price(tmp_path: Path) -> None:
    lines, _ = page(tmp_path)
    # 6 x 8e9 x 1.25e9 FLOP over 989 TFLOP/s at 46.4 % of the peak: 36.3 hours of one GPU, 2 an hour
    hours = next(line for line in lines if line.startswith("GPU-hours: "))
    assert hours.startswith("GPU-hours: 36.")
    assert "; pretraining takes about 4 h 32 min" in hours
    assert any("6 x 8 B parameters x 1.25 B tokens = 6e+19 FLOP" in line for line in lines)


def test_all_that_would_be_refused_is_listed(tmp_path: Path) -> None:
    _, problems = page(
        tmp_path,
        ("globalBatchSize: 64", "globalBatchSize: 60"),
        ("nodes: 1}", "nodes: 3}"),
        ('"s3://corpora/b.jsonl", maxTokens: 100_000_000', '"file://none.jsonl"'),
    )
    assert problems == [
        "profile lab: spec.resources.nodes is 3; at most 2 are allowed",
        f"spec.corpus.general[0].source (line 17): no file matches file://{tmp_path}/none.jsonl; check the path,"
        " which starts at the manifest's folder",
        "spec.pretraining.globalBatchSize is 60, which cannot be divided by 24 (3 nodes x 8 processes): write 48 or 72",
    ]


def test_too_little_memory_is_refused_with_the_parts(tmp_path: Path) -> None:
    _, problems = page(tmp_path, ("memoryGiB: 80", "memoryGiB: 20"))
    assert len(problems) == 1
    assert problems[0].startswith("pretraining needs ")
    assert problems[0].endswith("; 16 ranks (zeroStage 3, recomputed activations: 15.9 GiB a rank)")


def test_plan_page_lists_what_is_unknown(tmp_path: Path) -> None:
    lines, problems = page(
        tmp_path, ("Some-8B", "Some"), (", maxTokens: 1_000_000_000", ""), ("peakTflops: 989, ", "")
    )
    assert problems == []
    text = "\n".join(lines)
    assert "its size is not in its name: give --parameters (for example 8e9) for memory and hours" in text
    assert "s3://corpora/a.jsonl (unknown until prepared: give it maxTokens)" in text
    assert "  tokens         unknown until prepared; a step is 64 sequences of 4,096 tokens" in text
    assert "Memory of one GPU: unknown without the model's size" in text
    assert (
        "GPU-hours: unknown without the profile's accelerator.peakTflops and the model's size and the number of tokens"
        in text
    )


def test_given_parameters_stand_in_for_the_model(tmp_path: Path) -> None:
    lines, _ = page(tmp_path, ("Some-8B", "Some"), parameters=3e9)
    assert lines[1] == "  model     hf://example/Some@abc: 3 B parameters as given, in a typical shape"


@pytest.mark.parametrize(
    ("address", "parameters"),
    [
        ("hf://meta-llama/Llama-3.1-8B@0e9e39f", 8e9),
        ("hf://HuggingFaceTB/SmolLM2-135M-Instruct", 135e6),
        ("s3://models/base/mistral-7b-v0.3", 7e9),
        ("hf://Qwen/Qwen3-0.6B-Base@1234567b", 0.6e9),
        ("hf://example/model-v2@8b", None),
        ("pvc://claim/64bit", None),
    ],
)
def test_sizes_are_read_from_names(address: str, parameters: float | None) -> None:
    assert parameters_in_name(address) == parameters


@pytest.mark.parametrize(
    ("address", "active"),
    [
        ("hf://Qwen/Qwen3-30B-A3B-Base@1b75fee", 3e9),
        ("s3://models/moe_57b_a2.7b", 2.7e9),
        ("hf://meta-llama/Llama-3.1-8B@a3b", None),
    ],
)
def test_parameters_of_a_token_are_read_from_names(address: str, active: float | None) -> None:
    assert active_in_name(address) == active


def test_hours_of_a_mixture_of_experts_count_what_a_token_passes() -> None:
    dense, mixture = typical_model(30e9), typical_model(30e9, 3e9)
    assert training_flops(mixture, 1e9, recompute=False) == 6 * 3e9 * 1e9
    assert training_flops(dense, 1e9, recompute=False) == 10 * training_flops(mixture, 1e9, recompute=False)


def test_a_usual_shape_is_the_nearest_published_one() -> None:
    assert (typical_model(7e9).hidden_size, typical_model(7e9).parameters) == (4096, 7_000_000_000)
    assert typical_model(1e9).layers == 16


@pytest.mark.parametrize("command", ["plan", "lint"])
def test_what_only_reads_needs_no_torch(tmp_path: Path, command: str) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(MANIFEST)
    heavy = ("torch", "transformers", "kopf", "kubernetes", "matplotlib", "numpy", "huggingface_hub")
    code = (
        "import sys; from dapt_operator.cli import main\n"
        f"try: main([{command!r}, {str(path)!r}])\n"
        f"finally: print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_number_of_parameters_must_be_one(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(MANIFEST)
    done = CliRunner().invoke(app, ["plan", str(path), "--parameters", "8e9"])
    assert "8 B parameters as given" in done.output
    error = CliRunner().invoke(app, ["plan", str(path), "--parameters", "8 billion"]).exception
    assert isinstance(error, UserError)
    assert error.problems == ("--parameters 8 billion: not a number of parameters; write for example 8e9",)
    assert error.exit_code == 2


LOCAL = """\
apiVersion: dapt.dev/v1alpha1
kind: DomainAdaptation
metadata: {name: tiny}
spec:
  model: {source: "file://base"}
  corpus:
    domain: [{source: "file://text.jsonl"}]
    general: [{source: "file://text.jsonl"}]
  gates: {maxGeneralPerplexityIncrease: 15}
  finetuning: {data: [{source: "file://sft.jsonl"}]}
  preference: {data: [{source: "file://pairs.jsonl"}], optimizer: {learningRate: 0.5}}
  output: {destination: "file://out"}
  resources: {nodes: 1, gpusPerNode: 1, cpu: "2"}
"""


def local_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], tuple[str, ...]]:
    """Lines and problems for a manifest of this machine, with 400 texts, 300 examples and 12 pairs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write_model(tmp_path / "base")
    for name, records in (("text", 400), ("sft", 300), ("pairs", 12)):
        (tmp_path / f"{name}.jsonl").write_text(('{"text": "' + "x" * 387 + '"}\n') * records)
    (tmp_path / "m.yaml").write_text(LOCAL)
    found = plan(read_request(tmp_path / "m.yaml", None))
    return list(found.lines), found.problems


def test_tuning_stages_have_sections_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, problems = local_page(tmp_path, monkeypatch)
    assert problems == ()
    sections = lines[lines.index("Fine-tuning") : lines.index("Preference tuning") + 7]
    assert [line for line in sections if not line.startswith("  memory")] == [
        "Fine-tuning",
        "  method         lora, learning rate 0.0001",
        "  data           about 300 examples, 30 k tokens a pass",
        "  steps          118 of 4 sequences of up to 128 tokens",
        "  each rank      micro-batch 4 x 1 accumulated, ZeRO 0, fp32",
        "  trained        4,096 parameters",
        "",
        "Preference tuning",
        "  method         lora, learning rate 0.5",
        "  data           about 12 pairs, 1,600 tokens a pass",
        "  steps          12 of 1 pair of up to 128 tokens",
        "  each rank      micro-batch 1 x 1 accumulated, ZeRO 0, fp32",
        "  trained        4,096 parameters",
    ]


def test_warnings_of_values_and_of_few_steps_come_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, _ = local_page(tmp_path, monkeypatch)
    warnings = lines[lines.index("Warnings") + 1 :]
    assert warnings[0].startswith("  - spec.corpus.general[0].source (line 8): file://text.jsonl is ")
    assert warnings[1:3] == [
        "  - spec.gates.maxGeneralPerplexityIncrease (line 9): 15 is a share of 1, that is 1500 %: for 15 % write 0.15",
        "  - spec.preference.optimizer.learningRate (line 11): 0.5 is very large for a language model: usual are 2e-5"
        " (all weights) and 1e-4 (LoRA); check the exponent",
    ]
    assert any(line.startswith("  - preference has 12 optimizer steps, under 20: ") for line in warnings)


def test_time_on_a_cpu_says_by_which_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, _ = local_page(tmp_path, monkeypatch)
    (time,) = [line for line in lines if line.startswith("Time: ")]
    assert time.endswith(", by a rate of 2 cores x 50 GFLOP/s, assumed")
    assert [line.split()[0] for line in lines[lines.index(time) + 1 :][:4]] == [
        "pretrain",
        "finetune",
        "align",
        "measure",
    ]


def test_page_says_what_was_not_looked_at(tmp_path: Path) -> None:
    lines, _ = page(tmp_path)
    assert lines[lines.index("Not looked at") + 1 :][:2] == [
        "  - on the hub (needs the network): spec.model.source",
        "  - in an object store (needs the network and credentials): spec.corpus.domain[0].source,"
        " spec.corpus.general[0].source, spec.output.destination",
    ]
