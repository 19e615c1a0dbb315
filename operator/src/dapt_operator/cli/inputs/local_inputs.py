"""Looks whether what a manifest reads and writes on this machine is there, without reading it.

What lies elsewhere is not looked up: that takes the network, credentials or a cluster. `not_looked_at` says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from dapt_client.documents import FILE_SCHEME, absolute
from dapt_contract.inputs.bucket_names import bucket_fault
from dapt_contract.inputs.content_stores import content_stores
from dapt_contract.inputs.other_layouts import other_layout
from dapt_contract.inputs.source_files import named_folder
from dapt_contract.sentences import shortened
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.api.validation.hints.advice import leaves, value_at
from dapt_operator.api.validation.problem import Problem, path_text
from dapt_operator.api.validation.yaml_source import YamlDocument
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.inputs.file_beginnings import beginning, first_record
from dapt_operator.cli.inputs.local_destination import destination_problem
from dapt_operator.cli.inputs.path_advice import path_advice
from dapt_operator.cli.inputs.source_sizes import local_files, source_problems

MODEL_FIELD = ("spec", "model", "source")
_LENGTH_FIELDS = (("spec", "corpus", "sequenceLength"), ("spec", "finetuning", "sequenceLength"))
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
"""Names by which transformers finds weights: one file, or the list of several."""
_PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_LARGEST_POINTER_BYTES = 1024
_MAX_FIELDS_CHARACTERS = 120
_POINTER_BEGINS = b"version https://git-lfs.github.com/spec/"
_HUB, _STORE = "on the hub (needs the network)", "in an object store (needs the network and credentials)"
_PLACES = {"hf": _HUB, "s3": _STORE, "gs": _STORE, "pvc": "on a claim (needs the cluster)"}


def local_problems(
    document: YamlDocument,
    manifest: Path,
    adaptation: DomainAdaptation | None,
    *,
    removed: Path | None = None,
) -> list[Problem]:
    """Return what is missing or in the way on this machine, each with its field and line.

    Args:
        document: as the user wrote it; what is wrong with its fields does not matter here.
        manifest: its file, from whose folder relative paths start.
        adaptation: of the document; None: it has problems of its own.
        removed: folder that will be gone when the run starts; a destination in it is free.
    """
    problems = []
    for path, value in leaves(absolute(document.data, manifest)):
        if path[:1] != ("spec",) or not isinstance(value, str) or not value.startswith(FILE_SCHEME):
            continue
        if path[-1] == "destination":
            is_removed = removed is not None and _is_below(Path(value.removeprefix(FILE_SCHEME)), removed)
            sentences = [] if is_removed else list(destination_problem(value, adaptation))
        elif path == MODEL_FIELD:
            sentences = list(_model_problems(Path(value.removeprefix(FILE_SCHEME))))
        elif path[-1] == "source":
            written = value_at(document.data, path)
            sentences = _leaves_the_manifests_folder(value, str(written), manifest) or _source_problems(value)
        else:
            continue
        if (
            path[-1] == "source"
            and sentences
            and (advice := path_advice(value, value_at(document.data, path), manifest.resolve().parent))
        ):
            sentences = [f"{sentence}; {advice}" for sentence in sentences]
        line = document.line_of(path)
        problems += [Problem(path_text(path), value, sentence, line) for sentence in sentences]
    return problems


def bucket_problems(document: YamlDocument, adaptation: DomainAdaptation) -> list[Problem]:
    """Return the destination in a bucket that cannot exist by its name; the stage `destination` would refuse it."""
    address = adaptation.spec.output.destination
    path = ("spec", "output", "destination")
    sentence = bucket_fault(address)
    return [Problem(path_text(path), address, sentence, document.line_of(path))] if sentence else []


def length_problems(document: YamlDocument, adaptation: DomainAdaptation) -> list[Problem]:
    """Return the sequence lengths that a model on this machine cannot read."""
    address = adaptation.spec.model.source
    if not address.startswith(FILE_SCHEME):
        return []
    from dapt_operator.cli.inputs.model_shape import local_model  # with the contract's models and the sizing

    try:
        positions = local_model(Path(address.removeprefix(FILE_SCHEME))).max_positions
    except (UserError, OSError):  # named by `local_problems`
        return []
    problems = []
    for path in _LENGTH_FIELDS:
        tokens = value_at(document.data, path)
        if isinstance(tokens, int | float) and tokens > positions:
            sentence = f"{tokens} is longer than the model's {positions} positions; write at most {positions}"
            problems.append(Problem(path_text(path), tokens, sentence, document.line_of(path)))
    return problems


def text_field_problems(document: YamlDocument, adaptation: DomainAdaptation) -> list[Problem]:
    """Return the sources of text on this machine whose first record lacks the field that holds the text.

    That is how the stage `prepare` tells a wrong name from a bad record, after it has read the whole base model.
    """
    problems = []
    for side in ("domain", "general"):
        for index, source in enumerate(getattr(adaptation.spec.corpus, side)):
            if not source.source.startswith(FILE_SCHEME):
                continue
            files = local_files(source.source).files
            sample = beginning(files[0]) if files else None
            record = first_record(sample[0]) if sample else None
            if isinstance(record, dict) and source.text_field not in record:
                path = ("spec", "corpus", side, index, "textField")
                sentence = (
                    f"{files[0].path}:1 has no field {source.text_field!r}; its fields are {_names(record)}:"
                    " name the one that holds the text"
                )
                problems.append(Problem(path_text(path), source.text_field, sentence, document.line_of(path)))
    return problems


def _names(record: dict[str, object]) -> str:
    """Return the fields of a record, shortened: a name may be as long as any text."""
    return shortened(", ".join(record), _MAX_FIELDS_CHARACTERS) or "none"


def not_looked_at(document: YamlDocument) -> tuple[str, ...]:
    """Return a line for each place that is not on this machine, with the fields that lead there."""
    fields: dict[str, list[str]] = {}
    for path, value in leaves(document.data):
        if path[:1] != ("spec",) or path[-1] not in ("source", "destination") or not isinstance(value, str):
            continue
        place = _PLACES.get(value.partition("://")[0])
        if place is not None:
            fields.setdefault(place, []).append(path_text(path))
    return tuple(f"{place}: {', '.join(names)}" for place, names in fields.items())


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _leaves_the_manifests_folder(address: str, written: str, manifest: Path) -> list[str]:
    """Return the problem of a relative address that leads out of the manifest's folder by a link.

    Whoever reads the manifest takes it for data that came with it.
    """
    names = written.removeprefix(FILE_SCHEME).split("/")
    if names[0] in ("", "~") or names[0].startswith("~") or ".." in names:
        return []
    home = os.path.realpath(manifest.parent)
    allowed = (home, *content_stores(home))
    named = (
        named_folder(address.removeprefix(FILE_SCHEME)),
        *(file.path for file in local_files(address).files),
    )
    for path in named:
        real = os.path.realpath(path)
        if not any(Path(real).is_relative_to(folder) for folder in allowed):
            return [
                f"{path}: leads to {real}, outside of the manifest's folder; write that address yourself if it is what"
                " you want to read, or copy it there"
            ]
    return []


def _source_problems(address: str) -> list[str]:
    path = Path(address.removeprefix(FILE_SCHEME))
    problems = source_problems(address)
    if not problems and path.is_file() and _is_pointer(path):
        return [_pointer_text(path)]
    return problems


def _model_problems(path: Path) -> Iterator[str]:
    """Yield what keeps a local model from being read, by its files' names and headers."""
    if path.is_symlink() and not path.exists():
        yield f"{path}: a link to {os.readlink(path)}, which is not there; restore its target"
        return
    try:
        if path.is_dir() and (finding := other_layout([entry.name for entry in path.iterdir()])):
            yield f"{path}: {finding}"
            return
        missing = list(_missing_weights(path)) if (path / "config.json").is_file() else []
        yield from missing
        if not missing:
            from dapt_operator.cli.inputs.model_shape import local_model  # as above

            local_model(path)
    except UserError as error:
        yield from error.problems
    except OSError as error:
        yield f"{path}: cannot be read ({error.strerror}); check its permissions"


