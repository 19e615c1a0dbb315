"""Tasks through lm-evaluation-harness' Python API, with our loaded model and our batches.

The harness makes the prompts, picks the few-shot examples (the same for every model: its sampler is seeded anew for
each task) and judges the answers. The log-likelihoods come from `scoring`, which computes a context that answers share
once and never holds the logits of a whole batch.

The harness' own tasks come with the data that prepare stored (`harness_data`): no hub is asked, and a task is measured
on exactly the items that decontamination looked for (`chosen`).

Which of a task's measures becomes its score: for a custom task `acc_bytes`, right when the right answer has the highest
log-likelihood a UTF-8 byte, because the sum favours short answers and a count of tokens would change with the
tokenizer; for the harness' own tasks the first of `acc_norm`, `acc`, `exact_match`, ... that the task has. A group is
one score: the mean over all its items (mmlu), or over its tasks (legalbench), as the group itself says.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
import torch.distributed as dist
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from dapt_contract.layout import TASKS
from dapt_contract.stages.common import TaskConfig
from dapt_trainer.data.harness.data import TaskData, read_task_data, served
from dapt_trainer.data.harness.snapshot import METRICS, by_size, chosen_documents
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.custom_tasks import read_questions, write_harness_task
from dapt_trainer.evaluation.items import Item, distinct_ids
from dapt_trainer.evaluation.scoring import Advance, Scorer, Tree, score_shared

CUSTOM_METRIC = "acc_bytes"
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
        """Check every task's file before any model is loaded.

        Args:
            work: root of the work volume; custom tasks lie below tasks/, the data of the harness' own below harness/.
            scratch: for the YAML that we write.
            tasks: to run, with unique names.
            limit: items a task; None: all.
            seed: of the few-shot examples.

        Raises:
            InputError: every bad task file, and every task whose data is not there.
        """
        self._work = work
        self._limit = limit
        self._seed = seed
        self._own: dict[str, TaskData] = {}
        folder = scratch / "harness-tasks"
        folder.mkdir(parents=True, exist_ok=True)
        problems: list[str] = []
        for task in tasks:
            try:
                if task.source is None:
                    self._own[task.name] = read_task_data(work, task.name)
                else:
                    questions = read_questions(work / TASKS / f"{task.name}.jsonl", "question", limit=limit)
                    write_harness_task(folder, task.name, questions, task.few_shot)
            except InputError as error:
                problems.extend(error.problems)
        if problems:
            raise InputError(*problems)
        with _quiet():
            self._custom = TaskManager(include_path=str(folder), include_defaults=False)

    def run(self, model: SharedContextModel, task: TaskConfig, advance: Advance | None = None) -> list[Item]:
        """What the model did on each item of a task, in the task's order.

        Raises:
            InputError: the task's data cannot be had here, or it has no score between 0 and 1.
        """
        model.advance = advance
        try:
            with _quiet():
                loaded = self._loaded(task.name)
                chosen = chosen_documents(loaded, task.name, self._limit) if task.name in self._own else None
                for leaf in loaded["tasks"].values():
                    # A task that declares 0 means it: the harness never overrides that either.
                    if leaf.get_config("num_fewshot") != 0:
                        leaf.set_config(key="num_fewshot", value=task.few_shot)
                    leaf.set_fewshot_seed(seed=self._seed)
                if chosen is not None:  # to the harness an empty choice is all
                    kept = {name: leaf for name, leaf in loaded["tasks"].items() if name in chosen}
                    measured = {"tasks": kept, "groups": {}, "group_map": {}}
                    results = evaluate(model, measured, samples=chosen, bootstrap_iters=0, log_samples=True)
                else:
                    results = evaluate(model, loaded, bootstrap_iters=0, log_samples=True)
        except (OSError, ValueError, KeyError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(
                f"task {task.name}: lm-evaluation-harness could not run it here ({first}); "
                "give it as a custom task with `source:`"
            ) from error
        samples = results["samples"]
        weights = _weights(loaded, task.name, {name: len(rows) for name, rows in samples.items()})
        items = [
            item
            for name, rows in sorted(samples.items())
            for item in _items_of(task, "" if len(samples) == 1 else name, weights[name], rows)
        ]
        return [
            item.model_copy(update={"id": name})
            for item, name in zip(items, distinct_ids(item.id for item in items), strict=True)
        ]

    def _loaded(self, name: str) -> Any:
        data = self._own.get(name)
        if data is None:
            return self._custom.load([name])
        root = Path(lm_eval.tasks.__file__).parent
        manager = TaskManager(
            include_path=[str(root / folder) for folder in data.folders], include_defaults=False
        )
        with served(self._work, data):
            return manager.load([name])


def _weights(loaded: Any, name: str, items: dict[str, int]) -> dict[str, float]:
    """Of an item of each task, so that the weighted mean over all items is the group's score; 1 on average."""
    if by_size(loaded, name):
        return dict.fromkeys(items, 1.0)
    total = sum(items.values())
    return {task: total / (len(items) * count) for task, count in items.items()}


def _items_of(
    task: TaskConfig, group: str, weight: float, samples: Sequence[dict[str, Any]]
) -> Iterator[Item]:
    wanted = (CUSTOM_METRIC,) if task.source is not None else METRICS
    metric = next((name for name in wanted if name in samples[0] and 0 <= float(samples[0][name]) <= 1), None)
    if metric is None:
        raise InputError(
            f"task {task.name}: none of its measures ({', '.join(samples[0]['metrics'])}) is a share of right answers; "
            f"dapt reads {', '.join(METRICS)}"
        )
    for sample in sorted(samples, key=lambda sample: int(sample["doc_id"])):
        if sample["filter"] == samples[0]["filter"]:
            name = sample["doc"].get("id") if task.source is not None else sample["doc_hash"][:16]
            place = f"{group}/{name}" if group else f"{name}"
            yield Item(task=task.name, id=place, value=float(sample[metric]), group=group, weight=weight)


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
