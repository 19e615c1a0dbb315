"""A piece as the manifest of a DomainAdaptation: the three recipes differ in what stands here and in nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from science.real.pieces import SEQUENCE_TOKENS, SEQUENCES, STEPS, TOKENS, Piece

HELD_OUT_TOKENS: Final = 4000
RIVAL_REPLAY: Final = 0.05
LAST: Final = f"a1-s{STEPS}"
TASKS: Final = {"clinical": ("chapters", "codes"), "cloud": ("operations",)}


def manifest(piece: Piece, data: Path, destination: Path, model: str | None = None) -> list[dict[str, Any]]:
    """Return the profile and the adaptation.

    Args:
        piece: what is run.
        data: folder of the texts and questions.
        destination: folder of the published model.
        model: source of the base model; None: the one among the data.
    """
    profile = {
        "apiVersion": "dapt.dev/v1alpha1",
        "kind": "AdaptationProfile",
        "metadata": {"name": "science"},
        "spec": {
            "trainerImage": "local",
            "accelerator": {"kind": "cpu", "perNode": 1, "memoryGiB": 8},
            "storage": {
                "claimTemplate": {
                    "accessModes": ["ReadWriteMany"],
                    "resources": {"requests": {"storage": "20Gi"}},
                }
            },
        },
    }
    adaptation = {
        "apiVersion": "dapt.dev/v1alpha1",
        "kind": "DomainAdaptation",
        "metadata": {"name": piece.name},
        "spec": _spec(piece, data, model or f"file://{data}/model/SmolLM2-135M-Instruct.Q4_1.gguf")
        | {"output": {"destination": f"file://{destination}"}},
    }
    return [profile, adaptation]


def _spec(piece: Piece, data: Path, model: str) -> dict[str, Any]:
    def source(name: str) -> str:
        return f"file://{data}/{name}"

    tasks = [
        {"name": name, "source": source(f"{name}_task.jsonl"), "fewShot": 0} for name in TASKS[piece.domain]
    ]
    facts = {"name": "facts", "source": source("general_task.jsonl"), "fewShot": 0}
    spec: dict[str, Any] = {
        "profile": "science",
        "seed": piece.seed,
        "model": {"source": model},
        "corpus": {
            # A sample: each token is read about once whatever share is replayed.
            "domain": [
                {"source": source(f"{piece.domain}.jsonl"), "maxTokens": TOKENS + 2 * HELD_OUT_TOKENS}
            ],
            "general": [{"source": source("general.jsonl")}],
            "heldOut": {"fraction": 0.15, "maxTokens": HELD_OUT_TOKENS},
            "sequenceLength": SEQUENCE_TOKENS,
        },
        "pretraining": {
            "method": {piece.method: {}},
            "budget": {"steps": STEPS},
            "globalBatchSize": SEQUENCES,
            "microBatchSize": 2,
            "distribution": {"precision": "fp32", "gradientCheckpointing": False},
        },
        "evaluation": {
            "when": "end",
            "domain": {"tasks": tasks},
            "general": {"tasks": [facts]},
            "probes": {"general": [{"source": source("grammar_probes.jsonl")}]},
        },
        "resources": {"nodes": 1, "gpusPerNode": 1},
    }
    if piece.recipe == "plain":
        spec["corpus"]["generalUse"] = "measure"
    if piece.recipe == "rival":
        spec["corpus"]["replayFraction"] = RIVAL_REPLAY
    if piece.recipe != "dapt":
        # No selection: the last checkpoint, whatever it has forgotten.
        spec["selection"] = {"interpolate": [1.0], "averageLast": 1, "pin": LAST}
        spec["gates"] = {"onBreach": "Warn"}
    return spec
