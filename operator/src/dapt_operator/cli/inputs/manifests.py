"""Chooses among the documents of files: the one adaptation with its profile, and the files that speak of dapt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dapt_client.documents import check_file
from dapt_contract.untrusted.folders import paths_below
from dapt_operator.api.v1alpha1.base import API_GROUP, API_VERSION
from dapt_operator.api.v1alpha1.profile import LOCAL_PROFILE_NAME, AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.api.validation.yaml_source import YamlDocument
from dapt_operator.cli.errors import UserError


@dataclass(frozen=True)
class Request:
    """The adaptation and the profile that `run` and `plan` start from."""

    path: Path
    adaptation: DomainAdaptation
    """With absolute file:// paths."""
    profile: AdaptationProfile | None
    """None: the built-in profile of this machine."""
    document: YamlDocument
    """The adaptation as the user wrote it."""
    warnings: tuple[str, ...] = ()
    """Of the adaptation and the profile, as in `CheckedDocument`."""
    is_profile_given: bool = False
    """Whether the user has named the profile's file."""


def files_below(path: Path) -> list[Path]:
    """Return the YAML files of a folder and of those below it that speak of dapt's resources; of a file itself.

    A folder of a GitOps tree has manifests of other kinds and templates that are no YAML: those are left out.

    Raises:
        UserError: none of them does, or a folder cannot be read.
    """
    if not path.is_dir():
        return [path]
    try:
        paths = paths_below(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be searched: {error.strerror} ({error.filename}); name the files"
        ) from error
    found = [
        file
        for file in paths
        if file.suffix in (".yaml", ".yml") and file.is_file() and _speaks_of_dapt(file)
    ]
    if not found:
        raise UserError(
            f"{path}: no .yaml or .yml file with apiVersion {API_VERSION} in this folder or below it"
        )
    return found


def _speaks_of_dapt(file: Path) -> bool:
    try:
        return API_GROUP.encode() in file.read_bytes()
    except OSError:
        return True  # whoever checks it reports why it cannot be read


def is_of_dapt(document: YamlDocument) -> bool:
    """Return whether a document is one of dapt's resources, or means to be."""
    data = document.data
    return isinstance(data, dict) and str(data.get("apiVersion", "")).startswith(f"{API_GROUP}/")


def read_request(manifest: Path, profile: str | None, *, local: bool = True) -> Request:
    """Return the one adaptation of `manifest` with its profile.

    Args:
        manifest: file with one DomainAdaptation and, optionally, profiles.
        profile: file with profiles; `local` for the built-in one; None: one of the manifest's own file.
        local: whether the run is on this machine, as for `check`.

    Raises:
        UserError: every problem of the files, at once.
    """
    documents = check_file(manifest, local=local)
    has_profile_file = profile is not None and profile != LOCAL_PROFILE_NAME
    profile_documents = (
        check_file(Path(profile), local=local) if has_profile_file and profile is not None else []
    )
    problems = [problem for document in (*documents, *profile_documents) for problem in document.problems]
    adaptations = [
        (document.model, document) for document in documents if isinstance(document.model, DomainAdaptation)
    ]
    has_unreadable = any(document.model is None for document in documents)
    if len(adaptations) > 1:
        names = ", ".join(adaptation.metadata.name for adaptation, _ in adaptations)
        problems.append(
            f"{manifest}: {len(adaptations)} adaptations ({names}); a run takes one, put each into a file of its own"
        )
    if not adaptations and not has_unreadable:
        problems.append(
            f"{manifest}: has profiles but no DomainAdaptation; give the manifest of the adaptation"
        )
    profiles = [
        document.model
        for document in (profile_documents if has_profile_file else documents)
        if isinstance(document.model, AdaptationProfile)
    ]
    if has_profile_file and not profiles and not problems:
        problems.append(f"{profile}: has no AdaptationProfile; give a file with one, or `-p local`")
    if problems:
        raise UserError(problems)
    adaptation, checked = adaptations[0]
    is_local = profile == LOCAL_PROFILE_NAME
    chosen = None if is_local else _choose(profiles, adaptation, manifest)
    warnings = [
        warning
        for document in (checked, *documents, *profile_documents)
        for warning in document.warnings
        if document is checked or (chosen is not None and document.model is chosen)
    ]
    return Request(
        manifest,
        adaptation,
        chosen,
        checked.document,
        tuple(dict.fromkeys(warnings)),
        is_profile_given=has_profile_file,
    )


def _choose(
    profiles: list[AdaptationProfile], adaptation: DomainAdaptation, manifest: Path
) -> AdaptationProfile | None:
    profile_name = adaptation.spec.profile
    matching = [profile for profile in profiles if profile.metadata.name == profile_name]
    if matching:
        return matching[0]
    names = ", ".join(profile.metadata.name for profile in profiles)
    if profile_name is None:
        defaults = [profile for profile in profiles if profile.is_default] or profiles
        if len(defaults) > 1:
            raise UserError(
                f"{manifest}: spec.profile is left out and there are several profiles ({names}); name one"
            )
        return defaults[0] if defaults else None
    if profile_name == LOCAL_PROFILE_NAME:
        return None
    if profiles:
        raise UserError(
            f"{manifest}: spec.profile: {profile_name!r} is not among the given profiles ({names});"
            " name one of them"
        )
    raise UserError(
        f"{manifest}: spec.profile: {profile_name!r} is not in this file; give its file with -p FILE,"
        " or -p local for this machine's own profile"
    )
