"""Collects the problems of all inputs while prepare continues to read, so that they are raised together."""

from __future__ import annotations

from dapt_trainer.errors import InputError

MAX_PROBLEMS = 50


class Problems:
    """Holds one sentence for each problem; a stage with any of them fails."""

    def __init__(self) -> None:
        self._sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """Add one problem, unless the same sentence is there already."""
        if sentence not in self._sentences:
            self._sentences.append(sentence)

    def add_error(self, error: InputError) -> None:
        """Add the problems of an error that was caught, so that the other inputs are read too."""
        for sentence in error.problems:
            self.add(sentence)

    def __bool__(self) -> bool:
        """Return whether there is any problem."""
        return bool(self._sentences)

    def sentences(self) -> list[str]:
        """Return the sentences; past `MAX_PROBLEMS` one sentence says how many more there are."""
        shown = self._sentences[:MAX_PROBLEMS]
        left = len(self._sentences) - len(shown)
        return [*shown, f"and {left} more problems like these"] if left else shown

    def raise_if_any(self) -> None:
        """Raise one error with all problems.

        Raises:
            InputError: there is at least one problem.
        """
        if self._sentences:
            raise InputError(*self.sentences())


def first_line(error: BaseException, limit: int = 160) -> str:
    """Return the first line of an exception's message, cut to `limit` characters; its class name without a message."""
    lines = str(error).strip().splitlines()
    text = lines[0].strip().rstrip(".") if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
