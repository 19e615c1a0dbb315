"""The release workflow: what it may do, and a dry run of the steps that need no network."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dapt_contract.version import PRODUCT_VERSION

ROOT = Path(__file__).parents[2]
RELEASE: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yaml").read_text())
JOBS: dict[str, Any] = RELEASE["jobs"]
SCRIPT = ROOT / ".ci" / "release.py"
DIGEST = f"sha256:{'ab' * 32}"
each_job = pytest.mark.parametrize("job", JOBS)


def steps(job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = JOBS[job].get("steps", [])
    return found


def runs(job: str) -> list[str]:
    return [step["run"] for step in steps(job) if "run" in step]


def step(*arguments: object, script: Path = SCRIPT) -> tuple[int, str, str]:
    """Exit code, output and errors of a step of the script."""
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


# --- what it may do ---


def test_a_release_is_of_a_commit_that_passes_everything() -> None:
    assert JOBS["tests"]["uses"] == "./.github/workflows/ci.yaml"
    for job in ("wheel", "image"):
        assert JOBS[job]["needs"] == ["tests", "tag"]
    assert JOBS["publish"]["needs"] == ["wheel", "image"], "half a release is none"


@each_job
def test_actions_of_a_release_are_pinned_by_commit(job: str) -> None:
    for item in steps(job):
        if "uses" in item:
            assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", item["uses"])
        if item.get("uses", "").startswith("actions/checkout@"):
            assert item["with"]["persist-credentials"] is False


def test_the_one_job_that_may_write_builds_and_installs_nothing() -> None:
    assert RELEASE["permissions"] == {"contents": "read"}
    assert [name for name, job in JOBS.items() if "permissions" in job] == ["publish"]
    assert JOBS["publish"]["permissions"] == {"contents": "write"}
    assert JOBS["publish"]["if"] == "github.event_name == 'push'"
    assert re.findall(r"pip|docker|hatchling|make|\bbuild\b", "\n".join(runs("publish"))) == []


@each_job
def test_a_run_by_hand_sees_no_secret(job: str) -> None:
    for item in steps(job):
        if "secrets." in json.dumps(item):
            assert item["if"] == "env.PUBLISHES == 'true'"
    assert "secrets." not in json.dumps({key: value for key, value in JOBS[job].items() if key != "steps"})


@each_job
def test_shell_of_a_release_has_no_value_put_in_by_the_workflow(job: str) -> None:
    # What a tag or a branch is called would become part of the program.
    assert [run for run in runs(job) if "${{" in run] == []
    for run in runs(job):
        subprocess.run(["bash", "-n"], input=run, text=True, check=True)


def test_an_image_is_released_on_a_base_by_digest_with_sbom_and_provenance() -> None:
    (build,) = [run for run in runs("image") if "buildx build" in run]
    for part in ('BASE=$BASE_TAG@$BASE_DIGEST"', "--provenance mode=max", "--sbom true", "image.base.digest"):
        assert part in build
    (verify,) = [run for run in runs("image") if ".Provenance." in run]
    assert 'release.py attestations provenance.json sbom.json "$BASE_DIGEST"' in verify
    images = {entry["dockerfile"] for entry in JOBS["image"]["strategy"]["matrix"]["include"]}
    assert images == {"operator/Dockerfile", "trainer-image/Dockerfile"}


# --- dry run ---


def test_every_step_of_the_script_is_one_of_the_workflow() -> None:
    called = re.findall(r"release\.py (\w+)", "\n".join(run for job in JOBS for run in runs(job)))
    assert set(called) == {"version", "notes", "base", "digest", "attestations", "sums"}


def test_the_version_is_that_of_the_tag_and_the_chart() -> None:
    assert step("version", "--tag", f"v{PRODUCT_VERSION}") == (0, f"{PRODUCT_VERSION}\n", "")
    for tag in (PRODUCT_VERSION, f"v{PRODUCT_VERSION}-rc1", "vnext", f"v{PRODUCT_VERSION}\n"):
        code, _, error = step("version", "--tag", tag)
        assert (code, error.startswith("release: the tag is ")) == (1, True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A tree with the files that the script reads; returns its script."""
    for name in (
        ".ci/release.py", "CHANGELOG.md", "charts/dapt/Chart.yaml", "operator/src/dapt_contract/version.py",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path / ".ci" / "release.py"


def test_notes_are_the_section_of_the_version_alone(copy: Path) -> None:
    changes = copy.parents[1] / "CHANGELOG.md"
    changes.write_text("# Changelog\n\n## [Unreleased]\n- later\n")
    code, _, error = step("notes", script=copy)
    assert code == 1
    assert error == (
        f"release: CHANGELOG.md has no section [{PRODUCT_VERSION}]: move what [Unreleased] has there before the tag is"
        " made\n"
    )
    changes.write_text(f"# Changelog\n\n## [{PRODUCT_VERSION}] - 2026-12-01\n\n- this\n\n## [0.0.9]\n- old\n")
    assert step("notes", script=copy) == (0, "- this\n", "")


def test_the_changelog_has_the_notes_of_this_version() -> None:
    code, notes, error = step("notes")
    assert (code, error) == (0, "")
    assert notes.startswith("### Added\n")


def test_a_run_by_hand_checks_version_and_notes_too() -> None:
    (checked,) = [item for item in steps("tag") if "release.py notes" in item.get("run", "")]
    assert "if" not in checked


def test_a_chart_of_another_version_is_not_released(copy: Path) -> None:
    chart = copy.parents[1] / "charts" / "dapt" / "Chart.yaml"
    chart.write_text(chart.read_text().replace(f"appVersion: {PRODUCT_VERSION}", "appVersion: 9.9.9"))
    code, _, error = step("version", script=copy)
    assert (code, "appVersion in Chart.yaml is not" in error) == (1, True)


def test_the_base_is_read_from_both_dockerfiles(tmp_path: Path) -> None:
    for entry in JOBS["image"]["strategy"]["matrix"]["include"]:
        code, base, _ = step("base", ROOT / entry["dockerfile"])
        assert (code, base) == (0, "python:3.11-slim-bookworm\n")
    odd = tmp_path / "Dockerfile"
    odd.write_text("ARG BASE=python:3.11\nARG BASE=evil:latest\nFROM ${BASE}\n")
    assert step("base", odd)[0] == 1


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"digest": DIGEST, "mediaType": "application/vnd.oci.image.index.v1+json"}, DIGEST),
        ({"containerimage.digest": DIGEST}, DIGEST),
        ({"digest": "sha256:abc"}, None),
        ({"digest": f"{DIGEST}\nEVIL=1"}, None),
        ({"digest": 7}, None),
        ({}, None),
        ([], None),
        (None, None),
    ],
)
def test_a_digest_is_one_of_64_hexadecimal_digits(tmp_path: Path, content: Any, found: str | None) -> None:
    document = tmp_path / "base.json"
    document.write_text(json.dumps(content))
    code, out, error = step("digest", document)
    assert (code, out) == ((0, f"{found}\n") if found else (1, ""))
    assert "Traceback" not in error


