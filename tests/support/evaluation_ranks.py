"""What two ranks of an evaluation do, and one process for comparison."""

from __future__ import annotations

import json
from pathlib import Path

from dapt_contract.run_identity import RunIdentity
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.blend import Blend, BlendConfig
from dapt_contract.stages.common import ModelReference, TaskConfig
from dapt_trainer.context import SilentProgress, StageContext
from dapt_trainer.distributed import join_ranks, leave_ranks
from dapt_trainer.evaluation.harness import SharedContextModel, TaskRunner
from dapt_trainer.evaluation.perplexity import HeldOutScoring, side_perplexity
from dapt_trainer.evaluation.sharing.work_share import WorkShare
from dapt_trainer.modeling.loading.load_folder import load_model
from dapt_trainer.modeling.stored_models.model_folder import load_tokenizer
from dapt_trainer.stages import blend

TASK = TaskConfig(name="animals", side="domain", source="file://animals.jsonl")


def measure(work: Path, scratch: Path, rank: int, world_size: int) -> list[object]:
    """Return held-out sums, the losses of a blend, and task values."""
    model = load_model(work, ModelReference(weights="model"), precision="fp32")
    tokenizer = load_tokenizer(work)
    scoring = HeldOutScoring(16, rank, world_size)
    side = side_perplexity(model, work, "domain", scoring, tokenizer=tokenizer)
    runner = TaskRunner(work, scratch / f"rank-{rank}-{world_size}", [TASK], limit=7, seed=0)
    items = runner.run(SharedContextModel(model, tokenizer, WorkShare(rank, world_size)), TASK)
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


def evaluate_rank(rank: int, world_size: int, work: Path, scratch: Path) -> int:
    """Measure as one of several ranks and leave what was found in `scratch`; returns the exit code."""
    ranks = join_ranks(rank, rank, world_size)
    found = measure(work, scratch, ranks.rank, ranks.world_size)
    leave_ranks()
    (scratch / f"found-{rank}.json").write_text(json.dumps(found))
    return 0
