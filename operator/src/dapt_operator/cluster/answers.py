"""Reads what an API server, or whoever answers in its place, sends as JSON: every other shape is a `ValueError`.

Whoever sends a kubeconfig chooses the server, and a proxy in front of one answers with pages of its own. What is read
here has the shapes that Kubernetes documents as far as callers rely on them; texts in it are cleaned at the outputs.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field, Strict, ValidationError

from dapt_contract.sentences import shortened
from dapt_operator.stage_run import JsonObject, Manifest

_MAX_CONTENT_CHARACTERS: Final = 200
"""Of an answer that is no Status."""
_MAX_MESSAGE_CHARACTERS: Final = 2000
_MAX_DIGITS: Final = 18
_Integer = Annotated[int, Strict(), Field(ge=0, lt=10**_MAX_DIGITS)]


class _Metadata(BaseModel):
    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = Field(default="", alias="resourceVersion")
    creation_timestamp: str | None = Field(default=None, alias="creationTimestamp")
    generation: _Integer = 0
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _Container(BaseModel):
    name: str = ""
    state: dict[str, dict[str, Any] | None] | None = None


class _Status(BaseModel):
    conditions: list[dict[str, Any]] | None = None
    container_statuses: list[_Container] | None = Field(default=None, alias="containerStatuses")
    init_container_statuses: list[_Container] | None = Field(default=None, alias="initContainerStatuses")


class _Object(BaseModel):
    metadata: _Metadata
    spec: dict[str, Any] | None = None
    status: _Status | None = None


def decoded_object(content: bytes) -> JsonObject:
    """Return the JSON object of an answer.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError("the answer is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("the answer is no JSON object")
    return value


def decoded_page(content: bytes) -> JsonObject:
    """Return a page of a list, whose `items` are objects.

    Raises:
        ValueError: it is none.
    """
    page = decoded_object(content)
    items, metadata = page.get("items") or [], page.get("metadata") or {}
    is_list = isinstance(items, list) and all(isinstance(item, dict) for item in items)
    if not is_list or not isinstance(metadata, dict):
        raise ValueError("the answer is no list of objects")
    return page


def stored_object(value: object) -> Manifest:
    """Return an object of Kubernetes with its name; metadata, spec and status have the documented shapes.

    Raises:
        ValueError: it is none; names the field.
    """
    try:
        _Object.model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise ValueError(f"the answer is no object of Kubernetes ({field}: {problem['msg']})") from None
    if isinstance(value, dict):
        return value
    raise AssertionError("what has fields is a dict")


def reason_and_message(content: bytes) -> tuple[str, str]:
    """Return reason and message of a Status; without one, an empty reason and the beginning of the content."""
    try:
        # Not every answer is a Status: a proxy in front of the API server may answer with a page.
        status = decoded_object(content)
    except ValueError:
        return "", shortened(content.decode(errors="replace"), _MAX_CONTENT_CHARACTERS)
    message = shortened(str(status.get("message") or ""), _MAX_MESSAGE_CHARACTERS)
    return shortened(str(status.get("reason") or ""), _MAX_CONTENT_CHARACTERS), message


def whole_number(text: str) -> int | None:
    """Return the number that a header, label or annotation holds in ASCII digits; None for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None
