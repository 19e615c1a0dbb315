"""Which adaptation and which profile a file stands for, and where its relative paths lead."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapt_operator.cli.errors import UserError
from dapt_operator.cli.inputs.manifests import read_request

ADAPTATION = """\
apiVersion: dapt.dev/v1alpha1
kind: DomainAdaptation
metadata: {name: NAME}
spec:
  model: {source: "file://base"}
  corpus:
    domain: [{source: "file://../shared/*.jsonl"}]
    general: [{source: "file:///data/general.jsonl"}, {source: "s3://bucket/x.jsonl"}]
  output: {destination: "file://out"}
  resources: {nodes: 1}
"""
PROFILE = """\
apiVersion: dapt.dev/v1alpha1
kind: AdaptationProfile
metadata: {name: NAME}
spec:
  trainerImage: trainer:1
  accelerator: {kind: cpu, memoryGiB: 4}
  storage: {existingClaim: work}
"""


def write(path: Path, *documents: str) -> Path:
    path.write_text("---\n".join(documents))
    return path


def adaptation(name: str = "one", profile: str | None = None) -> str:
    text = ADAPTATION.replace("NAME", name)
    return text if profile is None else text.replace("spec:\n", f"spec:\n  profile: {profile}\n")


def profile(name: str) -> str:
    return PROFILE.replace("NAME", name)


def refused(manifest: Path, given: str | None = None) -> tuple[str, ...]:
    with pytest.raises(UserError) as error:
        read_request(manifest, given)
    return error.value.problems


def test_relative_files_are_taken_from_the_manifests_folder(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    request = read_request(write(folder / "m.yaml", adaptation()), None)
    spec = request.adaptation.spec
    assert spec.model.source == f"file://{folder}/base"
    assert [source.source for source in (*spec.corpus.domain, *spec.corpus.general)] == [
        f"file://{tmp_path}/shared/*.jsonl",
        "file:///data/general.jsonl",
        "s3://bucket/x.jsonl",
    ]
    assert spec.output.destination == f"file://{folder}/out"
    assert request.profile is None


def test_profile_in_the_manifest_of_the_adaptation_is_used(tmp_path: Path) -> None:
    request = read_request(write(tmp_path / "m.yaml", profile("lab"), adaptation()), None)
    assert request.profile is not None
    assert request.profile.metadata.name == "lab"


def test_the_named_profile_of_several_is_used(tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.yaml", profile("lab"), profile("hall"), adaptation(profile="hall"))
    request = read_request(manifest, None)
    assert request.profile is not None
    assert request.profile.metadata.name == "hall"


def test_a_profile_file_replaces_the_manifests_own(tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.yaml", profile("lab"), adaptation())
    other = write(tmp_path / "p.yaml", profile("hall"))
    request = read_request(manifest, str(other))
    assert request.profile is not None
    assert request.profile.metadata.name == "hall"
    assert read_request(manifest, "local").profile is None


def test_a_profile_that_is_nowhere_is_named_with_the_way_out(tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.yaml", adaptation(profile="h100"))
    assert refused(manifest) == (
        f"{manifest}: spec.profile: 'h100' is not in this file; give its file with -p FILE, or -p local for this"
        " machine's own profile",
    )
    other = write(tmp_path / "p.yaml", profile("hall"))
    assert refused(manifest, str(other)) == (
        f"{manifest}: spec.profile: 'h100' is not among the given profiles (hall); name one of them",
    )


def test_two_profiles_and_no_choice_is_refused(tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.yaml", profile("lab"), profile("hall"), adaptation())
    assert refused(manifest) == (
        f"{manifest}: spec.profile is left out and there are several profiles (lab, hall); name one",
    )


def test_one_adaptation_a_run(tmp_path: Path) -> None:
    two = write(tmp_path / "two.yaml", adaptation("one"), adaptation("two"))
    assert refused(two) == (
        f"{two}: 2 adaptations (one, two); a run takes one, put each into a file of its own",
    )
    none = write(tmp_path / "none.yaml", profile("lab"))
    assert refused(none) == (
        f"{none}: has profiles but no DomainAdaptation; give the manifest of the adaptation",
    )


def test_problems_of_manifest_and_profile_come_together(tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.yaml", adaptation().replace("nodes: 1", "nodes: many"))
    other = write(tmp_path / "p.yaml", profile("hall").replace("memoryGiB: 4", "memoryGiB: 0"))
    problems = refused(manifest, str(other))
    assert [problem.split(" (line")[0] for problem in problems] == [
        f"{manifest}: spec.resources.nodes",
        f"{other}: spec.accelerator.memoryGiB",
    ]
