"""Where things lie on the work volume. All paths are relative to its root and use '/'."""

from __future__ import annotations

from dapt_contract.run_identity import RunIdentity

MODEL = "model"
"""The base model: safetensors, config, tokenizer, and `facts.json`."""
EXTENDED_MODEL = "model-extended"
"""The base model with the rows of a grown tokenizer, and that tokenizer; only when the spec extends it."""
DATA = "data"
"""Packed shards, one folder a source: `data/domain-0`, `data/general-0`; `data/manifest.json` above them."""
HELD_OUT = "held-out"
"""`held-out/domain-a.jsonl` and so on: one document a line."""
TASKS = "tasks"
"""Custom evaluation tasks and probe sets as JSONL: `tasks/NAME.jsonl`, `probes/NAME.jsonl`."""
PROBES = "probes"
INSTRUCTIONS = "instructions"
"""SFT data in one format: `instructions/train.jsonl` with a list of messages a line."""
PREFERENCES = "preferences"
"""DPO data: `preferences/train.jsonl` with prompt, chosen and rejected as lists of messages a line."""
HARNESS = "harness"
"""Data of the harness' own tasks: `harness/NAME/task.json` and the splits that are read, beside it."""
HUB_CACHE = "hf-cache"
"""HF_HOME of the stages that run offline."""
STAGES = "stages"
REPORT = "report.json"
"""In a try's folder; written last."""


def lineage_folder(identity: RunIdentity) -> str:
    """Shared by all tries of the same work."""
    return f"{STAGES}/{identity.lineage}"


def try_folder(identity: RunIdentity) -> str:
    """The only folder below which this run writes."""
    return f"{lineage_folder(identity)}/try-{identity.try_number}"


def report_path(identity: RunIdentity) -> str:
    """This run's full report."""
    return f"{try_folder(identity)}/{REPORT}"
