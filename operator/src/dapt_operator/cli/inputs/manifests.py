"""Reads a file into a checked adaptation with its profile.

A file may hold several documents. Paths after `file://` that do not begin with `/` are taken from the folder of
their manifest, so that a manifest means the same wherever `dapt` is started.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from dapt_contract.inputs.source_files import escaped
from dapt_operator.api.v1alpha1.base import API_GROUP, API_VERSION
from dapt_operator.api.v1alpha1.profile import LOCAL_PROFILE_NAME, AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.api.validation.problem import grouped
from dapt_operator.api.validation.validate import check, warnings_of
from dapt_operator.api.validation.yaml_source import ManifestError, YamlDocument, load
from dapt_operator.cli.errors import UserError

STDIN: Final = Path("-")
FILE_SCHEME = "file://"
_ADDRESS_FIELDS = ("source", "destination")
"""Fields whose value may be a file:// address."""


@dataclass(frozen=True)
class CheckedDocument:
    """One document with its problems; without a problem `model` is set."""

    path: Path
    model: DomainAdaptation | AdaptationProfile | None
    problems: tuple[str, ...]
    """`FILE: FIELD (line N): ...`"""
    warnings: tuple[str, ...]
    """`FIELD (line N): ...`, of what is accepted but looks like a mistake."""
    document: YamlDocument
    """As the user wrote it."""


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


def read_documents(path: Path) -> list[YamlDocument]:
    """Return the documents of a manifest, the items of a `kind: List` each as one; `-` reads stdin.

    Raises:
        UserError: the file is missing, not readable or not YAML.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder; give the manifest itself")
    try:
        content = sys.stdin.buffer.read() if path == STDIN else path.read_bytes()
        return [item for document in load(content.decode(), source_name(path)) for item in _items(document)]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of a manifest") from None
    except UnicodeDecodeError:
        raise UserError(
            f"{source_name(path)}: not UTF-8 text; a manifest is YAML, save it as UTF-8"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    except ManifestError as error:
        raise UserError(str(error)) from None


def source_name(path: Path) -> str:
    """Return what messages call a file."""
    return "<stdin>" if path == STDIN else str(path)


def _items(document: YamlDocument) -> list[YamlDocument]:
    """Return the items of a List, as `kubectl get -o yaml` writes one; of any other document itself."""
    data = document.data
    if not isinstance(data, dict) or not str(data.get("kind", "")).endswith("List"):
        return [document]
    items = data.get("items")
    if not isinstance(items, list):
        return [document]  # it is refused for its kind
    found = []
    for index, item in enumerate(items):
        place = ("items", index)
        lines = {field[2:]: line for field, line in document.lines.items() if field[:2] == place}
        found.append(YamlDocument(item, lines, document.filename, document.line_of(place)))
    return found


def files_below(path: Path) -> list[Path]:
    """Return the YAML files of a folder and of those below it that speak of dapt's resources; of a file itself.

    A folder of a GitOps tree has manifests of other kinds and templates that are no YAML: those are left out.

    Raises:
        UserError: none of them does.
    """
    if not path.is_dir():
        return [path]
    found = [
        file
        for file in sorted(path.rglob("*"))
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


def check_file(path: Path, *, local: bool = True) -> list[CheckedDocument]:
    """Return every document of a file with all its problems.

    Raises:
        UserError: as `read_documents`.
    """
    return [_check_document(path, document, local=local) for document in read_documents(path)]


def _check_document(path: Path, document: YamlDocument, *, local: bool) -> CheckedDocument:
    model, problems = check(document, local=local, is_path=partial(_is_path, path))
    if model is not None:
        # Addresses become absolute only after the first check, so that problems show what the user wrote.
        model, problems = check(YamlDocument(absolute(document.data, path), document.lines), local=local)
    warnings = grouped(warnings_of(document)) if model is not None else []
    return CheckedDocument(
        path,
        model,
        problems=tuple(f"{source_name(path)}: {problem}" for problem in grouped(problems)),
        warnings=tuple(map(str, warnings)),
        document=document,
    )


def _is_path(manifest: Path, text: str) -> bool:
    try:
        return (manifest.resolve().parent / text).exists()
    except (OSError, ValueError):  # too long a name, or one that no path can have
        return False


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


def absolute(value: Any, manifest: Path, block: str = "") -> Any:
    """Return a copy of a document with relative `file://` addresses made absolute.

    Args:
        value: the document, or a part of it.
        manifest: its file.
        block: name of the block that the part is.
    """
    if isinstance(value, dict):
        return {
            # The model and the destination are one folder each: wildcards mean nothing there.
            key: _address(item, manifest, is_pattern=key == "source" and block != "model")
            if key in _ADDRESS_FIELDS
            else absolute(item, manifest, key)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [absolute(item, manifest, block) for item in value]
    return value


def _address(value: Any, manifest: Path, *, is_pattern: bool) -> Any:
    if not isinstance(value, str) or not value.startswith(FILE_SCHEME):
        return value
    path = value.removeprefix(FILE_SCHEME)
    if not path or path.startswith("/"):
        return value
    folder = manifest.resolve().parent
    if is_pattern:
        # Only what the user wrote has wildcards, not the folder that the manifest happens to lie in.
        folder = Path(escaped(str(folder)))
    try:
        return FILE_SCHEME + os.path.normpath(folder / Path(path).expanduser())
    except RuntimeError:  # ~NAME of a user that this machine does not know
        return FILE_SCHEME + os.path.normpath(folder / path)
