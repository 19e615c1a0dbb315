"""From a file on disk to a checked adaptation with its profile.

A file may hold several documents. Paths after `file://` that do not begin with `/` are taken from the folder of
their manifest, so that a manifest means the same wherever `dapt` is started.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dapt_operator.api.v1alpha1.profile import LOCAL_PROFILE_NAME, AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.api.validation.validate import check
from dapt_operator.api.validation.yaml_source import ManifestError, YamlDocument, load
from dapt_operator.cli.errors import UserError

FILE_SCHEME = "file://"
_PLACES = ("source", "destination")
"""Fields whose value may be a file:// address."""


@dataclass(frozen=True)
class CheckedDocument:
    """One document with what was found: no problem means that `model` is there."""

    path: Path
    model: DomainAdaptation | AdaptationProfile | None
    problems: tuple[str, ...]
    """`FILE: FIELD (line N): ...`"""


@dataclass(frozen=True)
class Request:
    """What `run` and `plan` start from."""

    path: Path
    adaptation: DomainAdaptation
    """With absolute file:// paths."""
    profile: AdaptationProfile | None
    """None: the built-in profile of this machine."""


def read_documents(path: Path) -> list[YamlDocument]:
    """The documents of a manifest.

    Raises:
        UserError: the file is not there, not readable or not YAML.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder; give the manifest itself")
    try:
        return load(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of a manifest") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; a manifest is YAML, save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    except ManifestError as error:
        raise UserError(str(error)) from None


def judge(path: Path, *, local: bool = True) -> list[CheckedDocument]:
    """Every document of a file with all its problems.

    Raises:
        UserError: as `read_documents`.
    """
    return [_judge(path, document, local=local) for document in read_documents(path)]


def _judge(path: Path, document: YamlDocument, *, local: bool) -> CheckedDocument:
    model, problems = check(document, local=local)
    if model is not None:  # only now, so that problems show what is written
        model, problems = check(YamlDocument(absolute(document.data, path), document.lines), local=local)
    return CheckedDocument(path, model, tuple(f"{path}: {problem}" for problem in problems))


def read_request(manifest: Path, profile: str | None) -> Request:
    """The one adaptation of `manifest` with the profile that it gets.

    Args:
        manifest: file with one DomainAdaptation, and profiles beside it if wanted.
        profile: file with profiles; `local` for the built-in one; None: one of the manifest's own file.

    Raises:
        UserError: everything that is wrong with the files, at once.
    """
    judged = judge(manifest)
    from_file = profile is not None and profile != LOCAL_PROFILE_NAME
    also = judge(Path(profile)) if from_file and profile is not None else []
    problems = [problem for document in (*judged, *also) for problem in document.problems]
    adaptations = [one.model for one in judged if isinstance(one.model, DomainAdaptation)]
    unreadable = any(one.model is None for one in judged)
    if len(adaptations) > 1:
        names = ", ".join(one.metadata.name for one in adaptations)
        problems.append(
            f"{manifest}: {len(adaptations)} adaptations ({names}); one is run at a time: one file each"
        )
    if not adaptations and not unreadable:
        problems.append(
            f"{manifest}: no DomainAdaptation in it, only profiles; give the manifest of the adaptation"
        )
    if from_file and not any(isinstance(one.model, AdaptationProfile) for one in also) and not problems:
        problems.append(f"{profile}: no AdaptationProfile in it; give a file with one, or `-p local`")
    if problems:
        raise UserError(problems)
    adaptation = adaptations[0]
    if profile == LOCAL_PROFILE_NAME:
        return Request(manifest, adaptation, None)
    offered = [
        one.model for one in (also if from_file else judged) if isinstance(one.model, AdaptationProfile)
    ]
    return Request(manifest, adaptation, _choose(offered, adaptation, manifest))


def _choose(
    offered: list[AdaptationProfile], adaptation: DomainAdaptation, manifest: Path
) -> AdaptationProfile | None:
    wanted = adaptation.spec.profile
    named = [one for one in offered if one.metadata.name == wanted]
    if named:
        return named[0]
    names = ", ".join(one.metadata.name for one in offered)
    if wanted is None:
        marked = [one for one in offered if one.is_default] or offered
        if len(marked) > 1:
            raise UserError(
                f"{manifest}: spec.profile is left out and there are several profiles ({names}); name one"
            )
        return marked[0] if marked else None
    if wanted == LOCAL_PROFILE_NAME:
        return None
    if offered:
        raise UserError(f"{manifest}: spec.profile: {wanted!r} is not among the profiles at hand ({names})")
    raise UserError(
        f"{manifest}: spec.profile: {wanted!r} is not in this file; give its file with -p FILE,"
        " or -p local for this machine's own profile"
    )


def absolute(value: Any, manifest: Path) -> Any:
    """A copy of a document in which relative `file://` addresses are absolute."""
    if isinstance(value, dict):
        return {
            key: _address(item, manifest) if key in _PLACES else absolute(item, manifest)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [absolute(item, manifest) for item in value]
    return value


def _address(value: Any, manifest: Path) -> Any:
    if not isinstance(value, str) or not value.startswith(FILE_SCHEME):
        return value
    path = value.removeprefix(FILE_SCHEME)
    if not path or path.startswith("/"):
        return value
    folder = manifest.resolve().parent
    return FILE_SCHEME + os.path.normpath(folder / Path(path).expanduser())


def sources_of(adaptation: DomainAdaptation) -> Iterator[tuple[str, str]]:
    """(field, address) of everything that the adaptation reads, model first."""
    spec = adaptation.spec
    yield "spec.model.source", spec.model.source
    for side in ("domain", "general"):
        for index, source in enumerate(getattr(spec.corpus, side)):
            yield f"spec.corpus.{side}[{index}].source", source.source
        for index, task in enumerate(getattr(spec.evaluation, side).tasks):
            if task.source is not None:
                yield f"spec.evaluation.{side}.tasks[{index}].source", task.source
        for index, probe in enumerate(getattr(spec.evaluation.probes, side)):
            yield f"spec.evaluation.probes.{side}[{index}].source", probe.source
    if spec.finetuning is not None:
        for index, data in enumerate(spec.finetuning.data):
            yield f"spec.finetuning.data[{index}].source", data.source
