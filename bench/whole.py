"""A random model goes through every stage on two CPU ranks, with a kill in each stage and a resume on one rank.

Prints `NAME VALUE BAR ok|short`. All weights are trained under ZeRO 3, two ranks share the model by tensor parallelism
where it is measured, candidates are blended, and the chosen one is fine-tuned, verified and published. In every stage a
rank is killed with SIGKILL a while after it has started; in pretraining that is after the first checkpoint, and after
the next one `dapt run` itself is killed and continued with another number of ranks. Run it when it is named:

    python -m bench whole
    python -m bench whole --size 500M --folder /scratch/whole

The folder is kept where it is named. 500M is planned to take up to 17 GiB of memory: 14 bytes a weight for weights,
masters and moments, as many for the copy that a checkpoint is written from, 2 on each rank for what is gathered, and
1.3 GiB for two processes. On disk it takes up to 33 GB: three checkpoints of 1 GB, three optimizer states of 6 GB (two
are kept), a converted one, base model, blend and result. Some 25 minutes on two idle cores: a forward pass takes 1
GFLOP a token of some 150 a second, 5,000 tokens are held out, and about ten models are measured.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from bench.random_models import SIZES, give_shape

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.toy_adaptation import make_toy
from support.toy_learning import learn_a_little

NAME = "whole"
STAGES = ("prepare", "baseline", "pretrain", "blend", "evaluate", "finetune", "verify", "publish")
RANKS, RANKS_AFTER = 2, 1
STEPS = 8
MEASURING = ("baseline", "blend", "evaluate", "verify")
DIVIDED = re.compile(
    rf"\S+: tensor parallel, over {RANKS} ranks; this one holds (?P<held>\d+) of its (?P<whole>\d+) parameters"
)


@dataclass(frozen=True)
class Plan:
    """How a model of a size goes through the stages."""

    memory_gib: int
    """What the profile says one process has."""
    kill_after_seconds: float
    """From the start of a stage's ranks to the kill of one."""
    precision: str = "fp32"
    """Of training. Half a billion weights in bf16 take 13 GiB less, with the copy that a checkpoint is written from."""
    checkpoints: int = 4
    interpolate: str = "[0.5, 1.0]"
    """Blends between the base model and the chosen checkpoint."""


PLANS = {
    "5M": Plan(memory_gib=4, kill_after_seconds=3.0),
    "50M": Plan(memory_gib=6, kill_after_seconds=4.0),
    "500M": Plan(
        memory_gib=14, kill_after_seconds=10.0, precision="bf16", checkpoints=3, interpolate="[0.5]"
    ),
}

MANIFEST = """\
apiVersion: dapt.dev/v1alpha1
kind: AdaptationProfile
metadata: {{name: cpus}}
spec:
  trainerImage: local
  retries: {{infrastructure: 30}}
  accelerator: {{kind: cpu, perNode: 2, memoryGiB: {memory_gib}}}
  storage: {{claimTemplate: {{accessModes: [ReadWriteMany], resources: {{requests: {{storage: 100Gi}}}}}}}}
---
apiVersion: dapt.dev/v1alpha1
kind: DomainAdaptation
metadata: {{name: {name}}}
spec:
  profile: cpus
  seed: 7
  model: {{source: "file://base"}}
  corpus:
    domain: [{{source: "file://text/domain.jsonl"}}]
    general: [{{source: "file://text/general.jsonl"}}]
    replayFraction: 0.25
    heldOut: {{fraction: 0.2}}
    sequenceLength: 64
  pretraining:
    method: {{full: {{}}}}
    budget: {{steps: {steps}}}
    globalBatchSize: 4
    microBatchSize: 2
    optimizer: {{learningRate: 1.0e-4}}
    distribution: {{zeroStage: 3, precision: {precision}}}
    checkpoints: {{count: {checkpoints}}}
  evaluation:
    when: end
    domain: {{tasks: [{{name: toy_domain, source: "file://eval/domain-task.jsonl", fewShot: 0}}]}}
    general: {{tasks: [{{name: toy_general, source: "file://eval/general-task.jsonl", fewShot: 0}}]}}
    probes: {{domain: [{{source: "file://eval/domain-probes.jsonl"}}]}}
  gates: {{maxGeneralPerplexityIncrease: 5, maxGeneralScoreDrop: 100, onBreach: Warn}}
  selection: {{interpolate: {interpolate}, averageLast: 2}}
  finetuning:
    data: [{{source: "file://text/instructions.jsonl", format: messages}}]
    method: {{full: {{}}}}
    budget: {{steps: 3}}
  output: {{destination: "file://out"}}
  resources: {{nodes: 1, gpusPerNode: {ranks}}}
  stageResources:
    baseline: {{gpus: 2, gpusPerModel: 2}}
    evaluate: {{gpus: 2, gpusPerModel: 2}}
    finetune: {{nodes: 1, gpus: 2}}
    verify: {{gpus: 2, gpusPerModel: 2}}
"""