def _missing_weights(folder: Path) -> Iterator[str]:
    names = {path.name for path in folder.iterdir()}
    dead = sorted(path.name for path in folder.iterdir() if path.is_symlink() and not path.exists())
    if dead:
        yield f"{folder}: {_first_of(dead)} is a link to nothing; download the model again"
    elif _WEIGHTS in names:
        if _is_pointer(folder / _WEIGHTS):
            yield _pointer_text(folder / _WEIGHTS)
    elif _INDEX in names:
        yield from _missing_shards(folder, names)
    elif any(name.endswith(_PICKLED_SUFFIXES) for name in names):
        yield f"{folder}: has pickled weights only, which are never opened; convert them to safetensors"
    else:
        yield f"{folder}: has neither {_WEIGHTS} nor {_INDEX}, by which weights are found; download the model again"


def _missing_shards(folder: Path, names: set[str]) -> Iterator[str]:
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        shards = sorted({str(name) for name in index["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield f"{folder / _INDEX}: cannot be read ({error}); download the model again"
        return
    missing = [name for name in shards if name not in names]
    if missing:
        yield f"{folder}: {_first_of(missing)} is missing, which {_INDEX} names; download the model again"
    elif any(_is_pointer(folder / name) for name in shards):
        yield _pointer_text(folder / next(name for name in shards if _is_pointer(folder / name)))


def _first_of(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _is_pointer(path: Path) -> bool:
    """Return whether a file only says where git-lfs has the content."""
    try:
        if path.stat().st_size > _LARGEST_POINTER_BYTES:
            return False
        with path.open("rb") as file:
            return file.read(len(_POINTER_BEGINS)) == _POINTER_BEGINS
    except OSError:
        return False


def _pointer_text(path: Path) -> str:
    return f"{path}: a pointer of git-lfs, not the content; fetch it with `git lfs pull`"
