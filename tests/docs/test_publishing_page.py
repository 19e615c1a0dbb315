"""The manifests of docs/publishing.md are valid on a cluster, and planned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dapt_operator.cli.commands.lint import lint
from dapt_operator.cli.commands.plan import plan
from dapt_operator.cli.inputs.manifests import read_request

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "publishing.md").read_text()
MANIFESTS = dict(re.findall(r"```yaml\n# (\S+\.yaml)\n(.*?)```", PAGE, flags=re.DOTALL))


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_of_the_page_is_planned(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(MANIFESTS[name])
    assert lint([path], cluster=True)[0] == []
    assert plan(read_request(path, str(ROOT / "examples" / "profile-h100.yaml"))).problems == ()