@dataclass
class Kills:
    """What is still to be killed, and what was."""

    open: list[str] = field(default_factory=lambda: list(STAGES))
    done: list[str] = field(default_factory=list)

    def note(self, stage: str, what: str) -> None:
        """Count a kill."""
        self.open.remove(stage)
        self.done.append(f"{what} in {stage}")
        print(f"# killed {self.done[-1]}", file=sys.stderr, flush=True)


def write_manifest(folder: Path, plan: Plan, ranks: int) -> None:
    """Write the manifest for a number of ranks in pretraining."""
    text = MANIFEST.format(name=NAME, steps=STEPS, ranks=ranks, **asdict(plan))
    (folder / f"{NAME}.yaml").write_text(text)


def make_inputs(folder: Path, size: str) -> None:
    """Texts, tokenizer and tasks of the toy adaptation, with a larger random model."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    make_toy(folder, name=NAME)
    base = folder / "base"
    for file in base.glob("*.safetensors*"):
        file.unlink()
    config = AutoConfig.from_pretrained(base)
    give_shape(config, SIZES[size])
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    learn_tokens(model, AutoTokenizer.from_pretrained(base), folder / "text")
    model.to(torch.bfloat16 if PLANS[size].precision == "bf16" else torch.float32).save_pretrained(base)
    print(f"# {sum(weight.numel() for weight in model.parameters()):,} parameters", file=sys.stderr)
    write_manifest(folder, PLANS[size], RANKS)


def learn_tokens(model: Any, tokenizer: Any, texts: Path) -> None:
    """Teach the head which tokens there are, for the baseline refuses a model that guesses; the layers stay random."""
    lines = [
        line for side in ("domain", "general") for line in (texts / f"{side}.jsonl").read_text().splitlines()
    ]
    model.model.layers.requires_grad_(False)
    learn_a_little(model, tokenizer, [json.loads(line)["text"] for line in lines[::9]])
    model.model.layers.requires_grad_(True)


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start or continue the adaptation, in a session of its own."""
    command = [str(Path(sys.executable).with_name("dapt")), "run", f"{NAME}.yaml", "--no-report"]
    with (folder / "dapt.log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True, env=environment()
        )


def environment() -> dict[str, str]:
    """This process' environment, on CPUs."""
    return dict(os.environ) | {"DS_ACCELERATOR": "cpu"}


