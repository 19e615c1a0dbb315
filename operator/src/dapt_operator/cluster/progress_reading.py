"""Parses what a pod answers at `/progress`; shared by the adapters. Pods are untrusted: anything else is no reading."""

from __future__ import annotations

from typing import Final

from pydantic import ValidationError

from dapt_contract.pod.progress import Progress

PROGRESS_PATH: Final = "/progress"
MAX_READING_BYTES: Final = 64 * 1024


def is_encoded(content_encoding: str | None) -> bool:
    """Whether an answer is compressed, which a reading never is: a few bytes may stand for gigabytes."""
    return (content_encoding or "identity").strip().lower() != "identity"


def parse_reading(content: bytes, run: str = "") -> Progress | None:
    """Return a reading; None for content that is too long, malformed or of another run.

    Args:
        content: body of the answer.
        run: first digits of the run key that the reading must carry.
    """
    if len(content) > MAX_READING_BYTES:
        return None
    try:
        reading = Progress.model_validate_json(content)
    except ValidationError:
        return None
    return reading if reading.run_key.startswith(run) else None
