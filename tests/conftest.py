"""Settings for every test: no accelerator, no hub, one thread, before any library reads its environment."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from support.marker_selection import can_select, marks_of_expression, module_marks, named_marks

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TESTS = Path(__file__).parent


def conftests_of(path: Path) -> list[Path]:
    """The conftest.py files of a test module's folder and of those above it, this one left out."""
    folders = [folder for folder in path.parents if TESTS in folder.parents]
    return [conftest for folder in folders if (conftest := folder / "conftest.py").is_file()]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave modules unimported of which `-m` selects no test; None leaves the decision to pytest."""
    expression = config.option.markexpr
    is_module = collection_path.match("test_*.py")
    if (
        expression
        and is_module
        and not can_select(expression, collection_path, conftests_of(collection_path))
    ):
        return True
    return None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    """Check that markers are where pytest_ignore_collect looks for them: a test that it loses would run nowhere."""
    wanted = marks_of_expression(config.option.markexpr)
    collected = list(items)  # before `-m` takes any away
    result = yield
    for path, items_of_module in itertools.groupby(collected, key=lambda item: item.path):
        certain, possible = module_marks(path), named_marks([path, *conftests_of(path)])
        for item in items_of_module:
            marks = {marker.name for marker in item.iter_markers()}
            if not certain <= marks or not marks & wanted <= possible:
                raise pytest.UsageError(f"{item.nodeid} has markers that its file does not name: {marks}")
    return result


def pytest_collection_finish() -> None:
    """Take what was imported out of the garbage collector's rounds.

    accelerate collects garbage whenever a training ends. With torch and transformers loaded a round takes 0.3 seconds,
    half of the time of a test that trains a toy model.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Give it back: libraries look for leaks when the interpreter ends."""
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where every test must run (CI), a skipped one has failed."""
    report = yield
    if os.environ.get("DAPT_REQUIRE_ALL_TESTS") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and DAPT_REQUIRE_ALL_TESTS is set: {report.longrepr}"
    return report
