"""Every call that loads a model says that no code of others runs, and which attention computes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TRAINER = Path(__file__).parents[2] / "trainer-image" / "src" / "dapt_trainer"
LOADERS = ("from_pretrained", "from_config")
PEFT = "PeftModel"
"""Its loader takes the settings of an adapter, which are checked before, and has no switch for code."""


def problems_of(source: str) -> Iterator[str]:
    """What is missing at each call of a loader, with its line."""
    tree = ast.parse(source)
    # Settings that several calls share stand in one dictionary.
    shared = {
        node.targets[0].id: {ast.literal_eval(key): value for key, value in pairs(node.value)}
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Dict)
    }
    for node in ast.walk(tree):
        if (
            not isinstance(node, ast.Call)
            or not isinstance(node.func, ast.Attribute)
            or node.func.attr not in LOADERS
        ):
            continue
        loader = ast.unparse(node.func.value)
        if loader == PEFT:
            continue
        given: dict[str, ast.expr] = {}
        for keyword in node.keywords:
            if keyword.arg is not None:
                given[keyword.arg] = keyword.value
            elif isinstance(keyword.value, ast.Name):
                given |= shared.get(keyword.value.id, {})
        trust = given.get("trust_remote_code")
        if not isinstance(trust, ast.Constant) or trust.value is not False:
            yield f"{node.lineno}: trust_remote_code=False is missing"
        if "Model" in loader and "attn_implementation" not in given:
            yield f"{node.lineno}: attn_implementation is missing"
        if "Model" in loader and node.func.attr == "from_pretrained" and "gguf_file" not in given:
            for name in ("use_safetensors", "weights_only"):
                value = given.get(name)
                if not isinstance(value, ast.Constant) or value.value is not True:
                    yield f"{node.lineno}: {name}=True is missing"


def pairs(node: ast.Dict) -> list[tuple[ast.Constant, ast.expr]]:
    return [
        (key, value)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant)
    ]


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("AutoConfig.from_pretrained(f)", ["1: trust_remote_code=False is missing"]),
        ("AutoConfig.from_pretrained(f, trust_remote_code=True)", ["1: trust_remote_code=False is missing"]),
        ("o = {'trust_remote_code': False}\nAutoTokenizer.from_pretrained(f, **o)", []),
        ("AutoModel.from_config(c, trust_remote_code=False)", ["1: attn_implementation is missing"]),
        (
            "AutoModel.from_pretrained(f, trust_remote_code=False, attn_implementation=None, weights_only=True)",
            ["1: use_safetensors=True is missing"],
        ),
    ],
)
def test_a_call_that_leaves_code_open_is_found(source: str, missing: list[str]) -> None:
    assert list(problems_of(source)) == missing


def test_no_call_of_the_trainer_leaves_code_open() -> None:
    found = [
        f"{path.relative_to(TRAINER)}:{problem}"
        for path in sorted(TRAINER.rglob("*.py"))
        for problem in problems_of(path.read_text())
    ]
    assert found == []


def test_the_trainer_reads_no_yaml_and_unpickles_nothing_of_a_model() -> None:
    banned = {"yaml", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    folders = ("modeling", "data", "tokenization", "evaluation", "training")
    found = {
        (path.name, name)
        for folder in folders
        for path in (TRAINER / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in imported(node)
        if name in banned | {"pickle"}
    }
    assert found == set()


def imported(node: ast.AST) -> list[str]:
    """The packages that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    return [(node.module or "").partition(".")[0]] if isinstance(node, ast.ImportFrom) else []
