"""CPU time that checkpoints take of a pretraining: ten of them, each with its save and both perplexities.

Saving and both perplexities stop the training; task evaluations run beside it in runs of their own. As much text is
held out as the API's defaults hold out of a training of this length. The figure is the CPU time of the training's
thread in them, over all that it takes after the first step, with one thread for the arithmetic: what other processes
take changes neither. What the thread that writes files takes meanwhile, and the time that the stage itself counts as
standing still, are shown beside it.

    python -m bench.stall [--rounds 2] [--steps 340]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

BAR = 0.03
CHECKPOINTS = 10
HELD_OUT_FRACTION = 0.005
DOCUMENT_TOKENS = 31


def main() -> int:
    """Measure and print; 0 when the bar is reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=340)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        share = statistics.median(measure(Path(folder), options))
    print(
        f"pretrain_stall_for_checkpoints_share {share:.4f} {BAR} {'ok' if share <= BAR else 'short'}",
        flush=True,
    )
    return int(share > BAR)


@dataclass
class Parts:
    """CPU seconds after the first step, of the training's thread but for `others`."""

    whole: float = 0.0
    saving: float = 0.0
    measuring: float = 0.0
    others: float = 0.0
    """Of all other threads, which write checkpoints and read rows."""
    stall: float = 0.0
    """Seconds by the clock that the stage counts as standing still."""


def measure(folder: Path, options: Any) -> list[float]:
    """Share of the CPU time of a run with ten checkpoints that they took, one value a round."""
    import torch

    from bench.pretrain import make_larger_model
    from dapt_contract.inputs.held_out import max_held_out_tokens
    from dapt_contract.stages.common import DistributionConfig
    from dapt_contract.stop_rule import StopRule
    from support.toy_training import SEQUENCE_LENGTH, make_work_volume, pretrain_config

    torch.set_num_threads(1)
    batch = 64
    training_tokens = options.steps * batch * SEQUENCE_LENGTH
    held_out = min(
        round(HELD_OUT_FRACTION * training_tokens), max_held_out_tokens(training_tokens, CHECKPOINTS)
    )
    work = make_work_volume(folder / "work", sequences=4 * batch)
    make_larger_model(work / "model")
    hold_out(work, held_out)
    base = pretrain_config(
        lora=None,
        total_steps=options.steps,
        global_batch_size=batch,
        micro_batch_size=16,
        distribution=DistributionConfig(zero_stage=0, precision="fp32"),
        stop_rule=StopRule(max_increase_fraction=1.0, patience=2, hard_stop_factor=4.0, enforce_limit=False),
    )
    steps = tuple(round(number * options.steps / CHECKPOINTS) for number in range(1, CHECKPOINTS + 1))
    shares = []
    for number in range(1, options.rounds + 1):
        parts = parts_of(work, folder, base, steps, number)
        shares.append((parts.saving + parts.measuring) / parts.whole)
        print(
            f"# round {number}: {parts.whole:.1f} s of CPU time with {CHECKPOINTS} checkpoints: saves "
            f"{parts.saving:.2f}, perplexities {parts.measuring:.2f}, other threads {parts.others:.1f}; "
            f"the stage counts {parts.stall:.1f} s of standing still; {held_out:,} tokens a side "
            f"are held out of {training_tokens:,}",
            file=sys.stderr,
        )
    return shares


def hold_out(work: Path, tokens: int) -> None:
    """Held-out text of so many tokens a side, in two halves."""
    import numpy as np

    from dapt_trainer.data.packing.held_out import HALVES, HeldOutDocument, write_held_out

    generator = np.random.default_rng(0)
    for side in ("domain", "general"):
        for half in HALVES:
            ids = generator.integers(1, 250, size=(max(1, tokens // 2 // DOCUMENT_TOKENS), DOCUMENT_TOKENS))
            documents = [
                HeldOutDocument(ids=row, bytes=2 * DOCUMENT_TOKENS, text="held out") for row in ids.tolist()
            ]
            write_held_out(work / "held-out", side, half, documents)


def parts_of(work: Path, folder: Path, config: Any, checkpoints: tuple[int, ...], number: int) -> Parts:
    """Run the stage with another seed, and return where its CPU time went."""
    from dapt_trainer.distributed import join_ranks
    from dapt_trainer.stages.pretrain import PretrainRun
    from support.toy_training import make_context

    parts = Parts()
    wanted = config.model_copy(update={"checkpoint_steps": checkpoints, "seed": number})

    class Timed(PretrainRun):
        begun = (0.0, 0.0)

        def _save(self, step: int, tokens: int) -> None:
            begun = time.thread_time()
            super()._save(step, tokens)
            parts.saving += time.thread_time() - begun

        def _measure(self, step: int) -> None:
            begun = time.thread_time()
            super()._measure(step)
            parts.measuring += time.thread_time() - begun

        def _after_step(self, reading: Any) -> None:
            if reading.step == 1:
                self.begun = (time.thread_time(), time.process_time())
            super()._after_step(reading)

    stage = Timed(wanted, make_context(work, folder / "scratch", wanted), join_ranks(0, 0, 1))
    report = stage.run()
    parts.whole = time.thread_time() - stage.begun[0]
    parts.others = time.process_time() - stage.begun[1] - parts.whole
    parts.stall = report.stall_seconds
    return parts


if __name__ == "__main__":
    sys.exit(main())
