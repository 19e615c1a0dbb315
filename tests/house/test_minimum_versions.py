"""No lock and no range of pyproject.toml has a version older than requirements/minimum-versions.txt allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCKS = sorted(
    path.stem
    for path in (ROOT / "requirements").glob("*.txt")
    # Only tests load models in the oldest supported transformers, and models of their own alone.
    if path.stem not in ("minimum-versions", "older-transformers")
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RANGES = [
    *PROJECT["dependencies"],
    *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
]


def minimum_versions() -> dict[str, Version]:
    """Return the oldest safe version by package; a line without a reason is an error."""
    found: dict[str, Version] = {}
    for line in (ROOT / "requirements" / "minimum-versions.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = re.fullmatch(r"(\S+)>=(\S+) # \S.+", line).groups()  # type: ignore[union-attr]
            found[canonicalize_name(name)] = Version(version)
    return found


def below(pins: list[tuple[str, str]]) -> list[str]:
    """Return the pins that are older than the oldest safe version."""
    minimum = minimum_versions()
    return [
        f"{name} {version}: {minimum[canonicalize_name(name)]} is the oldest safe version"
        for name, version in pins
        if canonicalize_name(name) in minimum and Version(version) < minimum[canonicalize_name(name)]
    ]


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_has_no_version_with_a_known_hole(lock: str) -> None:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    pins = re.findall(r"^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", text, flags=re.MULTILINE)
    assert pins
    assert below(pins) == []


def test_range_begins_at_a_version_without_a_known_hole() -> None:
    pins = []
    for line in RANGES:
        requirement = Requirement(line)
        lowest = [item.version for item in requirement.specifier if item.operator in (">=", "==")]
        pins.append((requirement.name, lowest[0] if lowest else "0"))
    assert below(pins) == []


def test_every_minimum_is_of_a_package_that_a_lock_has() -> None:
    pinned = {
        canonicalize_name(name)
        for lock in LOCKS
        for name in re.findall(
            r"^([A-Za-z0-9][\w.-]*)==",
            (ROOT / "requirements" / f"{lock}.txt").read_text(),
            flags=re.MULTILINE,
        )
    }
    assert sorted(minimum_versions().keys() - pinned) == []


def test_jinja_is_bounded_where_templates_are_rendered_too() -> None:
    for extra in ("operator", "trainer"):
        assert "jinja2" in {Requirement(line).name for line in PROJECT["optional-dependencies"][extra]}


def test_an_old_version_is_named() -> None:
    assert below([("Jinja2", "3.1.5")]) == ["Jinja2 3.1.5: 3.1.6 is the oldest safe version"]