def agents(process: subprocess.Popen[bytes]) -> Iterator[tuple[str, psutil.Process]]:
    """Agents below a `dapt run`, each with the name of its stage."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for child in children:
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if "dapt_trainer" in words:
            yield words[words.index("dapt_trainer") + 1], child


def ranks_of(agent: psutil.Process) -> list[psutil.Process]:
    """Ranks that an agent has started."""
    found = []
    try:
        for child in agent.children(recursive=True):
            if "dapt_trainer.worker" in child.cmdline():
                found.append(child)
    except psutil.Error:
        return []
    return found


def num_checkpoints(folder: Path) -> int:
    """Complete checkpoints of pretraining, in all its runs."""
    return len({path.name for path in folder.glob("runs/*/work/stages/pretrain-*/try-*/checkpoint-*.json")})


def live(folder: Path, plan: Plan) -> Kills:
    """Run the adaptation to its end through all kills.

    Raises:
        RuntimeError: it ended by an error.
    """
    kills, seen, process = Kills(), dict[int, float](), start(folder)
    checkpoints_at_kill = None
    while process.poll() is None:
        time.sleep(0.1)
        for stage, agent in agents(process):
            ranks = ranks_of(agent)
            if not ranks:
                continue
            age = time.monotonic() - seen.setdefault(agent.pid, time.monotonic())
            if stage in kills.open and age > plan.kill_after_seconds:
                if stage == "pretrain" and not num_checkpoints(folder):
                    continue
                ranks[-1].send_signal(signal.SIGKILL)
                kills.note(stage, "a rank")
                checkpoints_at_kill = num_checkpoints(folder)
            elif (
                stage == "pretrain"
                and "pretrain" not in kills.open
                and checkpoints_at_kill is not None
                and plan.checkpoints > num_checkpoints(folder) > checkpoints_at_kill
            ):
                # Its processes see that it is gone, and end.
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills.done.append("dapt run in pretrain")
                checkpoints_at_kill = None
                write_manifest(folder, plan, RANKS_AFTER)
                process = start(folder)
                break
    if process.returncode:
        raise RuntimeError((folder / "dapt.log").read_text()[-3000:])
    return kills


def pods(folder: Path) -> list[dict[str, Any]]:
    """All pods of the run."""
    return [json.loads(path.read_text()) for path in folder.glob("runs/*/objects/pod-*.json")]


def world_sizes(folder: Path) -> set[int]:
    """World sizes of pretraining's checkpoints."""
    paths = folder.glob("runs/*/work/stages/pretrain-*/try-*/checkpoint-*.json")
    return {int(json.loads(path.read_text())["body"]["world_size"]) for path in paths}


def tensor_parallel(folder: Path) -> dict[str, str]:
    """By measuring stage, what the first rank has logged of a model that two ranks held by tensor parallelism."""
    lines = {}
    for path in sorted(folder.glob("runs/*/logs/*.log")):
        for stage in MEASURING:
            found = DIVIDED.search(path.read_text(errors="replace")) if f"-{stage}-" in path.name else None
            # About half: norms are whole on both.
            if found and int(found["held"]) < 0.75 * int(found["whole"]):
                lines[stage] = found[0]
    return lines


def figures(folder: Path, kills: Kills, plan: Plan) -> list[tuple[str, float, float]]:
    """(name, value, least value) of what must have happened."""
    status: dict[str, Any] = YAML(typ="safe").load(next(folder.glob("runs/*/status.yaml")).read_text())[
        "status"
    ]
    is_published = any((folder / "out").rglob("*.safetensors"))
    names = [str(row["id"]) for row in status.get("candidates", ())]
    blends = [name for name in names if "avg" in name or "-i" in name]
    divided = tensor_parallel(folder)
    for stage, line in divided.items():
        print(f"# {stage}: {line}", file=sys.stderr)
    print(f"# killed: {'; '.join(kills.done)}", file=sys.stderr)
    print(f"# candidates: {', '.join(names)}; {len(pods(folder))} pods", file=sys.stderr)
    return [
        ("published", float(is_published), 1),
        ("kills_survived", len(kills.done), len(STAGES) + 1),
        ("world_sizes_of_checkpoints", len(world_sizes(folder)), 2),
        ("candidates", len(names), plan.checkpoints + 1),
        ("blends", len(blends), 1),
        ("stages_measured_tensor_parallel", len(divided), len(MEASURING)),
    ]


def main() -> int:
    """Run and print; 0 when everything happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=PLANS, default="5M")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        make_inputs(folder, options.size)
        plan = PLANS[options.size]
        found = figures(folder, live(folder, plan), plan)
    print(f"# {time.monotonic() - started:.0f} s", file=sys.stderr)
    for name, value, bar in found:
        print(f"whole.{name} {value:g} {bar:g} {'ok' if value >= bar else 'short'}")
    return int(any(value < bar for _, value, bar in found))


if __name__ == "__main__":
    sys.exit(main())
