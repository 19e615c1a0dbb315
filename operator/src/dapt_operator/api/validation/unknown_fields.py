"""Finds what an unknown field was meant to be.

The order of places is: the block itself, the blocks in it, the blocks around it. A field is never sent from one stage
to another, since its value would then train something else. What a message proposes was tried on the document first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import islice
from typing import Any, Final

from dapt_operator.api.validation.advice import Advice, Trial, has_value, schema_at, value_at
from dapt_operator.api.validation.problem import accepted_text, path_text
from dapt_operator.api.validation.yaml_source import Path, YamlDocument

STAGE_BLOCKS: Final = (
    frozenset(("pretraining", "finetuning", "preference")),
    frozenset(("resources", "stageResources")),
)
"""Top blocks of a spec that describe different stages with fields of the same names."""
_VERY_NEAR: Final = 0.8
_NEAR: Final = 0.65
_MOST_TRIALS: Final = 8
"""Changes that are tried for one unknown field; each is a validation of the whole document."""

OTHER_NAMES: Final = {
    "lr": "learningRate",
    "numepochs": "epochs",
    "numtrainepochs": "epochs",
    "maxsteps": "steps",
    "numsteps": "steps",
    "batchsize": "globalBatchSize",
    "trainbatchsize": "globalBatchSize",
    "perdevicetrainbatchsize": "microBatchSize",
    "maxseqlength": "sequenceLength",
    "maxlength": "sequenceLength",
    "seqlen": "sequenceLength",
    "contextlength": "sequenceLength",
    "blocksize": "sequenceLength",
    "warmupratio": "warmupFraction",
    "maxgradnorm": "gradientClip",
    "r": "rank",
    "lorar": "rank",
    "loraalpha": "alpha",
    "loradropout": "dropout",
    "targetmodules": "targets",
    "adamw": "optimizer",
    "lrscheduler": "schedule",
    "lrschedulertype": "type",
    "image": "trainerImage",
    "gpus": "gpusPerNode",
    "outputdir": "destination",
    "modelnameorpath": "source",
    "path": "source",
    "uri": "source",
    "url": "source",
    "file": "source",
    "files": "source",
    "dataset": "source",
    "textcolumn": "textField",
    "column": "textField",
}
"""Names of the same things in transformers, PEFT and TRL, without case and separators."""


@dataclass(frozen=True)
class UnknownField:
    """A field that its block does not have.

    Attributes:
        document: as the user wrote it.
        schema: structural schema of the whole document.
        path: of the field.
    """

    document: YamlDocument
    schema: dict[str, Any]
    path: Path

    @property
    def name(self) -> str:
        """Name of the field."""
        return str(self.path[-1])

    @property
    def parent(self) -> Path:
        """Path of its block."""
        return self.path[:-1]

    @property
    def value(self) -> object:
        """Its value."""
        return value_at(self.document.data, self.path)

    @property
    def siblings(self) -> tuple[str, ...]:
        """Names that its block knows."""
        return tuple(schema_at(self.schema, self.parent).get("properties", {}))

    @property
    def names(self) -> tuple[str, ...]:
        """The field's name, and the API's name for the same thing where another library calls it so."""
        other = OTHER_NAMES.get(plain_name(self.name))
        return (self.name,) if other is None else (self.name, other)


def plain_name(name: str) -> str:
    """Return a name without case and separators: `learning_rate`, `learning-rate` and `LearningRate` are equal."""
    return re.sub(r"[\s_.-]", "", name).lower()


def nearest_sibling(field: UnknownField) -> str | None:
    """Return the name of the same block that is nearest to the field's; None where none is near."""
    return next(iter(_near_names(field.names, field.siblings, _NEAR)), None)


def proposal(field: UnknownField, is_accepted: Trial) -> Advice | None:
    """Return the nearest change that brings the document no new problem; None when there is none."""
    for advice in islice(_changes(field), _MOST_TRIALS):
        if advice.overwrites(field.document.data):
            # The nearest place is taken: the field is there twice, and the next place would be a guess.
            return None
        if is_accepted(advice):
            return advice
    return None


def message(field: UnknownField, advice: Advice | None) -> str:
    """Return the sentence about an unknown field. advice: the change that was tried; None: none is accepted."""
    if advice is not None:
        return advice.text
    siblings, nearest = field.siblings, nearest_sibling(field)
    if nearest is not None and has_value(field.document.data, (*field.parent, nearest)):
        line = field.document.line_of((*field.parent, nearest))
        return f"unknown field; nearest known name is {nearest!r}, which is given in line {line}; remove one of them"
    if nearest is not None:
        accepted = accepted_text(schema_at(field.schema, (*field.parent, nearest)))
        return (
            f"unknown field; nearest known name is {nearest!r}, which takes {accepted} and has to go with the fields"
            " around it; correct and rename it, or remove it"
        )
    elsewhere = next(iter(_places(field.schema, field.names, (), ())), None)
    if elsewhere is not None and elsewhere[:1] == ("spec",):
        known = f"only {_place_text(elsewhere)} is known"
        if has_value(field.document.data, elsewhere):
            known += f", and given in line {field.document.line_of(elsewhere)}"
        return f"unknown field here; {known}; remove it"
    if not siblings:
        return "unknown field; this block has no fields; remove it"
    return f"unknown field; known here: {', '.join(siblings)}; remove it"


