"""A whole adaptation in miniature: a tiny Llama with a byte-level BPE, synthetic text, tasks, probes, instructions.

Everything is made on the spot from a seed; nothing is downloaded. One call takes about two seconds.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from support.toy_learning import learn_a_little

MANIFEST = """\
apiVersion: dapt.dev/v1alpha1
kind: AdaptationProfile
metadata: {name: toy}
spec:
  trainerImage: local
  accelerator: {kind: cpu, perNode: 1, memoryGiB: 2}
  storage: {claimTemplate: {accessModes: [ReadWriteMany], resources: {requests: {storage: 1Gi}}}}
---
apiVersion: dapt.dev/v1alpha1
kind: DomainAdaptation
metadata: {name: NAME}
spec:
  profile: toy
  seed: 7
  model: {source: "file://base"}
  corpus:
    domain: [{source: "file://text/domain.jsonl"}]
    general: [{source: "file://text/general.jsonl"}]
    replayFraction: 0.25
    heldOut: {fraction: 0.2}
    sequenceLength: 64
  pretraining:
    method: {lora: {rank: 8}}
    budget: {steps: STEPS}
    globalBatchSize: 4
    microBatchSize: 2
    optimizer: {learningRate: 5.0e-3}
    schedule: {warmupFraction: 0.1}
    distribution: {zeroStage: 2, precision: fp32}
    checkpoints: {count: CHECKPOINTS}
  evaluation:
    when: end
    domain: {tasks: [{name: toy_domain, source: "file://eval/domain-task.jsonl", fewShot: 0}]}
    general: {tasks: [{name: toy_general, source: "file://eval/general-task.jsonl", fewShot: 0}]}
    probes: {domain: [{source: "file://eval/domain-probes.jsonl"}]}
  gates: {maxGeneralPerplexityIncrease: 0.5, maxGeneralScoreDrop: 100, onBreach: Block}
  selection: {interpolate: [1.0], averageLast: 1}
  finetuning:
    data: [{source: "file://text/instructions.jsonl", format: messages}]
    method: {lora: {rank: 4}}
    budget: {steps: 2}
  output: {destination: "file://out"}
  resources: {nodes: 2, gpusPerNode: 1}
"""

_DOMAIN = {
    "who": ("the sensor", "the valve", "the pump", "the rotor", "the seal", "the bearing"),
    "does": ("feeds", "cools", "drives", "blocks", "heats", "drains"),
    "what": ("the turbine", "the boiler", "the condenser", "the intake", "the casing", "the shaft"),
    "how": ("at low pressure", "during the start", "after the trip", "under full load", "at rest"),
}
_GENERAL = {
    "who": ("a girl", "my uncle", "the baker", "an old dog", "the teacher", "our neighbour"),
    "does": ("finds", "paints", "carries", "forgets", "sells", "mends"),
    "what": ("a red kite", "the garden gate", "some bread", "a long letter", "the blue door", "a song"),
    "how": ("in the morning", "with great care", "before supper", "on the hill", "by mistake"),
}

_SIDES = {"domain": _DOMAIN, "general": _GENERAL}


def make_toy(folder: Path, *, name: str = "toy", steps: int = 8, checkpoints: int = 2, seed: int = 3) -> Path:
    """Write model, data and manifest below `folder`; the manifest's path."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_texts(folder, random.Random(seed))
    _write_model(folder / "base", folder / "text", seed)
    manifest = folder / f"{name}.yaml"
    text = (
        MANIFEST.replace("NAME", name).replace("STEPS", str(steps)).replace("CHECKPOINTS", str(checkpoints))
    )
    manifest.write_text(text, encoding="utf-8")
    return manifest


def _sentence(words: dict[str, tuple[str, ...]], rng: random.Random) -> str:
    return " ".join(rng.choice(choices) for choices in words.values()) + "."


def _write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_texts(folder: Path, rng: random.Random) -> None:
    for side, words in _SIDES.items():
        documents = [" ".join(_sentence(words, rng) for _ in range(rng.randint(4, 9))) for _ in range(160)]
        _write_lines(folder / "text" / f"{side}.jsonl", [{"text": text} for text in documents])
        items = [
            {
                "question": f"{side} item {i}: what is it that {rng.choice(words['who'])} {rng.choice(words['does'])}",
                "choices": rng.sample(words["what"], 3),
                "answer": i % 3,
            }
            for i in range(9)
        ]
        _write_lines(folder / "eval" / f"{side}-task.jsonl", list(items))
    probes = [
        {"prompt": f"probe {i} {_DOMAIN['who'][i % 6]}", "choices": [" cools", " paints"], "answer": 0}
        for i in range(6)
    ]
    _write_lines(folder / "eval" / "domain-probes.jsonl", list(probes))
    instructions: list[dict[str, object]] = [
        {
            "messages": [
                {"role": "user", "content": f"Say something about {rng.choice(_DOMAIN['what'])}."},
                {"role": "assistant", "content": _sentence(_DOMAIN, rng)},
            ]
        }
        for _ in range(24)
    ]
    _write_lines(folder / "text" / "instructions.jsonl", instructions)


def _write_model(folder: Path, texts: Path, seed: int) -> None:
    import torch
    from tokenizers import ByteLevelBPETokenizer, Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    files = [str(path) for path in sorted(texts.glob("*.jsonl"))]
    bpe.train(files, vocab_size=400, min_frequency=2, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(bpe.to_str()),
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    documents = [
        json.loads(line)["text"]
        for side in _SIDES
        for line in (texts / f"{side}.jsonl").read_text().split("\n")
        if line
    ]
    learn_a_little(model, tokenizer, documents[::9])
    model.save_pretrained(folder)
