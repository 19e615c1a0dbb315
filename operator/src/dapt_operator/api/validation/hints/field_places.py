"""Finds where the API has a field of a name, in any spelling and under the names that other libraries give it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from typing import Any, Final

from dapt_operator.api.validation.hints.advice import has_value, schema_at, value_at
from dapt_operator.api.validation.problem import path_text
from dapt_operator.api.validation.yaml_source import Path

ANY_ITEM: Final = -1
"""Stands in a place for the index of every item of a list."""

OTHER_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "lr": ("learningRate",),
    "numepochs": ("epochs",),
    "numtrainepochs": ("epochs",),
    "maxsteps": ("steps",),
    "numsteps": ("steps",),
    "batchsize": ("globalBatchSize",),
    "trainbatchsize": ("globalBatchSize",),
    "perdevicetrainbatchsize": ("microBatchSize",),
    "maxseqlength": ("sequenceLength",),
    "maxlength": ("sequenceLength",),
    "seqlen": ("sequenceLength",),
    "contextlength": ("sequenceLength",),
    "blocksize": ("sequenceLength",),
    "warmup": ("warmupFraction",),
    "warmupratio": ("warmupFraction",),
    "maxgradnorm": ("gradientClip",),
    "r": ("rank",),
    "lorar": ("rank",),
    "loraalpha": ("alpha",),
    "loradropout": ("dropout",),
    "targetmodules": ("targets",),
    "adamw": ("optimizer",),
    "lrscheduler": ("schedule",),
    "lrschedulertype": ("type",),
    "training": ("pretraining",),
    "cpt": ("pretraining",),
    "sft": ("finetuning",),
    "dpo": ("preference",),
    "image": ("trainerImage",),
    "gpus": ("gpusPerNode",),
    "outputdir": ("destination",),
    "modelnameorpath": ("source",),
    "name": ("source",),
    "path": ("source", "destination"),
    "uri": ("source", "destination"),
    "url": ("source", "destination"),
    "file": ("source",),
    "files": ("source",),
    "dataset": ("source",),
    "task": ("name",),
    "textcolumn": ("textField",),
    "column": ("textField",),
    "instruction": ("prompt",),
    "question": ("prompt",),
    "output": ("response",),
    "answer": ("response",),
    "completion": ("response",),
    "conversations": ("messages",),
    "maxforgetting": ("maxGeneralPerplexityIncrease",),
}
"""Names of the same things in transformers, PEFT, TRL and other tools, without case and separators."""


def plain_name(name: str) -> str:
    """Return a name without case and separators: `learning_rate`, `learning-rate` and `LearningRate` are equal."""
    return re.sub(r"[\s_.-]", "", name).lower()


def names_of(name: str) -> tuple[str, ...]:
    """Return a field's name, and the API's names for what another library calls so."""
    return (name, *OTHER_NAMES.get(plain_name(name), ()))


def places(schema: dict[str, Any], names: Iterable[str], block: Path, without: Path = ()) -> list[Path]:
    """Return the places below a block that have one of the names, those of fewer levels first.

    A name may be that of the field, or of the end of the path to it: `heldOutFraction` is `heldOut.fraction`.

    Args:
        schema: structural schema of the whole document.
        names: of the field.
        block: path of the block.
        without: path of a block whose places are left out; empty: none is.
    """
    plain = {plain_name(name) for name in names}
    found = []
    for _, place in places_below(schema_at(schema, block), block):
        if without and place[: len(without)] == without:
            continue
        parts = [str(part) for part in place[len(block) :] if part != ANY_ITEM]
        endings = {plain_name("".join(parts[number:])) for number in range(len(parts))}
        if plain & endings:
            found.append(place)
    return sorted(found, key=len)


def places_below(schema: dict[str, Any], path: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name, place) of every field below a block, but for the status, which nobody writes."""
    for name, child in schema.get("properties", {}).items():
        if (*path, name) == ("status",):
            continue
        yield name, (*path, name)
        inner, place = (
            (child["items"], (*path, name, ANY_ITEM)) if "items" in child else (child, (*path, name))
        )
        yield from places_below(inner, place)


def place_text(place: Path) -> str:
    """Return `spec.corpus.domain[].textField`."""
    return path_text(place).replace(f"[{ANY_ITEM}]", "[]")


def in_items(data: object, place: Path) -> list[Path]:
    """Return the paths that a place stands for in a document; the first item of a list that is not there."""
    paths: list[Path] = [()]
    for part in place:
        if part != ANY_ITEM:
            paths = [(*path, part) for path in paths]
            continue
        items = [(path, value_at(data, path)) for path in paths]
        paths = [
            (*path, index)
            for path, value in items
            for index in (range(len(value)) if isinstance(value, list) else range(1))
        ]
    return paths


def is_given(data: object, place: Path) -> bool:
    """Return whether a document has a value at a place, in every item where it is in those of a list."""
    return all(has_value(data, path) for path in in_items(data, place))


def nearness(names: Iterable[str], candidate: str) -> float:
    """Return how near a candidate is to the nearest of the names, from 0 to 1."""
    plain = plain_name(candidate)
    return max(SequenceMatcher(None, plain_name(name), plain).ratio() for name in names)


def near_names(names: tuple[str, ...], candidates: Iterable[str], cutoff: float) -> list[str]:
    """Return the near candidates, the nearest first; a name that begins like the field counts as near."""
    near = [(-nearness(names, candidate), candidate) for candidate in candidates]
    plain = plain_name(names[0])
    begins = [name for _, name in near if plain and plain_name(name).startswith(plain)]
    return [name for closeness, name in sorted(near) if -closeness >= cutoff or name in begins]
