"""Runs tasks through lm-evaluation-harness' Python API on a loaded model.

The harness makes the prompts, picks the few-shot examples (the same for every model, because its sampler is seeded for
each task) and grades the answers. The log-likelihoods come from `scoring`, which computes a context that answers share
once and never holds the logits of a whole batch.

The harness' own tasks read the data that prepare stored (`data.harness.data`): the hub is not contacted, and a task is
measured on exactly the items that decontamination searched for.

The score of a custom task is `acc_bytes`: an item is right when the right answer has the highest log-likelihood a UTF-8
byte, because the sum favours short answers and a count of tokens would change with the tokenizer. The score of a task
that the harness ships is the first of `acc_norm`, `acc`, `exact_match`, ... that the task has. A group has one score,
the mean over all its items (mmlu) or over its tasks (legalbench), as the group defines it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import lm_eval.tasks
import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from dapt_contract.layout import TASKS
from dapt_contract.stages.common import TaskConfig
from dapt_trainer.data.harness.data import TaskData, read_task_data, replaced_load_dataset, served
from dapt_trainer.data.harness.snapshot import METRICS, LoadedTasks, chosen_documents, is_weighted_by_size
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.custom_tasks import read_questions, read_rows, write_harness_task
from dapt_trainer.evaluation.items import Item, distinct_ids
from dapt_trainer.evaluation.scoring import Advance, Scorer, Tree, score_everywhere
from dapt_trainer.evaluation.sharing.generation import IN_ONE_PROCESS, SharedGeneration
from dapt_trainer.evaluation.sharing.work_share import ALL_WORK, WorkShare

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

CUSTOM_METRIC = "acc_bytes"
_BATCH_TOKENS = 4096

Request = tuple[tuple[str, str], list[int], list[int]]
"""One request of the harness: (texts, tokens of the context, tokens of the continuation)."""
Sample = dict[str, Any]
"""What the harness logs of one item; which metrics it has depends on the task."""


class SharedContextModel(HFLM):  # type: ignore[misc]
    """Presents a loaded model to the harness; `scoring` computes the log-likelihoods, over all ranks."""

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        share: WorkShare = ALL_WORK,
        generation: SharedGeneration = IN_ONE_PROCESS,
    ) -> None:
        with _quiet():
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=1, backend="causal")
        self._share = share
        self._generation = generation
        self._scorer = Scorer(model, pad_id=self.prefix_token_id)
        self.advance: Advance | None = None

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return the harness' result without its progress bar: the stage shows progress."""
        return list(super().loglikelihood(requests, disable_tqdm=disable_tqdm))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return the generated texts; the ranks share them, and the harness' own method makes each batch."""

        def generate(numbers: list[int]) -> list[str]:
            self.batch_size_per_gpu = len(numbers)
            return list(HFLM.generate_until(self, [requests[number] for number in numbers], disable_tqdm))

        lengths = [
            len(self.tok_encode(text)) + self._new_tokens(settings) for text, settings in _arguments(requests)
        ]
        return self._generation.run(lengths, generate, self.advance)

    def _new_tokens(self, settings: Mapping[str, object]) -> int:
        """Return how many tokens a request may get, under any of the names that the harness accepts."""
        names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        counts = [value for name in names if isinstance(value := settings.get(name), int)]
        return counts[0] if counts else int(self.max_gen_toks)

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **generation_kwargs: object
    ) -> torch.Tensor:
        """Generate one batch by the settings of the task and the harness."""
        # Ranks that share a model draw the same tokens where a task samples.
        torch.manual_seed(0)
        # Not as generation_config.json says: a thousand beams would fill the memory.
        defaults = {"num_beams": 1, "num_return_sequences": 1, "synced_gpus": self._scorer.is_sharded}
        output: torch.Tensor = super()._model_generate(
            context, max_length, stop, **defaults | generation_kwargs
        )
        return output

    def _loglikelihood_tokens(self, requests: list[Request], **_: object) -> list[tuple[float, bool]]:
        """Return for each request the log-likelihood, and whether the continuation is the model's first choice."""
        # 1. Put the continuations of the same context into one tree.
        numbers_by_context: dict[tuple[int, ...], list[int]] = {}
        for number, (texts, context, continuation) in enumerate(requests):
            if not continuation:
                raise InputError(f"the answer {texts[1]!r} has no token of its own; write it differently")
            numbers_by_context.setdefault(tuple(context), []).append(number)
        trees = [
            Tree(
                self._fitting(context, [requests[n][2] for n in numbers]),
                tuple(requests[n][2] for n in numbers),
            )
            for context, numbers in numbers_by_context.items()
        ]
        # 2. Score this rank's share, and add those of the others.
        in_order = iter(
            score_everywhere(
                self._scorer, trees, batch_tokens=_BATCH_TOKENS, share=self._share, advance=self.advance
            )
        )
        # 3. Return the results in the order of the requests.
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for numbers in numbers_by_context.values():
            for number in numbers:
                scored = next(in_order)
                results[number] = (scored.log_likelihood_nats, scored.greedy)
        return results

    def _fitting(self, context: tuple[int, ...], continuations: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Return the end of the context that fits together with the longest answer, at least one token of it."""
        max_context = self.max_length + 1 - max(len(tokens) for tokens in continuations)
        return context[-max(1, max_context) :]


def _arguments(requests: Sequence[Instance]) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield prompt and settings of each request for a text."""
    for request in requests:
        text, settings = request.args
        yield text, settings


class TaskRunner:
    """Runs tasks, one after the other, on one model after the other."""

    def __init__(
        self, work: Path, scratch: Path, tasks: Sequence[TaskConfig], *, limit: int | None, seed: int
    ) -> None:
        """Check every task's file before any model is loaded.

        Args:
            work: root of the work volume, with custom tasks below tasks/ and the data of the harness' below harness/.
            scratch: for the YAML of custom tasks.
            tasks: to run, with unique names.
            limit: items a task; None: all.
            seed: of the few-shot examples.

        Raises:
            InputError: every bad task file, and every task whose data is missing.
        """
        self._work = work
        self._limit = limit
        self._seed = seed
        self._harness_data: dict[str, TaskData] = {}
        folder = scratch / "harness-tasks"
        folder.mkdir(parents=True, exist_ok=True)
        problems: list[str] = []
        for task in tasks:
            try:
                if task.source is None:
                    self._harness_data[task.name] = read_task_data(work, task.name)
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
        """Return the value of the model on each item of a task, in the task's order.

        Raises:
            InputError: the task's data is not available here, or it has no score between 0 and 1.
        """
        model.advance = advance
        try:
            with _quiet():
                loaded = self._load(task.name)
                if task.name in self._harness_data:
                    chosen = chosen_documents(loaded, task.name, self._limit)
                    # Parts without a chosen item are left out: the harness takes an empty choice for all items.
                    parts = {name: part for name, part in loaded["tasks"].items() if name in chosen}
                    measured = {"tasks": parts, "groups": {}, "group_map": {}}
                else:  # the limit was applied when the file was written
                    chosen, measured = None, loaded
                for part in loaded["tasks"].values():
                    # A task that declares 0 examples means it: the harness never overrides that either.
                    if part.get_config("num_fewshot") != 0:
                        part.set_config(key="num_fewshot", value=task.few_shot)
                    part.set_fewshot_seed(seed=self._seed)
                # Without bootstrap: standard errors are computed from the items (`evaluation/items.py`).
                results = evaluate(model, measured, samples=chosen, bootstrap_iters=0, log_samples=True)
        except (OSError, ValueError, KeyError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(
                f"task {task.name}: lm-evaluation-harness could not run it here ({first}); "
                "give it as a custom task with `source:`"
            ) from error
        samples = results["samples"]
        weights = _item_weights(loaded, task.name, {name: len(rows) for name, rows in samples.items()})
        items = [
            item
            for name, rows in sorted(samples.items())
            for item in _items_of(task, "" if len(samples) == 1 else name, weights[name], rows)
        ]
        return [
            item.model_copy(update={"id": id_})
            for item, id_ in zip(items, distinct_ids(item.id for item in items), strict=True)
        ]

    def _load(self, name: str) -> LoadedTasks:
        data = self._harness_data.get(name)
        manager = self._custom
        served_data = replaced_load_dataset(_load_custom_task)
        if data is not None:
            root = Path(lm_eval.tasks.__file__).parent
            # An index of these folders alone: that of all tasks takes seconds to build.
            manager = TaskManager(
                include_path=[str(root / folder) for folder in data.folders], include_defaults=False
            )
            served_data = served(self._work, data)
        with served_data:
            loaded: LoadedTasks = manager.load([name])
        return loaded


def _load_custom_task(*, data_files: Mapping[str, str], **_: object) -> datasets.DatasetDict:
    """Return the questions of a custom task's file, called as `datasets.load_dataset`.

    The library's own reader takes the file's path as a pattern, so that a folder `run[2]` is not found and `run*` is
    several folders; and it makes times of texts that look like dates.
    """
    return datasets.DatasetDict(
        {split: datasets.Dataset.from_list(read_rows(Path(file))) for split, file in data_files.items()}
    )


def _item_weights(loaded: LoadedTasks, name: str, counts: dict[str, int]) -> dict[str, float]:
    """Return the weight of an item of each task, 1 on average, so that the mean over all items is the group's score.

    Args:
        loaded: the group.
        name: of the group.
        counts: measured items of each task.
    """
    if is_weighted_by_size(loaded, name):
        return dict.fromkeys(counts, 1.0)
    total = sum(counts.values())
    return {task: total / (len(counts) * count) for task, count in counts.items()}


def _items_of(task: TaskConfig, group: str, weight: float, samples: Sequence[Sample]) -> Iterator[Item]:
    metrics = (CUSTOM_METRIC,) if task.source is not None else METRICS
    first = samples[0]
    metric = next((name for name in metrics if name in first and 0 <= float(first[name]) <= 1), None)
    if metric is None:
        raise InputError(
            f"task {task.name}: none of its measures ({', '.join(first['metrics'])}) is a share of right answers; "
            f"dapt reads {', '.join(METRICS)}"
        )
    for sample in sorted(samples, key=lambda sample: int(sample["doc_id"])):
        # A task with several filters logs each item once for each of them.
        if sample["filter"] == first["filter"]:
            item_id = sample["doc"].get("id") if task.source is not None else sample["doc_hash"][:16]
            id_ = f"{group}/{item_id}" if group else f"{item_id}"
            yield Item(task=task.name, id=id_, value=float(sample[metric]), group=group, weight=weight)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let the harness log only errors while the block runs: it warns about a model that is loaded already."""
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
