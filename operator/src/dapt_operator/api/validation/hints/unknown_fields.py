"""Finds what an unknown field was meant to be.

The order of places is: the block itself, the blocks in it, the blocks around it. A field is never sent from one stage
to another, since its value would then train something else. What a message proposes was tried on the document first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from dapt_operator.api.validation.hints.advice import Advice, Trial, schema_at, value_at
from dapt_operator.api.validation.hints.field_places import (
    ANY_ITEM,
    in_items,
    is_given,
    names_of,
    near_names,
    nearness,
    place_text,
    places,
    places_below,
)
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
    def names(self) -> tuple[str, ...]:
        """Its name, and the API's names for what another library calls so."""
        return names_of(self.name)

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


@dataclass(frozen=True)
class _Change:
    """A change to try, with the place that the field would get."""

    advice: Advice
    place: Path
    """Empty for a block that is taken apart."""


def nearest_sibling(field: UnknownField) -> str | None:
    """Return the name of the same block that the field was meant to be; None where none is near enough."""
    near = near_names(field.names, field.siblings, _NEAR)
    if (
        near
        and nearness(field.names, near[0]) < _VERY_NEAR
        and places(field.schema, field.names, field.parent)
    ):
        return None  # a block in this one has a field of the very name
    return next(iter(near), None)


def proposal(field: UnknownField, is_accepted: Trial) -> Advice | None:
    """Return the nearest change that brings the document no new problem; None when there is none."""
    data = field.document.data
    by_place: dict[Path, _Change] = {}
    for change in islice(_changes(field), 2 * _MOST_TRIALS):
        by_place.setdefault(change.place, change)
    changes = list(by_place.values())[:_MOST_TRIALS]
    for number, change in enumerate(changes):
        if change.advice.overwrites(data):
            # The nearest place is taken: the field is there twice, and the next place would be a guess.
            return None
        if is_accepted(change.advice):
            return _with_alternatives(field, change, changes[number + 1 :], is_accepted)
    return None


def message(field: UnknownField, advice: Advice | None) -> str:
    """Return the sentence about an unknown field. advice: the change that was tried; None: none is accepted."""
    if advice is not None:
        return advice.text
    nearest = nearest_sibling(field)
    if nearest is not None:
        return _not_accepted(field, (*field.parent, nearest), f"nearest known name is {nearest!r}", "rename")
    for place in _places_of_the_stage(field):
        if _is_other_choice(field, place):
            continue
        return _not_accepted(field, place, f"it is known as {place_text(place)}", "move")
    elsewhere = [
        place
        for place in places(field.schema, field.names, ())
        if place[:1] == ("spec",) and not _is_other_choice(field, place)
    ]
    if elsewhere and ANY_ITEM not in elsewhere[0]:
        *others, last = (path_text(place) for place in elsewhere if ANY_ITEM not in place)
        known = f"{', '.join(others)} and {last} are" if others else f"{last} is"
        return f"unknown field here; only {known} known; remove it"
    if not field.siblings:
        return "unknown field; this block has no fields; remove it"
    return f"unknown field; known here: {', '.join(field.siblings)}; remove it"


def _is_other_choice(field: UnknownField, place: Path) -> bool:
    """Return whether a place takes one of some words and the field has another: it only happens to be called so."""
    choices = schema_at(field.schema, tuple(0 if part == ANY_ITEM else part for part in place)).get("enum")
    return choices is not None and field.value not in choices


def _not_accepted(field: UnknownField, place: Path, known: str, verb: str) -> str:
    """Return the sentence about a field whose place is known, but does not take it as it is."""
    begin = "unknown field" if verb == "rename" else "unknown field here"
    items = in_items(field.document.data, place)  # none in a list that is empty
    if items and is_given(field.document.data, place):
        line = field.document.line_of(items[0])
        return f"{begin}; {known}, which is given in line {line}; remove one of them"
    accepted = accepted_text(
        schema_at(field.schema, tuple(0 if part == ANY_ITEM else part for part in place))
    )
    return (
        f"{begin}; {known}, which takes {accepted} and must agree with the fields around it; correct and {verb} it, or"
        " remove it"
    )


