"""The locks in requirements/: what they pin, against the ranges of pyproject.toml and against each other."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {
    "operator": {"operator"},
    "trainer": {"trainer"},
    "development": {"operator", "trainer", "dev"},
    "gpu": {"gpu"},
}
"""Lock -> the extras of pyproject.toml that it pins."""
PLATFORMS = [
    {
        "python_version": version,
        "python_full_version": f"{version}.1",
        "sys_platform": system.lower(),
        "platform_system": system,
        "platform_machine": machine,
        "os_name": "posix",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "extra": "",
    }
    for version in ("3.11", "3.12", "3.13", "3.14")
    for system, machine in (("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64"))
]
"""On which an installation from the locks must be complete."""
each_lock = pytest.mark.parametrize("lock", EXTRAS)


def entries(lock: str) -> list[tuple[Requirement, list[str]]]:
    """Return what a lock pins, each with its hashes."""
    text = (LOCKS / f"{lock}.txt").read_text()
    blocks = re.split(r"\n(?=[A-Za-z0-9])", "\n" + "\n".join(re.findall(r"^(?!\s*#).*", text, flags=re.M)))
    return [
        (Requirement(block.split("\\")[0].strip()), re.findall(r"--hash=sha256:([0-9a-f]{64})\b", block))
        for block in blocks
        if block.strip()
    ]


def pinned(lock: str) -> dict[str, list[Requirement]]:
    """Return the requirements of a lock by name; a name has several where Python's version decides."""
    found: dict[str, list[Requirement]] = defaultdict(list)
    for requirement, _ in entries(lock):
        found[canonicalize_name(requirement.name)].append(requirement)
    return found


def version_of(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "=="
    return specifier.version


def holds(marker: Marker | None, platform: dict[str, str]) -> bool:
    return marker is None or marker.evaluate(platform)


def ranges(lock: str) -> list[Requirement]:
    """Return the direct dependencies whose ranges a lock must keep."""
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for extra in sorted(EXTRAS[lock]) for line in extras[extra])]
    if lock == "development":
        lines += PROJECT["build-system"]["requires"]
    return [Requirement(line) for line in lines]


def inputs(lock: str) -> list[Requirement]:
    """Return what requirements/LOCK.in asks for."""
    lines = (LOCKS / f"{lock}.in").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def missing(wanted: list[Requirement], lock: str) -> list[str]:
    """Return the requirements that no pin of the lock satisfies, with the first platform that lacks them."""
    pins = pinned(lock)
    problems = []
    for requirement in wanted:
        for platform in PLATFORMS:
            versions = [
                version_of(pin)
                for pin in pins[canonicalize_name(requirement.name)]
                if holds(pin.marker, platform)
            ]
            if not holds(requirement.marker, platform):
                continue
            if len(versions) != 1 or not requirement.specifier.contains(versions[0], prereleases=True):
                problems.append(f"{requirement}: {versions} on {platform['sys_platform']}")
                break
    return problems


@each_lock
def test_a_lock_pins_every_direct_dependency_within_its_range(lock: str) -> None:
    assert missing(ranges(lock), lock) == []


@pytest.mark.parametrize("lock", ["build", "demo", "older-transformers"])
def test_a_lock_pins_what_its_input_file_asks_for(lock: str) -> None:
    assert inputs(lock)
    assert missing(inputs(lock), lock) == []


def test_the_build_backend_of_pyproject_is_in_the_build_lock() -> None:
    assert missing([Requirement(line) for line in PROJECT["build-system"]["requires"]], "build") == []


def test_a_range_that_no_pin_satisfies_is_found() -> None:
    assert missing([Requirement("pydantic>=99"), Requirement("no-such-package")], "operator") != []


@pytest.mark.parametrize("lock", [*EXTRAS, "build", "demo", "older-transformers"])
def test_every_pin_is_exact_and_has_hashes(lock: str) -> None:
    found = entries(lock)
    assert found
    assert [str(requirement) for requirement, hashes in found if not hashes] == []
    assert all(version_of(requirement) for requirement, _ in found)
    assert all(requirement.url is None for requirement, _ in found)


@pytest.mark.parametrize("path", sorted(LOCKS.iterdir()), ids=lambda path: path.name)
def test_no_file_names_a_host_or_an_index(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text
    assert re.findall(r"^-.*", text, flags=re.M) == []


@pytest.mark.parametrize("lock", ["operator", "trainer", "build"])
def test_images_get_the_versions_that_the_tests_run_with(lock: str) -> None:
    tested = {(pin.name, version_of(pin)) for pin, _ in entries("development")}
    assert [str(pin) for pin, _ in entries(lock) if (pin.name, version_of(pin)) not in tested] == []


@pytest.mark.parametrize(("extra", "brings_torch"), [("operator", False), ("trainer", True)])
def test_the_operator_extra_brings_no_torch(extra: str, brings_torch: bool) -> None:
    brought = brought_by("dapt-operator", extra)
    assert "pydantic" in brought
    assert ("torch" in brought) is brings_torch
    assert ("torch" in pinned(extra)) is brings_torch


@pytest.mark.parametrize("extra", ["operator", "trainer"])
def test_a_lock_pins_what_the_dependencies_require_in_turn(extra: str) -> None:
    assert brought_by("dapt-operator", extra) - pinned(extra).keys() == {"dapt-operator"}


def brought_by(name: str, extra: str) -> set[str]:
    """Return the distributions that installing `name[extra]` brings, by the metadata of what is installed here."""
    brought: dict[str, set[str]] = defaultdict(set)
    pending = [(canonicalize_name(name), {"", extra})]
    while pending:
        name, extras = pending.pop()
        new = extras - brought[name]
        brought[name] |= extras
        for line in importlib.metadata.requires(name) or () if new else ():
            required = Requirement(line)
            if required.marker is None or any(required.marker.evaluate({"extra": item}) for item in new):
                pending.append((canonicalize_name(required.name), {"", *required.extras}))
    return set(brought)
