"""The house keeps its shape: what imports what, how long a module is."""

from __future__ import annotations

import operator
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from dapt_contract.stages import KINDS
from dapt_operator.api.v1alpha1.base import DESTINATION_PATTERN, SOURCE_PATTERN
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.plan.stage_parts.stage_plan import ON_DEMAND, stage_kinds
from dapt_trainer.data.reading import sources
from dapt_trainer.publishing import destinations
from dapt_trainer.stages import STAGE_MODULES
from support.builders import adaptation

ROOT = Path(__file__).parents[2]
LONGEST_MODULE_LINES = 400


def test_the_folder_named_operator_does_not_shadow_the_standard_library() -> None:
    assert Path(operator.__file__).parent == Path(sysconfig.get_path("stdlib"))
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_the_operator_and_its_command_line_start_without_torch() -> None:
    program = (
        "import sys, pkgutil, importlib, dapt_operator\n"
        "for module in pkgutil.walk_packages(dapt_operator.__path__, 'dapt_operator.'):\n"
        "    importlib.import_module(module.name)\n"
        "heavy = {'torch', 'transformers', 'deepspeed', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_kind_of_stage_has_its_three_modules_and_its_place_in_the_chain() -> None:
    whole = adaptation(
        preference={"data": [{"source": "file:///text/pairs.jsonl"}]}, selection={"averageLast": 3}
    )
    spec = DomainAdaptation.model_validate(whole).spec
    assert tuple(kind for kind in KINDS if kind not in ON_DEMAND) == stage_kinds(spec)
    assert set(ON_DEMAND) <= set(KINDS)
    assert {kind: f"dapt_trainer.stages.{kind}" for kind in KINDS} == STAGE_MODULES
    folders = (
        "operator/src/dapt_contract/stages",
        "operator/src/dapt_operator/plan/stages",
        "trainer-image/src/dapt_trainer/stages",
    )
    modules = [f"{folder}/{kind}.py" for folder in folders for kind in KINDS]
    assert [module for module in modules if not (ROOT / module).is_file()] == []


@pytest.mark.parametrize(
    ("pattern", "openers"),
    [(SOURCE_PATTERN, sources.OPENERS), (DESTINATION_PATTERN, destinations.OPENERS)],
    ids=["sources", "destinations"],
)
def test_the_trainer_opens_every_scheme_that_the_api_accepts(
    pattern: str, openers: dict[str, object]
) -> None:
    schemes = pattern.partition("(")[2].partition(")")[0].split("|")
    assert sorted(schemes) == sorted(openers)


def test_folders_are_removed_copied_and_walked_by_the_shared_helpers() -> None:
    helpers = ROOT / "operator/src/dapt_contract/untrusted/folders.py"
    by_recursion = ("rmtree(", "copytree(", "rglob(", '"**/')
    found = [
        f"{path.relative_to(ROOT)}: {call}"
        for source in ("operator/src", "trainer-image/src")
        for path in (ROOT / source).rglob("*.py")
        for call in by_recursion
        if path != helpers and call in path.read_text()
    ]
    assert found == []


def test_a_folder_holds_at_most_twelve_modules() -> None:
    crowded = {
        str(folder.relative_to(ROOT)): len(modules)
        for source in ("operator/src", "trainer-image/src")
        for folder in (ROOT / source).rglob("*")
        if folder.is_dir()
        and len(modules := [path for path in folder.glob("*.py") if path.name != "__init__.py"]) > 12
    }
    assert crowded == {}


def test_every_module_stays_below_the_length_at_which_it_is_two() -> None:
    modules = [*ROOT.glob("operator/src/**/*.py"), *ROOT.glob("trainer-image/src/**/*.py")]
    too_long = {
        str(path.relative_to(ROOT)): lines
        for path in modules
        if (lines := len(path.read_text().splitlines())) > LONGEST_MODULE_LINES
    }
    assert len(modules) > 40
    assert too_long == {}


@pytest.mark.parametrize(
    ("package", "is_pure"),
    [("plan", True), ("plan/gates", True), ("launchers", True), ("api", True), ("cluster/local", False)],
)
def test_the_linter_keeps_clocks_and_files_out_of_the_pure_packages(package: str, is_pure: bool) -> None:
    ruff = Path(sysconfig.get_path("scripts")) / "ruff"
    name = f"operator/src/dapt_operator/{package}/new.py"
    done = subprocess.run(
        [ruff, "check", "--output-format", "concise", "--stdin-filename", name, "-"],
        input="import os\nimport time\n\nprint(os, time)\n",
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.count("TID251") == (2 if is_pure else 0), done.stdout
