"""What checkpoints cost a pretraining: the same run with ten of them and with only the one at its end, taking turns.

Saving and both perplexities stop the training; task evaluations run beside it in runs of their own. As much text is
held out as the API's defaults hold out of a training of this length. The one checkpoint at the end is part of both
runs, so the difference of nine is scaled to ten. What the stage itself counts as standing still is told beside it.

    python -m bench.stall [--rounds 2] [--steps 340]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
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


def measure(folder: Path, options: Any) -> list[float]:
    """Share of the time of a run with ten checkpoints that they took, one value a round."""
    from bench.pretrain import make_larger_model
    from dapt_contract.inputs.held_out import max_held_out_tokens
    from dapt_contract.stages.common import DistributionConfig
    from dapt_contract.stop_rule import StopRule
    from support.toy_training import SEQUENCE_LENGTH, make_work_volume, pretrain_config

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
        plain, _ = seconds_of(work, folder, base, (options.steps,), 2 * number)
        told, counted = seconds_of(work, folder, base, steps, 2 * number + 1)
        shares.append((told - plain) * CHECKPOINTS / (CHECKPOINTS - 1) / told)
        print(
            f"# round {number}: {told:.1f} s with {CHECKPOINTS} checkpoints, {plain:.1f} s with one; the stage counts "
            f"{counted:.1f} s of standing still ({counted / told:.1%}); {held_out:,} tokens a side are held out of "
            f"{training_tokens:,}",
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


def seconds_of(
    work: Path, folder: Path, config: Any, checkpoints: tuple[int, ...], number: int
) -> tuple[float, float]:
    """(from the end of the first step to the end of the last checkpoint, what the stage counts as standing still)."""
    from dapt_trainer.stages import pretrain
    from support.toy_training import make_context

    wanted = config.model_copy(update={"checkpoint_steps": checkpoints, "seed": number})
    context = make_context(work, folder / "scratch", wanted)
    begun = time.monotonic()
    report = pretrain.run(wanted, context)
    whole = time.monotonic() - begun
    return whole - report.curve[0].seconds, report.stall_seconds


if __name__ == "__main__":
    sys.exit(main())
