"""`dapt plan`: the whole page for one manifest, and what is refused before anything runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dapt_operator.cli.app import app
from dapt_operator.cli.commands.plan import plan
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.inputs.manifests import read_request
from dapt_operator.cli.inputs.model_shape import parameters_in_name, typical_model

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
    assert lines[: lines.index("Memory of one GPU: 60.3 GiB of 80.0 GiB")] == [
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
    assert problems[0].endswith("; 16 ranks (zeroStage 3, recomputed activations: 18.1 GiB a rank)")


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


def test_a_usual_shape_is_the_nearest_published_one() -> None:
    assert (typical_model(7e9).hidden_size, typical_model(7e9).parameters) == (4096, 7_000_000_000)
    assert typical_model(1e9).layers == 16


def test_planning_needs_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(MANIFEST)
    heavy = ("torch", "transformers", "kopf", "kubernetes", "matplotlib")
    code = (
        "import sys; from dapt_operator.cli import main\n"
        f"try: main(['plan', {str(path)!r}])\n"
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
