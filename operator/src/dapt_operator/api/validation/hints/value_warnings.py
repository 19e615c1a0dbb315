"""Warns about values that are accepted, but look as if they were written in another unit.

Which field counts in which unit follows from its name, bounds and description (`units.unit_of`), so that a new field is
covered too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from dapt_operator.api.quantity import is_quantity, parse_quantity
from dapt_operator.api.v1alpha1.base import (
    DESTINATION_PATTERN,
    MODEL_PATTERN,
    QUANTITY_PATTERN,
    SOURCE_PATTERN,
)
from dapt_operator.api.validation.hints.advice import leaves, schema_at
from dapt_operator.api.validation.hints.units import Unit, number_text, unit_of
from dapt_operator.api.validation.problem import Problem, path_text
from dapt_operator.api.validation.yaml_source import Path, YamlDocument

_SMALL_DEFAULT_SHARE: Final = 0.05
_LARGE_SHARE: Final = 0.3
"""A share whose default is small is hardly this large: 0.5 is half, and may have been meant as half a percent."""
_SMALL_SHARE: Final = 0.005
_LIMIT_PART: Final = 0.02
"""A limit at or below this part of its default may be a percentage that was divided once too often."""
_LARGEST_RATE: Final = 0.05
_SMALLEST_RATE: Final = 1e-8
_FEWEST_SECONDS: Final = 10
_SHORTEST_TIMEOUT_SECONDS: Final = 60
_FEWEST_TOKENS: Final = 1000
_MOST_SEQUENCES: Final = 16_384
_MOST_GIB: Final = 2048
_MOST_TFLOPS: Final = 20_000
_MOST_CPUS: Final = 1024
_LEAST_MEMORY_BYTES: Final = 16 * 2**20

_ADDRESSES: Final = (MODEL_PATTERN, SOURCE_PATTERN, DESTINATION_PATTERN)
_VARIABLE: Final = re.compile(r"\$\{?[A-Za-z_]\w*\}?|%[A-Za-z_]\w*%")


@dataclass(frozen=True)
class _Number:
    """A number of a manifest with its field."""

    name: str
    value: float
    schema: dict[str, Any]

    @property
    def default(self) -> float | None:
        """Default of the field; None where it has none."""
        default = self.schema.get("default")
        return None if default is None else float(default)


def value_warnings(document: YamlDocument, schema: dict[str, Any]) -> list[Problem]:
    """Return a warning for each value that looks like another unit. schema: structural schema of the document."""
    warnings = []
    for path, value in leaves(document.data):
        if path[:1] != ("spec",):
            continue
        name = next(str(part) for part in reversed(path) if isinstance(part, str))
        for text in _texts(name, value, schema_at(schema, path)):
            warnings.append(Problem(path_text(path), value, text, document.line_of(path)))
    return [*warnings, *_of_both_sides(document)]


def _of_both_sides(document: YamlDocument) -> Iterator[Problem]:
    """Yield a warning for each source that is domain text and general text: neither can be held out of it."""
    paths: dict[str, dict[str, Path]] = {"domain": {}, "general": {}}
    for path, value in leaves(document.data):
        if (
            path[:2] == ("spec", "corpus")
            and path[-1] == "source"
            and isinstance(value, str)
            and path[2] in paths
        ):
            paths[str(path[2])].setdefault(value, path)
    for address, path in paths["general"].items():
        if address in paths["domain"]:
            other = path_text(paths["domain"][address])
            text = (
                f"{address} is {other} too: learning and forgetting cannot be told apart on it, and nothing of it is"
                " held out; remove it from one of the two"
            )
            yield Problem(path_text(path), address, text, document.line_of(path))


def _texts(name: str, value: object, schema: dict[str, Any]) -> Iterator[str]:
    if schema.get("x-kubernetes-int-or-string") and is_quantity(value):
        value = str(value)
    if isinstance(value, str):
        if schema.get("pattern") in _ADDRESSES:
            yield from _of_address(value)
        elif schema.get("pattern") == QUANTITY_PATTERN and is_quantity(value):
            yield from _of_quantity(name, value)
        return
    unit = unit_of(name, schema)
    if unit in _CHECKS and isinstance(value, int | float) and not isinstance(value, bool):
        yield from _CHECKS[unit](_Number(name, value, schema))


def _of_address(value: str) -> Iterator[str]:
    scheme, _, path = value.partition("://")
    if match := _VARIABLE.search(path):
        yield (
            f"{match[0]} in {value} is taken as it is written, not replaced by a variable's value:"
            " write the whole path"
        )
    # The command line replaces a leading ~ of a local path by the home folder; nothing else does.
    rest = path[1:] if scheme == "file" and path.startswith("~") else path
    if re.search(r"(^|/)~", rest):
        yield f"~ in {value} is taken as it is written, not as a home folder: write the whole path"


def _of_quantity(name: str, value: str) -> Iterator[str]:
    amount = parse_quantity(value)
    plain = value.rstrip("m")
    if name == "cpu" and amount > _MOST_CPUS:
        yield f"{value} is {number_text(amount)} CPUs: for {plain} thousandths write {plain}m"
    elif name == "memory" and amount < _LEAST_MEMORY_BYTES:
        yield f"{value} is {number_text(amount)} bytes: for {plain} GiB write {plain.rstrip('kKi')}Gi"


def _of_share(number: _Number) -> Iterator[str]:
    value, default = number.value, number.default
    shown, percent = number_text(value), number_text(value * 100)
    is_part = number.name.lower().endswith(("fraction", "share"))
    is_large_part = (
        is_part and default is not None and default <= _SMALL_DEFAULT_SHARE and value >= _LARGE_SHARE
    )
    if is_large_part or (value >= 1 and number.schema.get("maximum", 1) > 1):
        hundredth = number_text(float(f"{value / 100:.6g}"))
        yield f"{shown} is a share of 1, that is {percent} %: for {shown} % write {hundredth}"
    elif _is_tiny_limit(number) or (is_part and default is None and 0 < value < _SMALL_SHARE):
        yield f"{shown} is a share of 1, that is {percent} %: for {number_text(value * 1e4)} % write {percent}"


def _of_points(number: _Number) -> Iterator[str]:
    if _is_tiny_limit(number):
        meant = number_text(number.value * 100)
        yield f"{number_text(number.value)} is in points of 100: for {meant} points write {meant}"


def _is_tiny_limit(number: _Number) -> bool:
    is_limit = re.match("(max|min)[A-Z]", number.name) is not None
    return is_limit and number.default is not None and 0 < number.value <= number.default * _LIMIT_PART


def _of_rate(number: _Number) -> Iterator[str]:
    if not _SMALLEST_RATE <= number.value <= _LARGEST_RATE:
        size = "large" if number.value > _LARGEST_RATE else "small"
        yield (
            f"{number.value:g} is very {size} for a language model: usual are 2e-5 (all weights) and 1e-4 (LoRA);"
            " check the exponent"
        )


def _of_seconds(number: _Number) -> Iterator[str]:
    is_long = "timeout" in number.name.lower() or number.name.lower().startswith("after")
    if 0 < number.value < (_SHORTEST_TIMEOUT_SECONDS if is_long else _FEWEST_SECONDS):
        shown = number_text(number.value)
        yield f"{shown} is in seconds: for {shown} minutes write {number_text(number.value * 60)}"


def _of_tokens(number: _Number) -> Iterator[str]:
    if 0 < number.value < _FEWEST_TOKENS:
        shown = number_text(number.value)
        yield f"{shown} is in tokens, less than a page: for {shown} million write {shown}000000"


def _of_sequences(number: _Number) -> Iterator[str]:
    if number.value >= _MOST_SEQUENCES:
        yield f"{number_text(number.value)} is in sequences: for so many tokens divide by the tokens of a sequence"


def _of_gib(number: _Number) -> Iterator[str]:
    if number.value >= _MOST_GIB:
        shown = number_text(number.value)
        yield f"{shown} is in GiB: for {shown} MiB write {number_text(round(number.value / 1024, 1))}"


def _of_tflops(number: _Number) -> Iterator[str]:
    if number.value >= _MOST_TFLOPS:
        shown = number_text(number.value)
        yield f"{shown} is in TFLOP/s: for {shown} GFLOP/s write {number_text(number.value / 1000)}"


_CHECKS: Final[dict[Unit | None, Callable[[_Number], Iterator[str]]]] = {
    Unit.SHARE: _of_share,
    Unit.POINTS: _of_points,
    Unit.RATE: _of_rate,
    Unit.SECONDS: _of_seconds,
    Unit.TOKENS: _of_tokens,
    Unit.SEQUENCES: _of_sequences,
    Unit.GIB: _of_gib,
    Unit.TFLOPS: _of_tflops,
}
"""Check of the values in a unit; a value without such a check could be in any unit."""
