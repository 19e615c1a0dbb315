"""docs/laptop-cluster.md on the test's own node: its manifests, with a toy in place of the model and the text.

Two things are replaced: the folder /dapt of the node is one of this machine, and the images, which cannot be built
here, are the base image with this machine's interpreter mounted.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from support.toy_adaptation import make_toy
from support.toy_gguf import GgufSizes, write_gguf
from testcluster import host_pods

PAGE = host_pods.ROOT / "docs" / "laptop-cluster.md"
EXAMPLE = host_pods.ROOT / "examples" / "laptop-cluster"
MODEL = "model/SmolLM2-135M-Instruct.Q4_1.gguf"
FILES = {
    "text/domain.jsonl": "domain.jsonl",
    "text/general.jsonl": "general.jsonl",
    "eval/domain-task.jsonl": "codes_task.jsonl",
    "eval/general-task.jsonl": "general_task.jsonl",
    "eval/domain-probes.jsonl": "wording_probes.jsonl",
}
"""File of the toy -> name that the page's manifest has for its own."""


def commands(program: str) -> list[str]:
    """The page's commands of one program, in its order."""
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith(f"{program} ")]


def make_inputs(folder: Path) -> None:
    """Model and text in the places where the page's script writes its own; every user may read them."""
    import torch
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    toy = folder.parent / f"{folder.name}-toy"
    make_toy(toy)
    (folder / "model").mkdir(parents=True)
    sizes = GgufSizes(layers=2, heads=4, key_value_heads=2, context_tokens=256)
    tokenizer = Tokenizer.from_file(str(toy / "base" / "tokenizer.json"))
    assert torch.get_default_dtype() == torch.float32
    tensors = load_file(toy / "base" / "model.safetensors")
    write_gguf(folder / MODEL, tokenizer, tensors, sizes, end="<|endoftext|>")
    for source, name in FILES.items():
        shutil.copy(toy / source, folder / name)
    with (folder / "sft.jsonl").open("w", encoding="utf-8") as file:
        for line in (toy / "text" / "instructions.jsonl").read_text(encoding="utf-8").splitlines():
            question, answer = json.loads(line)["messages"]
            file.write(json.dumps({"prompt": question["content"], "response": answer["content"]}) + "\n")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def write_local_manifest(folder: Path) -> Path:
    """The page's adaptation for `dapt run` beside its inputs in `folder`/data; it publishes to `folder`/out."""
    text = (EXAMPLE / "adaptation.yaml").read_text(encoding="utf-8")
    text = text.replace("pvc://models/clinical", "file://out").replace("pvc://data/", "file://data/")
    manifest = folder / "clinical.yaml"
    manifest.write_text(text, encoding="utf-8")
    return manifest


def write_examples(node_folder: Path, target: Path) -> None:
    """The page's folder examples/laptop-cluster below `target`, for this machine.

    Args:
        node_folder: what the node has as /dapt.
        target: a folder in which the page's commands are typed.
    """
    folder = target / "examples" / "laptop-cluster"
    folder.mkdir(parents=True)
    text = (EXAMPLE / "volumes.yaml").read_text(encoding="utf-8")
    (folder / "volumes.yaml").write_text(
        text.replace("path: /dapt/", f"path: {node_folder}/"), encoding="utf-8"
    )
    yaml = YAML(typ="safe", pure=True)
    profile, adaptation = yaml.load_all((EXAMPLE / "adaptation.yaml").read_text(encoding="utf-8"))
    changes: dict[str, Any] = {
        "trainerImage": host_pods.BASE_IMAGE.reference,
        "podTemplate": host_pods.pod_template(),
        "terminationGracePeriodSeconds": 10,
    }
    profile["spec"] |= changes
    adaptation["spec"]["cleanup"] = {"finishedRuns": "Retain"}  # the tests look at the pods of ended runs
    out = io.StringIO()
    yaml.dump_all([profile, adaptation], out)
    (folder / "adaptation.yaml").write_text(out.getvalue(), encoding="utf-8")
