"""docs/third-party.md is what `make notices` writes now."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the images are Linux's")
NOTICES = runpy.run_path(str(Path(__file__).parents[2] / "requirements" / "notices.py"))


def test_page_of_licences_is_as_generated() -> None:
    assert NOTICES["PAGE"].read_text() == NOTICES["page"]()


def test_page_names_every_package_that_asks_something() -> None:
    page = NOTICES["page"]()
    assert "\n- chardet: GNU Lesser General Public License" in page
    assert "nvidia-nccl-cu13" in page.split("| package |")[1]
    assert "not stated" not in page
