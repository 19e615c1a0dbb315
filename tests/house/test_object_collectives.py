"""Ranks exchange tensors and JSON: torch's object collectives unpickle what a peer sends, which can run its code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TRAINER = Path(__file__).parents[2] / "trainer-image" / "src" / "dapt_trainer"
UNPICKLING = re.compile(
    r"(all_)?gather_object|(broadcast|scatter|send|recv)_object(_list)?|gather_for_metrics|use_gather_object"
)
"""Functions of torch, accelerate and DeepSpeed, and the option of transformers that chooses one."""


def unpickling_names(tree: ast.AST) -> Iterator[str]:
    """Yield every use, import and keyword of such a name, and a string that may name one for `getattr`."""
    for node in ast.walk(tree):
        names: list[str | None] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.keyword):
            names = [node.arg]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]
        yield from (name for name in names if name and UNPICKLING.fullmatch(name))


def test_unpickling_collectives_are_found_however_they_are_reached() -> None:
    source = (
        "import torch.distributed as dist\n"
        "from accelerate.utils import broadcast_object_list\n"
        "dist.all_gather_object(values, value)\n"
        'getattr(dist, "scatter_object_list")(values)\n'
        "accelerator.gather_for_metrics(values, use_gather_object=True)\n"
        "dist.all_gather(tensors, tensor)\n"
    )
    assert sorted(unpickling_names(ast.parse(source))) == [
        "all_gather_object",
        "broadcast_object_list",
        "gather_for_metrics",
        "scatter_object_list",
        "use_gather_object",
    ]


def test_the_trainer_unpickles_nothing_that_a_rank_sends() -> None:
    used = {
        str(path.relative_to(TRAINER)): sorted(set(names))
        for path in TRAINER.rglob("*.py")
        if (names := list(unpickling_names(ast.parse(path.read_text()))))
    }
    assert used == {}