def _changes(field: UnknownField) -> Iterator[Advice]:
    """Yield the changes to try, the nearest first."""
    siblings, parent, value = field.siblings, field.parent, field.value
    # 1. the same block: other spelling, then a near name
    near = _near_names(field.names, siblings, _NEAR)
    very_near = [name for name in near if _nearness(field.names, name) >= _VERY_NEAR]
    yield from (_renamed(field, name) for name in very_near)
    # 2. the blocks in it, by the very name
    yield from (_moved(field, place) for place in _places(field.schema, field.names, parent, ()))
    # 3. a block around fields that the same block has itself
    if isinstance(value, dict) and value and all(key in siblings for key in value):
        yield _unwrapped(field, value)
    # 4. the same block, a name that is only similar
    yield from (_renamed(field, name) for name in near if name not in very_near)
    # 5. the blocks around it, the nearest first, but no other stage's
    for length in range(len(parent) - 1, -1, -1):
        for place in _places(field.schema, field.names, parent[:length], parent[: length + 1]):
            if place[:1] == ("spec",) and not _changes_stage(parent, place):
                yield _moved(field, place)
    # 6. a field of a pod belongs to the profile's template
    if parent == ("spec",) and "podTemplate" in siblings:
        yield _moved(field, ("spec", "podTemplate", "spec", field.name))
    # 7. the blocks in it, by a similar name
    for name, place in _all_places(schema_at(field.schema, parent), parent):
        if len(place) > len(parent) + 1 and _nearness(field.names, name) >= _VERY_NEAR:
            yield _moved(field, place)


def _renamed(field: UnknownField, name: str) -> Advice:
    text = f"unknown field; nearest known name is {name!r}; rename or remove it"
    return Advice(text, (((*field.parent, name), field.value),), field.path)


def _moved(field: UnknownField, place: Path) -> Advice:
    """Return the advice to move a field; where the place is in a list's items, into each of them."""
    text = f"unknown field here; it is known as {_place_text(place)}; move it there"
    places = tuple((target, field.value) for target in _in_items(field.document.data, place))
    return Advice(text, places, field.path)


def _unwrapped(field: UnknownField, value: dict[str, object]) -> Advice:
    targets = tuple(((*field.parent, name), content) for name, content in value.items())
    listed = ", ".join(path_text(target) for target, _ in targets)
    known = "field is" if len(targets) == 1 else "fields are"
    return Advice(
        f"unknown field; its {known} known as {listed}; move what is in it there", targets, field.path
    )


def _place_text(place: Path) -> str:
    return path_text(place).replace("[-1]", "[]")


def _in_items(data: object, place: Path) -> list[Path]:
    """Return the paths that a place stands for in a document: -1 stands for every item of a list."""
    paths: list[Path] = [()]
    for part in place:
        if part != -1:
            paths = [(*path, part) for path in paths]
            continue
        items = [(path, value_at(data, path)) for path in paths]
        paths = [
            (*path, index) for path, value in items if isinstance(value, list) for index in range(len(value))
        ]
    return paths


def _places(schema: dict[str, Any], names: Iterable[str], block: Path, without: Path) -> Iterator[Path]:
    """Yield the places below a block that have one of the names in any spelling, those of fewer levels first.

    without: path of a block whose places are left out; empty: none is.
    """
    plain = {plain_name(name) for name in names}
    found = [
        place
        for name, place in _all_places(schema_at(schema, block), block)
        if plain_name(name) in plain and (not without or place[: len(without)] != without)
    ]
    yield from sorted(found, key=len)


def _all_places(schema: dict[str, Any], path: Path) -> Iterator[tuple[str, Path]]:
    for name, child in schema.get("properties", {}).items():
        if (*path, name) == ("status",):
            continue
        yield name, (*path, name)
        inner, place = (child["items"], (*path, name, -1)) if "items" in child else (child, (*path, name))
        yield from _all_places(inner, place)


def _changes_stage(parent: Path, place: Path) -> bool:
    """Return whether a move leads from the block of one stage into that of another, or into another block's items."""
    blocks = {str(part) for part in (*parent[1:2], *place[1:2])}
    crosses = len(blocks) == 2 and len(parent) > 1
    return crosses and (any(blocks <= stages for stages in STAGE_BLOCKS) or -1 in place)


def _nearness(names: Iterable[str], candidate: str) -> float:
    plain = plain_name(candidate)
    return max(SequenceMatcher(None, plain_name(name), plain).ratio() for name in names)


def _near_names(names: tuple[str, ...], candidates: Iterable[str], cutoff: float) -> list[str]:
    """Return the near candidates, the nearest first; a name that begins like the field counts as near."""
    near = [(-_nearness(names, candidate), candidate) for candidate in candidates]
    plain = plain_name(names[0])
    begins = [name for _, name in near if plain and plain_name(name).startswith(plain)]
    return [name for closeness, name in sorted(near) if -closeness >= cutoff or name in begins]
