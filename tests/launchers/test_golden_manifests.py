"""What launchers render, compared with manifests in `tests/golden`; `DAPT_UPDATE_GOLDEN=1 pytest tests/launchers`
writes them again."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dapt_operator.launchers import LAUNCHERS
from dapt_operator.stage_run import plain
from support.launch_cases import CASES, rendered

GOLDEN = Path(__file__).parent.parent / "golden"


def _as_yaml(objects: Any) -> str:
    yaml = YAML()
    yaml.width = 110
    stream = io.StringIO()
    yaml.dump_all([plain(item) for item in objects], stream)
    return stream.getvalue()


def _path(launcher: str, case: str) -> Path:
    return GOLDEN / f"{launcher}-{case}.yaml"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_rendered_manifests_are_the_golden_ones(launcher: str, case: str) -> None:
    text, path = _as_yaml(rendered(launcher, case)), _path(launcher, case)
    if os.environ.get("DAPT_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"{path.name} is stale: run DAPT_UPDATE_GOLDEN=1 pytest tests/launchers"


def test_every_golden_manifest_belongs_to_a_case() -> None:
    assert set(GOLDEN.glob("*.yaml")) == {_path(launcher, case) for launcher in LAUNCHERS for case in CASES}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_rendering_twice_gives_equal_objects(launcher: str, case: str) -> None:
    assert rendered(launcher, case) == rendered(launcher, case)
