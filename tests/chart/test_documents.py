"""Every helm command of the documents renders."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TEXT = "\n".join(
    (ROOT / name).read_text() for name in ("README.md", "docs/installing.md", "docs/operating.md")
)
FILES = dict(re.findall(r"```yaml\n# (\S+\.yaml)\n(.*?)```", TEXT, flags=re.DOTALL))
COMMANDS = sorted(set(re.findall(r"^helm (?:install|upgrade) .*$", TEXT, flags=re.MULTILINE)))


@pytest.mark.parametrize("line", COMMANDS)
def test_the_values_of_a_quoted_command_render(helm: Any, tmp_path: Path, line: str) -> None:
    words = shlex.split(line)
    assert words[words.index("dapt") + 1] == "charts/dapt"
    flags = []
    for name, value in itertools.pairwise(words):
        if name == "--set":
            flags += [name, value]
        if name == "--values":
            (tmp_path / value).write_text(FILES[value])
            flags += [name, str(tmp_path / value)]
    done = helm("template", "dapt", ROOT / "charts" / "dapt", "--kube-version", "1.31.0", *flags)
    assert done.returncode == 0, done.stderr


def test_switches_in_the_prose_are_values_of_the_chart(helm: Any) -> None:
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    settings = re.findall(
        r"`((?:crds|features|rbac|metrics|networkPolicy)\.[\w.]+)(?:(?:: |=)([^`]+))?`", prose
    )
    assert len(settings) >= 10
    for name, value in settings:
        shown = helm("show", "values", ROOT / "charts" / "dapt").stdout if not value else ""
        if value:
            done = helm(
                "template",
                "dapt",
                ROOT / "charts" / "dapt",
                "--kube-version",
                "1.31.0",
                "--set",
                f"{name}={value}",
            )
            assert done.returncode == 0, done.stderr
        else:
            assert re.search(rf"\b{name.rpartition('.')[2]}:", shown), name
