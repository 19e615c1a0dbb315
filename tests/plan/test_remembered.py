"""Results are remembered by the identity of frozen values, and by the value of texts and numbers."""

from __future__ import annotations

import pytest

from dapt_operator.remembered import remembered


class Value:
    """A value that is only equal to itself."""


def counted(size: int = 8) -> tuple[list[tuple[object, ...]], object]:
    calls: list[tuple[object, ...]] = []

    @remembered(size)
    def function(*arguments: object) -> int:
        calls.append(arguments)
        return len(calls)

    return calls, function


def test_the_same_objects_are_computed_once() -> None:
    calls, function = counted()
    value = Value()
    assert callable(function)
    assert [function(value, "a"), function(value, "".join(["a"])), function(value, "b")] == [1, 1, 2]
    assert len(calls) == 2


def test_equal_numbers_of_other_types_are_other_arguments() -> None:
    _, function = counted()
    assert callable(function)
    assert [function(1), function(1.0), function(True), function(1)] == [1, 2, 3, 1]


def test_a_new_object_is_never_taken_for_one_that_is_gone() -> None:
    _, function = counted(size=1000)
    assert callable(function)
    assert [function(Value()) for _ in range(500)] == list(range(1, 501))


def test_the_oldest_results_are_dropped() -> None:
    calls, function = counted(size=2)
    assert callable(function)
    for argument in ("a", "b", "a", "c", "a", "b"):
        function(argument)
    assert [argument for (argument,) in calls] == ["a", "b", "c", "b"]


def test_named_arguments_are_refused() -> None:
    @remembered(1)
    def function(number: int) -> int:
        return number

    with pytest.raises(TypeError, match="give arguments by position"):
        function(number=1)
