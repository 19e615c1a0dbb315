"""`dapt lint` on a profile whose pods go beyond the restricted standard."""

from __future__ import annotations

from pathlib import Path

from dapt_operator.cli.commands.lint import lint

PROFILE = """
apiVersion: dapt.dev/v1alpha1
kind: AdaptationProfile
metadata: {name: h100}
spec:
  trainerImage: registry.example/trainer:1
  accelerator: {memoryGiB: 80}
  storage: {existingClaim: work}
  podTemplate:
    spec:
      containers: [{name: trainer, securityContext: {capabilities: {add: [IPC_LOCK]}}}]
"""


def test_what_a_template_lifts_is_a_warning_and_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(PROFILE)
    problems, good = lint([path], cluster=True)
    assert problems == []
    assert good == [
        f"{path}: ok (AdaptationProfile h100)",
        f"{path}: warning: spec.podTemplate of the profile goes beyond the restricted Pod Security standard"
        " (containers[trainer].securityContext.capabilities.add has IPC_LOCK): its pods start only in namespaces that"
        " allow that",
    ]