def test_attestations_name_the_base_and_list_packages(tmp_path: Path) -> None:
    provenance, sbom = tmp_path / "provenance.json", tmp_path / "sbom.json"
    material = {"uri": "pkg:docker/python@3.11", "digest": {"sha256": DIGEST.removeprefix("sha256:")}}
    provenance.write_text(json.dumps({"materials": [material]}))
    sbom.write_text(json.dumps({"packages": [{"name": str(number)} for number in range(41)]}))
    assert step("attestations", provenance, sbom, DIGEST) == (0, "", "")
    other = f"sha256:{'cd' * 32}"
    assert step("attestations", provenance, sbom, other)[2] == (
        f"release: {provenance}: the base {other} is not among the materials\n"
    )
    assert step("attestations", provenance, sbom, "")[0] == 1  # a variable that was never set
    sbom.write_text(json.dumps({"packages": []}))
    assert "0 packages" in step("attestations", provenance, sbom, DIGEST)[2]
    sbom.write_text("null")
    assert step("attestations", provenance, sbom, DIGEST)[0] == 1


def test_sums_are_of_one_wheel_and_the_sources(tmp_path: Path) -> None:
    (tmp_path / "dapt_operator-0.1.0.tar.gz").write_bytes(b"sources")
    assert step("sums", tmp_path)[0] == 1
    (tmp_path / "dapt_operator-0.1.0-py3-none-any.whl").write_bytes(b"wheel")
    code, out, _ = step("sums", tmp_path)
    assert code == 0
    assert f"{hashlib.sha256(b'wheel').hexdigest()}  dapt_operator-0.1.0-py3-none-any.whl" in out.splitlines()
    (tmp_path / "SHA256SUMS").write_text(out)
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True)
    (tmp_path / "torch-9.whl").write_bytes(b"")
    assert step("sums", tmp_path)[0] == 1
