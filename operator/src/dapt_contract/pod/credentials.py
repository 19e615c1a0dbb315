"""Names the variables by which a user's Secret reaches a stage. Every other entry of a Secret is ignored.

The list is closed: a variable may also choose what an interpreter imports (PYTHONPATH, LD_PRELOAD) or where a token is
sent (HF_ENDPOINT, AWS_ENDPOINT_URL, HTTPS_PROXY), and those belong to the profile. Names of files are left out as well
(GOOGLE_APPLICATION_CREDENTIALS, AWS_SHARED_CREDENTIALS_FILE), since whoever writes the data could write such a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

CREDENTIALS: Final[dict[str, str]] = {
    "AWS_ACCESS_KEY_ID": "`s3://`: id of the key",
    "AWS_SECRET_ACCESS_KEY": "`s3://`: the key",
    "AWS_SESSION_TOKEN": "`s3://`: token of a temporary key",
    "AWS_DEFAULT_REGION": "`s3://`: region of the bucket",
    "HF_TOKEN": "`hf://`: token of the hub",
    "HUGGING_FACE_HUB_TOKEN": "`hf://`: the same under its older name",
}
"""By name: what it is for, as text for the documentation."""


def credentials_table() -> str:
    """Return the table of docs/security.md, in Markdown."""
    rows = ["| entry of the Secret | what it is for |", "| --- | --- |"]
    return "\n".join([*rows, *(f"| `{name}` | {text} |" for name, text in CREDENTIALS.items())]) + "\n"


SECRET_PREFIX: Final = "DAPT_SECRET"
"""Beginning of the names under which the entries of each of several Secrets reach a pod: DAPT_SECRET_0_HF_TOKEN."""


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables without those of `SECRET_PREFIX`, each credential that is missing taken from the latest of them.

    Kubernetes takes a variable's name once, so a pod refers to the entries of its last Secret by their names, and what
    that one lacks is looked up here.
    """
    result = dict(environment)
    numbered: list[tuple[int, str, str]] = []
    for name in environment:
        if found := re.fullmatch(rf"{SECRET_PREFIX}_([0-9]{{1,4}})_(.*)", name, re.DOTALL):
            numbered.append((int(found[1]), found[2], result.pop(name)))
    for _, name, value in sorted(numbered, reverse=True):
        if name in CREDENTIALS:
            result.setdefault(name, value)
    return result
