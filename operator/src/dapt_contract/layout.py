"""Names the folders and files of the work volume. All paths are relative to its root and use '/'."""

from __future__ import annotations

import re

from dapt_contract.run_identity import RunIdentity, lineage_name

_TRY_FOLDER = re.compile(r"try-([1-9][0-9]{0,8})", re.ASCII)

MODEL = "model"
"""The base model: safetensors, config, tokenizer, and `facts.json`."""
EXTENDED_MODEL = "model-extended"
"""The base model with the rows of an extended tokenizer, and that tokenizer; only when the spec extends it."""
DATA = "data"
"""Packed shards, one folder a source: `data/domain-0`, `data/general-0`; `data/manifest.json` above them."""
HELD_OUT = "held-out"
"""`held-out/domain-a.jsonl` and so on: one document a line."""
TASKS = "tasks"
"""Custom evaluation tasks and probe sets as JSONL: `tasks/NAME.jsonl`, `probes/NAME.jsonl`."""
PROBES = "probes"
ITEMS = "items"
"""`items/items.jsonl`: question and answers of every measured item, which no training text may contain."""
INSTRUCTIONS = "instructions"
"""SFT data: `instructions/DIGEST/train.jsonl`, rendered by the chat template; DIGEST names its configuration."""
PREFERENCES = "preferences"
"""DPO data: `preferences/DIGEST/train.jsonl`, rendered in the same way."""
TUNING_RECORDS = "train.jsonl"
"""Name of the file of examples or pairs in its folder."""
HARNESS = "harness"
"""Data of the tasks that the harness ships: `harness/NAME/task.json`, and the splits that are read in the same
folder."""
HUB_CACHE = "hf-cache"
"""HF_HOME of the stages that run offline."""
STAGES = "stages"
REPORT = "report.json"
"""Name of a run's report in its own folder; written last."""
WRITTEN = "written"
"""Folder below a run's own with the model that it was asked to load, where that is none of the volume's folders; the
run removes it."""
BLENDS = "blends"
"""Folder below a blend run's own: `blends/CANDIDATE` is a whole model."""
PREPARED = (MODEL, EXTENDED_MODEL, HELD_OUT, TASKS, HARNESS, PROBES, ITEMS, INSTRUCTIONS, PREFERENCES, DATA)
"""Folders that prepare writes, in the order in which it moves them into place: the data with its manifest last."""


def lineage_folder(identity: RunIdentity) -> str:
    """Return the folder that all runs of the same work share."""
    return stage_folder(identity.stage, identity.attempt, identity.candidate)


def stage_folder(stage: str, attempt: int = 1, candidate: str | None = None) -> str:
    """Return the folder of the work that a stage does for an attempt and a candidate."""
    return f"{STAGES}/{lineage_name(stage, attempt, candidate)}"


def try_folder(identity: RunIdentity) -> str:
    """Return the only folder below which this run writes."""
    return f"{lineage_folder(identity)}/try-{identity.try_number}"


def report_path(identity: RunIdentity) -> str:
    """Return the path of this run's report."""
    return f"{try_folder(identity)}/{REPORT}"


def try_number(folder: str) -> int | None:
    """Return the number of a run by the name of its folder; None for the name of any other folder."""
    match = _TRY_FOLDER.fullmatch(folder)
    return int(match[1]) if match is not None else None
