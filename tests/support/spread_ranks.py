"""What ranks of a measuring stage do that share one model, and one process for comparison."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from lm_eval.api.instance import Instance

from dapt_contract.run_identity import RunIdentity
from dapt_contract.stage_file import StageFile, write_report
from dapt_contract.stages.baseline import BaselineConfig
from dapt_contract.stages.common import EvaluationConfig, ModelReference, ModelSpread, ProbeConfig, TaskConfig
from dapt_contract.stages.verify import NamedModel, VerifyConfig
from dapt_trainer.context import SilentProgress, StageContext
from dapt_trainer.data.chat.render_pool import RenderPool
from dapt_trainer.data.chat.rendering import Conversation, LabelledText, TemplateError
from dapt_trainer.distributed import evaluation_ranks, leave_ranks
from dapt_trainer.evaluation import samples
from dapt_trainer.evaluation.harness import SharedContextModel
from dapt_trainer.evaluation.sharing.generation import SharedGeneration
from dapt_trainer.evaluation.sharing.work_share import share_of_generation, share_of_work
from dapt_trainer.modeling.loading.spread_model import SpreadLoader, held_parameters
from dapt_trainer.modeling.stored_models.model_folder import load_tokenizer
from dapt_trainer.stages import baseline, verify
from dapt_trainer.training.tuning import chat

BASE, TUNED = ModelReference(weights="model"), ModelReference(weights="tuned")
EVALUATION = EvaluationConfig(
    tasks=(TaskConfig(name="animals", side="domain", source="file://animals.jsonl"),),
    probes=(ProbeConfig(name="facts", side="domain", source="file://facts.jsonl"),),
    limit=9,
    context_length_tokens=16,
)
REQUESTS = (
    ("the red cat", {"until": ["."], "max_gen_toks": 7}),
    ("a", {"until": ["cat"], "max_gen_toks": 5}),
    ("a bird sleeps under the green dog and the blue", {"until": ["."], "max_gen_toks": 7}),
)


def measure_base(work: Path) -> None:
    """Run baseline in one process and leave its report on the volume."""
    config = BaselineConfig(model=BASE, evaluation=EVALUATION)
    context = _context("baseline", config, work, 0, 1)
    write_report(work, context.stage, baseline.run(config, context))


def verify_config(spread: ModelSpread, **changes: object) -> VerifyConfig:
    """Return the comparison of two models."""
    return VerifyConfig(
        models=(NamedModel(name="base", model=BASE), NamedModel(name="final", model=TUNED)),
        evaluation=EVALUATION,
        base_items_path="stages/baseline-a1",
        sample_prompts=3,
        sample_new_tokens=6,
        spread=spread,
    ).model_copy(update=changes)


class SlowPool(RenderPool):
    """Renders nothing within its time."""

    def rendered(
        self, conversations: Iterable[Conversation]
    ) -> Iterator[tuple[LabelledText, ...] | TemplateError]:
        """Yield a failure for each."""
        return (TemplateError("too slow") for _ in conversations)


def verify_on_own_volume(rank: int, world_size: int, volumes: Path) -> int:
    """Compare two models by ranks that share each; a rank sees the volume with its number, and leaves its report there.

    All ranks but the first are too slow to render chat templates.
    """
    work = volumes / f"rank-{rank}"
    if rank:
        vars(samples)["RenderPool"] = vars(chat)["RenderPool"] = SlowPool
    spread = ModelSpread(ranks_per_model=world_size, method="tensorParallel")
    config = verify_config(spread, reuse_paths=(("base", "stages/evaluate-a1"),))
    report = verify.run(config, _context("verify", config, work, rank, world_size))
    leave_ranks()
    (work / "found.json").write_text(report.model_dump_json())
    return 0


def measure(work: Path, rank: int, world_size: int, spread: ModelSpread) -> dict[str, object]:
    """Return verify's report, generated texts, and the part of the model that this rank held."""
    config = verify_config(spread)
    context = _context("verify", config, work, rank, world_size)
    report = verify.run(config, context)
    ranks = evaluation_ranks(context)
    model = SpreadLoader(work, spread, ranks).load(BASE, precision="fp32")
    generation = SharedGeneration(ranks if world_size > 1 else None, share_of_generation(spread, ranks))
    harness = SharedContextModel(model, load_tokenizer(work), share_of_work(spread, ranks), generation)
    instances = [
        Instance(request_type="generate_until", doc={}, arguments=arguments, idx=number)
        for number, arguments in enumerate(REQUESTS)
    ]
    held, whole = held_parameters(model)
    return {
        "report": report.model_dump(mode="json"),
        "texts": harness.generate_until(instances),
        "part": held / whole,
    }


def measure_rank(rank: int, world_size: int, work: Path, scratch: Path, spread: ModelSpread) -> int:
    """Measure as one of several ranks and leave what was found in `scratch`; returns the exit code."""
    found = measure(work, rank, world_size, spread)
    leave_ranks()
    (scratch / f"found-{rank}.json").write_text(json.dumps(found))
    return 0


def _context(
    stage: str, config: BaselineConfig | VerifyConfig, work: Path, rank: int, world_size: int
) -> StageContext:
    identity = RunIdentity(namespace="n", name="x", uid="u", stage=stage, attempt=1, try_number=1, fence=1)
    return StageContext(
        stage=StageFile(run=identity, kind=stage, config=config),
        work=work,
        scratch=work / "scratch" / stage,
        progress=SilentProgress(),
        rank=rank,
        local_rank=rank,
        world_size=world_size,
    )
