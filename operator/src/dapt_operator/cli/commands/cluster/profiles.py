"""Reads profiles from a cluster for `dapt plan --cluster` and `dapt lint --cluster`, with their limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dapt_client.access import ClusterAccess
from dapt_client.errors import NoAnswerError
from dapt_operator.api.v1alpha1.profile import LOCAL_PROFILE_NAME, AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.inputs.manifests import Request, read_request
from dapt_operator.plan.admission import limit_breaches
from dapt_operator.plan.observed import DesiredState
from dapt_operator.plan.parsed import read_profile


def request_with_profile(access: ClusterAccess, manifest: Path) -> Request:
    """Return the adaptation of a manifest, checked as the cluster does, with its profile from the cluster.

    Raises:
        UserError: every problem of the file at once, or there is no such profile.
    """
    request = read_request(manifest, LOCAL_PROFILE_NAME, local=False)
    return replace(request, profile=_profile(access, request.adaptation))


def profile_problems(access: ClusterAccess, adaptation: DomainAdaptation) -> tuple[list[str], list[str]]:
    """Return what the adaptation's profile in the cluster refuses, and as warnings why it could not be asked."""
    try:
        profile = _profile(access, adaptation)
    except NoAnswerError as error:
        return [], [f"the profile's limits are not checked: {problem}" for problem in error.problems]
    except UserError as error:
        return list(error.problems), []
    desired = DesiredState(adaptation.spec, profile.spec, profile.metadata.name)
    namespace = adaptation.metadata.namespace or access.namespace
    return [f"profile {profile.metadata.name}: {breach}" for breach in limit_breaches(desired, namespace)], []


def _profile(access: ClusterAccess, adaptation: DomainAdaptation) -> AdaptationProfile:
    stored = access.profile(adaptation.spec.profile)
    read = read_profile(stored, local=False)
    if read.model is None:
        raise UserError(
            f"profile {stored['metadata']['name']} of the cluster: {read.message}; ask the platform team to correct it"
        )
    return read.model
