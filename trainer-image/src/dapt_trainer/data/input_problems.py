"""All problems of the input at once: collected while prepare goes on reading, raised together."""

from __future__ import annotations

from dapt_trainer.errors import InputError

MAX_PROBLEMS = 50


class Problems:
    """A list of sentences that ends the stage when it is not empty."""

    def __init__(self) -> None:
        self._sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """Note one problem; a second one with the same words is the same problem."""
        if sentence not in self._sentences:
            self._sentences.append(sentence)

    def add_error(self, error: InputError) -> None:
        """Note the problems of an error that was caught so that the others are found too."""
        for sentence in error.problems:
            self.add(sentence)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._sentences)

    def sentences(self) -> list[str]:
        """All of them, the last ones as a number when they are very many."""
        shown = self._sentences[:MAX_PROBLEMS]
        left = len(self._sentences) - len(shown)
        return [*shown, f"and {left} more problems like these"] if left else shown

    def raise_if_any(self) -> None:
        """End the stage.

        Raises:
            InputError: at least one problem was noted.
        """
        if self._sentences:
            raise InputError(*self.sentences())


def first_line(error: BaseException, limit: int = 160) -> str:
    """What a library's exception says, in one line."""
    lines = str(error).strip().splitlines()
    text = lines[0].strip().rstrip(".") if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
