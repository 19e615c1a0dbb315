"""Reads manifests into checked documents.

A file may hold several documents. Paths after `file://` that do not begin with `/` are taken from the folder of
their manifest, so that a manifest means the same wherever it is read.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from dapt_client.errors import UserError
from dapt_contract.inputs.source_files import escaped
from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.api.validation.problem import grouped
from dapt_operator.api.validation.validate import check, warnings_of
from dapt_operator.api.validation.yaml_source import ManifestError, YamlDocument, load

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


def read_documents(path: Path) -> list[YamlDocument]:
    """Return the documents of a manifest, the items of a `kind: List` each as one; `-` reads stdin.

    Raises:
        UserError: the file is missing, not readable or not YAML.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder; give the manifest itself")
    try:
        content = sys.stdin.buffer.read() if path == STDIN else path.read_bytes()
        documents = load(content.decode(), source_name(path))
        items = [item for document in documents for item in _items(document)]
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
    if not items:
        raise UserError(
            f"{source_name(path)}: a List without items, so it has no DomainAdaptation; give one that has"
        )
    return items


def source_name(path: Path) -> str:
    """Return what messages call a file."""
    return "<stdin>" if path == STDIN else str(path)


def _items(document: YamlDocument) -> list[YamlDocument]:
    """Return the items of a List, as `kubectl get -o yaml` writes one; of any other document itself."""
    data = document.data
    if not isinstance(data, dict) or not str(data.get("kind", "")).endswith("List"):
        return [document]
    items = data.get("items") or []
    if not isinstance(items, list):
        return [document]  # it is refused for its kind
    found = []
    for index, item in enumerate(items):
        place = ("items", index)
        lines = {field[2:]: line for field, line in document.lines.items() if field[:2] == place}
        found.append(YamlDocument(item, lines, document.filename, document.line_of(place)))
    return found


def check_file(path: Path, *, local: bool = True) -> list[CheckedDocument]:
    """Return every document of a file with all its problems.

    Raises:
        UserError: as `read_documents`.
    """
    found = [check_document(path, document, local=local) for document in read_documents(path)]
    first_by_name: dict[tuple[object, ...], YamlDocument] = {}
    for index, checked in enumerate(found):
        name = _name_of(checked.document)
        first = first_by_name.setdefault(name, checked.document) if name is not None else checked.document
        if first is not checked.document:
            problem = _repeated(path, checked.document, first)
            found[index] = replace(checked, model=None, problems=(*checked.problems, problem))
    return found


def _name_of(document: YamlDocument) -> tuple[object, ...] | None:
    """Return what the API server knows a resource by; None for a document without a name of its own."""
    data = document.data
    metadata = data.get("metadata") if isinstance(data, dict) else None
    if not isinstance(metadata, dict) or not isinstance(name := metadata.get("name"), str):
        return None
    return (str(data.get("kind")), str(metadata.get("namespace")), name)


def _repeated(path: Path, document: YamlDocument, first: YamlDocument) -> str:
    place = ("metadata", "name")
    return (
        f"{source_name(path)}: metadata.name (line {document.line_of(place)}): {document.data['metadata']['name']!r} is"
        f" the name of the {document.data['kind']} in line {first.line_of(place)} too, and a cluster would keep one of"
        " them; remove one, or give it another name"
    )


def check_document(path: Path, document: YamlDocument, *, local: bool) -> CheckedDocument:
    """Return a document with all its problems.

    Args:
        path: its file, or what messages call it.
        document: as the user wrote it.
        local: whether the run is on this machine; on a cluster file:// is refused.
    """
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
