"""Two ranks tune as one does: fine-tuning with ragged responses, preference tuning with its reference."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dapt_contract.stages.align import AlignConfig
from dapt_contract.stages.common import (
    DistributionConfig,
    ModelReference,
    OptimizerConfig,
    ScheduleConfig,
)
from dapt_contract.stages.finetune import FinetuneConfig
from dapt_trainer.stages import align, finetune
from support.toy_training import FILTERS, make_context, make_work_volume, write_instructions

pytestmark = [
    pytest.mark.torch,
    pytest.mark.distributed,
    *(pytest.mark.filterwarnings(line) for line in FILTERS),
]
SHARED = {
    "model": ModelReference(weights="model"),
    "sequence_length_tokens": 64,
    "global_batch_size": 4,
    "micro_batch_size": 1,
    "optimizer": OptimizerConfig(learning_rate=1e-3),
    "schedule": ScheduleConfig(),
    "distribution": DistributionConfig(zero_stage=2, precision="fp32"),
}


def tune(work: Path, rank: int, world_size: int) -> list[list[float]]:
    """Curves of both stages; also what the ranks run."""
    tries = {"try_number": 3 - world_size, "rank": rank, "world_size": world_size}
    tuning = FinetuneConfig(**SHARED, total_steps=3)
    tuned = finetune.run(tuning, make_context(work, work / "scratch", tuning, kind="finetune", **tries))
    preferring = AlignConfig(**SHARED, beta=0.3, epochs=1.6)
    aligned = align.run(preferring, make_context(work, work / "scratch", preferring, kind="align", **tries))
    rewards = [aligned.facts.reward_accuracy, aligned.facts.reward_margin]
    return [
        *([point.loss_nats, point.gradient_norm or 0.0] for point in (*tuned.curve, *aligned.curve)),
        rewards,
    ]


def main(work: str) -> None:
    """One rank."""
    found = tune(Path(work), int(os.environ["RANK"]), 2)
    Path(work, f"found-{os.environ['RANK']}.json").write_text(json.dumps(found))


def test_two_ranks_tune_as_one(tmp_path: Path) -> None:
    make_work_volume(tmp_path)
    write_instructions(tmp_path, [("why?" * (1 + n % 4), "so " * (1 + 5 * (n % 3))) for n in range(9)])
    lines = [
        {
            "prompt": [{"role": "user", "content": f"q{n}"}],
            "chosen": [{"role": "assistant", "content": "yes " * (1 + n)}],
            "rejected": [{"role": "assistant", "content": "no " * (6 - n)}],
        }
        for n in range(5)
    ]
    (tmp_path / "preferences").mkdir()
    (tmp_path / "preferences" / "train.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    tests = str(Path(__file__).parents[2])
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            env=os.environ | ranks | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": tests},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    endings = [worker.communicate(timeout=240)[1].decode()[-2000:] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], endings
    found = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]
    alone = tune(tmp_path, 0, 1)
    assert len(alone) == 3 + 2 + 1
    for one, two in zip(alone, found[0], strict=True):
        assert two == pytest.approx(one, abs=1e-5, rel=1e-4)


if __name__ == "__main__":
    from dapt_trainer.worker import end

    main(*sys.argv[1:])
    end(0)  # as real ranks end: threads of libraries may abort an ordinary exit
