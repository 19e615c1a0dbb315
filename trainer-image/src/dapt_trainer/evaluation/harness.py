"""Tasks through lm-evaluation-harness' Python API, with our loaded model and our batches.

The harness makes the prompts, picks the few-shot examples (the same for every model: its sampler is seeded anew for
each task) and judges the answers. The log-likelihoods come from `scoring`, which computes a context that answers share
once and never holds the logits of a whole batch.

Which of a task's measures becomes its score: for a custom task `acc_bytes`, right when the right answer has the highest
log-likelihood a UTF-8 byte, because the sum favours short answers and a count of tokens would change with the
tokenizer; for the harness' own tasks the first of `acc_norm`, `acc`, `exact_match`, ... that the task has. A group's
score (mmlu) is the mean over all its items, and a limit is spread evenly over its tasks.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch.distributed as dist
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from dapt_contract.layout import TASKS
from dapt_contract.stages.common import TaskConfig
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.items import Item, distinct_ids
from dapt_trainer.evaluation.questions import read_questions, write_harness_task
from dapt_trainer.evaluation.scoring import Advance, Scorer, Tree, score_shared

CUSTOM_METRIC = "acc_bytes"
_METRICS = ("acc_norm", "acc", "exact_match", "em", "mc2")
_BATCH_TOKENS = 4096


class SharedContextModel(HFLM):  # type: ignore[misc]
    """The harness' view of a loaded model; log-likelihoods are computed by `scoring`, over all ranks."""

    def __init__(self, model: Any, tokenizer: Any, *, rank: int = 0, world_size: int = 1) -> None:
        with _quiet():
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=1, backend="causal")
        self._ranks = (rank, world_size)
        self._scorer = Scorer(model, pad_id=self.prefix_token_id)
        self.advance: Advance | None = None

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As the harness has it, without a progress bar: the board shows progress."""
        return list(super().loglikelihood(requests, disable_tqdm=disable_tqdm))

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood and greediness of each (texts, context, continuation)."""
        places: dict[tuple[int, ...], list[int]] = {}
        for number, (texts, context, continuation) in enumerate(requests):
            if not continuation:
                raise InputError(f"the answer {texts[1]!r} has no token of its own; write it differently")
            places.setdefault(tuple(context), []).append(number)
        trees = [
            Tree(
                self._fitting(context, [requests[n][2] for n in numbers]),
                tuple(requests[n][2] for n in numbers),
            )
            for context, numbers in places.items()
        ]
        rank, world_size = self._ranks
        share = score_shared(
            self._scorer,
            trees,
            batch_tokens=_BATCH_TOKENS,
            rank=rank,
            world_size=world_size,
            advance=self.advance,
        )
        if world_size > 1:
            shares: list[Any] = [None] * world_size
            dist.all_gather_object(shares, share)
            share = {index: row for part in shares for index, row in part.items()}
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for index, numbers in enumerate(places.values()):
            for number, scored in zip(numbers, share[index], strict=True):
                results[number] = (scored.log_likelihood_nats, scored.greedy)
        return results

    def _fitting(self, context: tuple[int, ...], continuations: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """The end of the context that leaves room for the longest answer, at least one token of it."""
        room = self.max_length + 1 - max(len(tokens) for tokens in continuations)
        return context[-max(1, room) :]


class TaskRunner:
    """Runs tasks, one after the other, on one model after the other."""

    def __init__(
        self, work: Path, scratch: Path, tasks: Sequence[TaskConfig], *, limit: int | None, seed: int
    ) -> None:
        """Check every task's file and name before any model is loaded.

        Args:
            work: root of the work volume; custom tasks lie below tasks/.
            scratch: for the YAML that we write.
            tasks: to run, with unique names.
            limit: items a task; None: all.
            seed: of the few-shot examples.

        Raises:
            InputError: every unknown name and every bad task file.
        """
        self._limit = limit
        self._seed = seed
        folder = scratch / "harness-tasks"
        folder.mkdir(parents=True, exist_ok=True)
        problems: list[str] = []
        own = [task for task in tasks if task.source is None]
        for task in tasks:
            if task.source is not None:
                try:
                    questions = read_questions(work / TASKS / f"{task.name}.jsonl", "question", limit=limit)
                    write_harness_task(folder, task.name, questions, task.few_shot)
                except InputError as error:
                    problems.extend(error.problems)
        with _quiet():
            self._manager = TaskManager(include_path=str(folder), include_defaults=bool(own))
        problems.extend(self._unknown(task.name) for task in own if task.name not in self._manager.all_tasks)
        if problems:
            raise InputError(*problems)

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._manager.all_tasks, n=3)
        known = f"; nearest: {', '.join(near)}" if near else ""
        return (
            f"task {name!r}: lm-evaluation-harness has no task of that name{known}; "
            "give a custom task with `source: file://...jsonl`"
        )

    def run(self, model: SharedContextModel, task: TaskConfig, advance: Advance | None = None) -> list[Item]:
        """What the model did on each item of a task, in the task's order.

        Raises:
            InputError: the task's data cannot be had here, or it has no score between 0 and 1.
        """
        model.advance = advance
        try:
            with _quiet():
                loaded = self._manager.load([task.name])
                leaves = loaded["tasks"]
                for leaf in leaves.values():
                    # A task that declares 0 means it: the harness never overrides that either.
                    if leaf.get_config("num_fewshot") != 0:
                        leaf.set_config(key="num_fewshot", value=task.few_shot)
                    leaf.set_fewshot_seed(seed=self._seed)
                limit = self._limit if self._limit is None else -(-self._limit // len(leaves))
                results = evaluate(model, loaded, limit=limit, bootstrap_iters=0, log_samples=True)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(
                f"task {task.name}: lm-evaluation-harness could not run it here ({first}); evaluations run offline, "
                "so give it as a custom task with `source:`"
            ) from error
        items = [
            item
            for name, samples in sorted(results["samples"].items())
            for item in _items_of(task, "" if name == task.name else f"{name}/", samples)
        ]
        return [
            item.model_copy(update={"id": name})
            for item, name in zip(items, distinct_ids(item.id for item in items), strict=True)
        ]


def _items_of(task: TaskConfig, prefix: str, samples: Sequence[dict[str, Any]]) -> Iterator[Item]:
    wanted = (CUSTOM_METRIC,) if task.source is not None else _METRICS
    metric = next((name for name in wanted if name in samples[0] and 0 <= float(samples[0][name]) <= 1), None)
    if metric is None:
        raise InputError(
            f"task {task.name}: none of its measures ({', '.join(samples[0]['metrics'])}) is a share of right answers; "
            f"dapt reads {', '.join(_METRICS)}"
        )
    for sample in sorted(samples, key=lambda sample: int(sample["doc_id"])):
        if sample["filter"] == samples[0]["filter"]:
            name = sample["doc"].get("id") if task.source is not None else sample["doc_hash"][:16]
            yield Item(task=task.name, id=f"{prefix}{name}", value=float(sample[metric]))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Errors alone from the harness' log: it warns about passing a loaded model, which is what we want."""
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
