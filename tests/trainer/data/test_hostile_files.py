"""Corpora, tasks and tuning files that mean harm are read within bounds of memory, and nothing of them runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.hostile_files import FILES

TESTS = Path(__file__).parents[2]
LEAST_CASES = 60


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is said of each file by one process that may take 1 GiB of memory; one file that harms it fails all."""
    folder = tmp_path_factory.mktemp("hostile")
    for number, (_, name, content, _) in enumerate(FILES.values()):
        (folder / str(number)).mkdir()
        (folder / str(number) / name).write_bytes(content())
    modules = folder / "modules"
    modules.mkdir()
    (modules / "evil.py").write_text(f"open({str(folder / 'canary')!r}, 'w').close()\n")
    process = subprocess.run(
        [sys.executable, "-m", "support.hostile_reads", str(folder)],
        env=os.environ | {"PYTHONPATH": f"{TESTS}:{modules}"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert not (folder / "canary").exists()
    texts: dict[str, str] = json.loads(process.stdout)
    return texts


def test_the_cases_are_many() -> None:
    assert len(FILES) >= LEAST_CASES


@pytest.mark.parametrize("case", FILES)
def test_a_hostile_file_is_read_within_bounds_or_refused_in_one_sentence(
    said: dict[str, str], case: str
) -> None:
    assert said[case] == FILES[case][3]
