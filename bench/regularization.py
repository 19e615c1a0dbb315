"""What a penalty costs a step: tokens per second of the pretrain stage with it, over those without.

Prints `NAME VALUE BAR ok|short`. The runs take turns in one process, so that a busy machine slows both; the Fisher
information is measured before training and is not in the figures. KL to the base reads one general sequence for eight
of the batch, forward in both models and back in one: about 8 N operations a token against training's 6 N, so 0.86 of
the speed is what arithmetic allows. Here those are 128 tokens, too few for reading the weights to be worth it: its bar
is 0.65.

    python -m bench.regularization [--rounds 3] [--steps 8] [--zero-stage 0] [--precision fp32]
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

BARS = {"ewc": 0.95, "l2sp": 0.95, "klToBase": 0.65}
SAMPLES = 16


def main() -> int:
    """Measure and print; 0 when all bars are reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--zero-stage", type=int, default=0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    short = False
    for method in ("full", "lora"):
        with tempfile.TemporaryDirectory() as folder:
            ratios = measure(Path(folder), options, method)
        for kind, bar in BARS.items():
            ratio = statistics.median(ratios[kind])
            verdict = "ok" if ratio >= bar else "short"
            name = f"regularization_{method}_{kind.lower()}_tokens_per_second_ratio"
            print(f"{name} {ratio:.3f} {bar} {verdict}", flush=True)
            short |= ratio < bar
    return int(short)


def measure(folder: Path, options: Any, method: str) -> dict[str, list[float]]:
    """With over without, one ratio a round, by kind of penalty."""
    from bench.pretrain import make_larger_model
    from dapt_contract.stages.common import DistributionConfig, LoraConfig
    from dapt_contract.stages.pretrain import RegularizationConfig
    from support.toy_training import make_work_volume, pretrain_config

    work = make_work_volume(folder / "work", sequences=512)
    make_larger_model(work / "model")
    plain = pretrain_config(
        lora=LoraConfig(rank=16, alpha=32) if method == "lora" else None,
        total_steps=options.steps,
        checkpoint_steps=(options.steps,),
        global_batch_size=32,
        micro_batch_size=16,
        distribution=DistributionConfig(zero_stage=options.zero_stage, precision=options.precision),
    )
    ratios: dict[str, list[float]] = {kind: [] for kind in BARS}
    for number in range(options.rounds):
        for kind in BARS:
            asked = RegularizationConfig.model_validate({"kind": kind, "strength": 0.1, "samples": SAMPLES})
            before = step_seconds(work, folder, plain)
            held_back = step_seconds(work, folder, plain.model_copy(update={"regularization": asked}))
            after = step_seconds(work, folder, plain)
            ratios[kind].append((before + after) / 2 / held_back)
            print(
                f"# {method}, {kind}, round {number + 1}: {held_back:.4f} s a step, without {before:.4f} and "
                f"{after:.4f} s",
                file=sys.stderr,
            )
    return ratios


_tries = itertools.count(1)


def step_seconds(work: Path, folder: Path, config: Any) -> float:
    """The median step of a run of its own; checkpoints of earlier runs are put away, a measured Fisher is not."""
    from dapt_trainer.stages import pretrain
    from support.toy_training import make_context

    for path in work.glob("stages/*/try-*/checkpoint-*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    context = make_context(work, folder / "scratch", config, try_number=next(_tries))
    report = pretrain.run(config, context)
    assert report.facts.steps == config.total_steps
    return report.facts.step_seconds_median


if __name__ == "__main__":
    sys.exit(main())