def _changes(field: UnknownField) -> Iterator[_Change]:
    """Yield the changes to try, the nearest first."""
    siblings, parent, value = field.siblings, field.parent, field.value
    # 1. the same block: other spelling, then a near name
    near = near_names(field.names, siblings, _NEAR)
    very_near = [name for name in near if nearness(field.names, name) >= _VERY_NEAR]
    yield from (_renamed(field, name) for name in very_near)
    # 2. the blocks in it, by the very name
    inner = places(field.schema, field.names, parent)
    yield from (_moved(field, place) for place in inner if len(place) > len(parent) + 1)
    # 3. a block around fields that the same block has itself
    if isinstance(value, dict) and value and all(key in siblings for key in value):
        yield _unwrapped(field, value)
    # 4. the same block, a name that is only similar
    yield from (_renamed(field, name) for name in near if name not in very_near)
    # 5. the blocks around it, the nearest first, but no other stage's
    yield from (_moved(field, place) for place in _outer_places(field))
    # 6. a field of a pod belongs to the profile's template
    if parent == ("spec",) and "podTemplate" in siblings:
        yield _moved(field, ("spec", "podTemplate", "spec", field.name))
    # 7. the blocks in it, by a similar name
    for name, place in places_below(schema_at(field.schema, parent), parent):
        if len(place) > len(parent) + 1 and nearness(field.names, name) >= _VERY_NEAR:
            yield _moved(field, place)


def _places_of_the_stage(field: UnknownField) -> Iterator[Path]:
    """Yield the places in the blocks of the same block, then those around it."""
    yield from places(field.schema, field.names, field.parent)
    yield from _outer_places(field)


def _outer_places(field: UnknownField) -> Iterator[Path]:
    """Yield the places in the blocks around the field's, the nearest first, but for those of another stage."""
    parent = field.parent
    for length in range(len(parent) - 1, -1, -1):
        for place in places(field.schema, field.names, parent[:length], parent[: length + 1]):
            if place[0] in ("spec", "metadata") and not _changes_stage(parent, place):
                yield place


def _with_alternatives(
    field: UnknownField, change: _Change, others: list[_Change], is_accepted: Trial
) -> Advice:
    """Return the advice of a change; where other blocks have the field too and would take it, with their places."""
    if not change.place or len(change.place) <= len(field.path):
        return change.advice
    others_too = [
        other.place
        for other in others
        if other.place
        and other.place[-1] == change.place[-1]
        and other.place[: len(field.parent)] == field.parent
        and other.place[: len(change.place) - 1] != change.place[:-1]
        and not other.advice.overwrites(field.document.data)
        and is_accepted(other.advice)
    ]
    if not others_too:
        return change.advice
    listed = " or ".join(place_text(place) for place in (change.place, *others_too))
    text = f"unknown field here; it is known as {listed}; move it to what you mean"
    return Advice(text, change.advice.added, change.advice.removed)


def _renamed(field: UnknownField, name: str) -> _Change:
    text = f"unknown field; nearest known name is {name!r}; rename or remove it"
    place = (*field.parent, name)
    return _Change(Advice(text, ((place, field.value),), field.path), place)


def _moved(field: UnknownField, place: Path) -> _Change:
    """Return the move of a field; where the place is in a list's items, into each of them."""
    text = f"unknown field here; it is known as {place_text(place)}; move it there"
    targets = tuple((target, field.value) for target in in_items(field.document.data, place))
    return _Change(Advice(text, targets, field.path), place)


def _unwrapped(field: UnknownField, value: dict[str, object]) -> _Change:
    targets = tuple(((*field.parent, name), content) for name, content in value.items())
    listed = ", ".join(path_text(target) for target, _ in targets)
    known = "field is" if len(targets) == 1 else "fields are"
    text = f"unknown field; its {known} known as {listed}; move what is in it there"
    return _Change(Advice(text, targets, field.path), ())


def _changes_stage(parent: Path, place: Path) -> bool:
    """Return whether a move leads from the block of one stage into that of another, or into another block's items."""
    blocks = {str(part) for part in (*parent[1:2], *place[1:2])}
    crosses = len(blocks) == 2 and len(parent) > 1
    return crosses and (any(blocks <= stages for stages in STAGE_BLOCKS) or ANY_ITEM in place)
