"""Reads JSON files of a model's folder, which come from anybody: damaged, huge or nested ones are one clear reason."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from pydantic import JsonValue

from dapt_contract.base import JsonObject

MAX_JSON_BYTES = 16 * 1024 * 1024
"""Longest configuration that is read; published ones have up to 2 MiB."""
_MAX_DIGITS = 40


class BadJsonError(ValueError):
    """Says in a clause why a file holds no JSON object that can be used."""


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> JsonObject:
    """Return the object that a file holds.

    Args:
        path: of the file.
        max_bytes: a longer file is not read.

    Raises:
        FileNotFoundError: there is no such file.
        BadJsonError: it is too long, cannot be read, or holds no object.
    """
    try:
        # Without waiting: opening a named pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BadJsonError("not a regular file")
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadJsonError(error.strerror or type(error).__name__) from error
    if len(content) > max_bytes:
        raise BadJsonError(f"longer than {max_bytes >> 20} MiB")
    value = parsed_json(content)
    if not isinstance(value, dict):
        raise BadJsonError(f"holds {_KINDS[type(value)]} and not an object")
    return value


def parsed_json(content: bytes | str) -> JsonValue:
    """Return a JSON value.

    Infinity stays allowed, since published configurations have it; a NaN or a number of many digits has no use.

    Raises:
        BadJsonError: it cannot be read, is nested too deeply, or holds such a number.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        value: JsonValue = json.loads(text, parse_int=_integer, parse_constant=_constant)
    except RecursionError:
        raise BadJsonError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise BadJsonError(f"not UTF-8 text at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise BadJsonError(str(error)) from None
    return value


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise BadJsonError(f"holds a number of {len(digits):,} digits")
    return int(digits)


def _constant(name: str) -> float:
    if name == "NaN":
        raise BadJsonError("holds NaN, which is no number")
    return float(name)


_KINDS = {
    list: "a list",
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}
