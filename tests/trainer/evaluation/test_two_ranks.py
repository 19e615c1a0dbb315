"""Two ranks share the work and end with one process' numbers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dapt_contract.run_identity import RunIdentity
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.blend import Blend, BlendConfig
from dapt_contract.stages.common import ModelReference, TaskConfig
from dapt_trainer.context import SilentProgress, StageContext
from dapt_trainer.evaluation.harness import SharedContextModel, TaskRunner
from dapt_trainer.evaluation.perplexity import side_perplexity
from dapt_trainer.modeling.compose import load_model
from dapt_trainer.modeling.model_folder import load_tokenizer
from dapt_trainer.stages import blend

pytestmark = [pytest.mark.torch, pytest.mark.distributed]
TASK = TaskConfig(name="animals", side="domain", source="file://animals.jsonl")


def measure(work: Path, scratch: Path, rank: int, world_size: int) -> list[object]:
    """Held-out sums and task values; also what the ranks run."""
    model = load_model(work, ModelReference(weights="model"), precision="fp32")
    tokenizer = load_tokenizer(work)
    side = side_perplexity(
        model, work, "domain", context_length_tokens=16, end_of_text_id=0, tokenizer=tokenizer,
        rank=rank, world_size=world_size,
    )  # fmt: skip
    runner = TaskRunner(work, scratch / f"rank-{rank}-{world_size}", [TASK], limit=7, seed=0)
    items = runner.run(SharedContextModel(model, tokenizer, rank=rank, world_size=world_size), TASK)
    blended = blend_losses(work, scratch, rank, world_size)
    return [
        side.a.nll_nats,
        side.b.nll_nats,
        *blended,
        side.both.tokens,
        [item.value for item in items],
    ]


def blend_losses(work: Path, scratch: Path, rank: int, world_size: int) -> list[float]:
    """The four losses of a model between two others, by the stage."""
    one = Blend(candidate="a1-s8-i0.5", model=ModelReference(weights="tuned", interpolation=0.5))
    config = BlendConfig(blends=(one,), context_length_tokens=16)
    identity = RunIdentity(namespace="n", name="x", uid="u", stage="blend", attempt=1, try_number=1, fence=1)
    context = StageContext(
        stage=StageFile(run=identity, kind="blend", config=config),
        work=work,
        scratch=scratch,
        progress=SilentProgress(),
        rank=rank,
        world_size=world_size,
    )
    (row,) = blend.run(config, context).facts.rows
    return [row.domain_a_nats, row.domain_b_nats, row.general_a_nats, row.general_b_nats]


def main(work: str, scratch: str) -> None:
    """One rank."""
    from dapt_trainer.distributed import join_ranks, leave_ranks

    rank = int(os.environ["RANK"])
    ranks = join_ranks(rank, rank, 2)
    found = measure(Path(work), Path(scratch), ranks.rank, ranks.world_size)
    leave_ranks()
    Path(scratch, f"found-{rank}.json").write_text(json.dumps(found))


def test_two_ranks_find_what_one_finds(toy_work: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(toy_work), str(tmp_path)],
            env=os.environ
            | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    endings = [worker.communicate(timeout=120)[1].decode()[-2000:] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], endings
    found = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]
    alone = measure(toy_work, tmp_path, 0, 1)
    assert found[0][:6] == pytest.approx(alone[:6], rel=1e-6)
    assert found[0][6:] == alone[6:]


if __name__ == "__main__":
    from dapt_trainer.worker import end

    main(*sys.argv[1:])
    end(0)  # as real ranks end: threads of libraries may abort an ordinary exit
