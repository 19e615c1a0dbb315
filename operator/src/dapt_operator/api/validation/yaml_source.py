"""Reads manifests: YAML 1.2 text becomes plain data with the line of every field.

YAML is read as kubectl reads it, with two differences that users expect: `2e-5` is a number, and `yes` is a text (YAML
1.2). Tags are refused, anchors are followed within bounds, and only plain data is constructed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import StringIO
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Path = tuple[str | int, ...]

MAX_BYTES: Final = 1024 * 1024
MAX_VALUES: Final = 10_000
"""Twenty times what the largest manifest with a pod template has; each is checked several times."""
MAX_DOCUMENTS: Final = 200
"""Of a file; each is checked on its own, and has problems of its own."""
MAX_DEPTH: Final = 50
MAX_BRACKETS: Final = 1000
"""Open brackets at one place, counted in texts too. The parser takes seconds until it fails on more."""
MAX_DIGITS: Final = 400
"""Digits of a number; a longer one stays a text, which no field for a number accepts."""

_TAG: Final = "tag:yaml.org,2002:"

COMMA_ADVICE: Final = (
    "a comma within braces ends a value: write a number without commas, such as 10000000 or 1.5"
)


def is_rest_of_number(name: str) -> bool:
    """Return whether a field's name is what stands behind the comma of a number, as in `{tokens: 10,000}`."""
    return re.fullmatch(r"[0-9]+[A-Za-z%]*", name) is not None


class ManifestError(ValueError):
    """A manifest that cannot be read at all. The message is one sentence with file, line and column."""


@dataclass(frozen=True)
class YamlDocument:
    """One document of a manifest, not yet checked.

    Attributes:
        data: plain dicts, lists, texts, numbers, booleans and None.
        lines: path of a field -> line (from 1) of its name, or of the list item.
        filename: shown in messages.
        line: first line of the document, from 1; 0: it is no text.
    """

    data: Any
    lines: Mapping[Path, int] = field(default_factory=dict)
    filename: str = "<text>"
    line: int = 1

    def line_of(self, path: Path) -> int:
        """Return the line of a field; of the nearest block around it when it is not in the text."""
        for length in range(len(path), 0, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return line
        return self.line


def load(text: str, filename: str = "<text>") -> list[YamlDocument]:
    """Return the documents of a manifest; empty ones are left out.

    Raises:
        ManifestError: with `file:line:column`, for text that is not YAML, for tags, for a field given twice, and for
            text without any document.
    """
    if len(text.encode()) > MAX_BYTES:
        raise ManifestError(
            f"{filename}: larger than {MAX_BYTES} bytes; a manifest is short, put data into files of their own"
        )
    for number, line in enumerate(text.splitlines(), start=1):
        # `%YAML 1.1` would make `yes` a truth again, and `%TAG` would give tags that are refused another name.
        if line.startswith("%"):
            raise ManifestError(f"{filename}:{number}:1: YAML directives are not accepted; remove this line")
    if _deepest_bracket(text) > MAX_BRACKETS:
        raise ManifestError(
            f"{filename}: not valid YAML: more than {MAX_BRACKETS} open brackets; close them, or simplify the file"
        )
    documents: list[YamlDocument] = []
    num_values = 0
    try:
        for node in _nodes(text):
            reader = _Reader(filename, num_values)
            data = reader.read(node, (), 0)
            num_values = reader.num_values
            if len(documents) == MAX_DOCUMENTS:
                raise ManifestError(
                    f"{filename}:{node.start_mark.line + 1}:1: more than {MAX_DOCUMENTS} documents; split the file"
                )
            if data is not None:
                documents.append(YamlDocument(data, reader.lines, filename, node.start_mark.line + 1))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f"{filename}:{mark.line + 1}:{mark.column + 1}" if mark else filename
        problem = " ".join(str(error.problem or error.context).split())
        raise ManifestError(
            f"{position}: not valid YAML: {problem}; check indentation, quotes and brackets here and in the line above"
        ) from None
    except YAMLError as error:
        problem = " ".join(str(error).split())
        raise ManifestError(f"{filename}: not valid YAML: {problem}; save the file as UTF-8 text") from None
    except (RecursionError, LookupError, TypeError, AttributeError) as error:
        # The parser fails in its own ways on text that is not written by hand, such as thousands of open brackets.
        raise ManifestError(
            f"{filename}: not valid YAML ({type(error).__name__} in the parser); simplify the file"
        ) from None
    if not documents:
        raise ManifestError(
            f"{filename}: no document; write one with apiVersion: dapt.dev/v1alpha1 and kind: DomainAdaptation"
        )
    return documents


def _deepest_bracket(text: str) -> int:
    depth = deepest = 0
    for bracket in re.findall(r"[][{}]", text):
        depth = depth + 1 if bracket in "[{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest


def _nodes(text: str) -> Iterator[Node]:
    yaml = YAML(typ="safe", pure=True)
    constructor, parser = yaml.get_constructor_parser(StringIO(text))
    composer = constructor.composer
    try:
        while composer.check_node():
            yield composer.get_node()
    finally:
        parser.dispose()


class _Reader:
    """Turns one document's nodes into plain data and records the line of each field."""

    def __init__(self, filename: str, num_values: int) -> None:
        self.filename = filename
        self.lines: dict[Path, int] = {}
        self.num_values = num_values
        """Values that were read so far, also of the documents before this one."""

    def read(self, node: Node, path: Path, depth: int) -> Any:
        # Counted while reading, since anchors let a few lines stand for billions of values.
        self.num_values += 1
        if depth > MAX_DEPTH or self.num_values > MAX_VALUES:
            raise self._error(
                node, "too deep or too large (anchors count each time); write it without anchors"
            )
        if isinstance(node, MappingNode):
            self._refuse_tag(node, "map")
            return self._mapping(node, path, depth)
        if isinstance(node, SequenceNode):
            self._refuse_tag(node, "seq")
            items = []
            for index, item in enumerate(node.value):
                self.lines[(*path, index)] = item.start_mark.line + 1
                items.append(self.read(item, (*path, index), depth + 1))
            return items
        return self._scalar(node)

    def _mapping(self, node: MappingNode, path: Path, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if str(key_node.tag) == _TAG + "merge":
                sources = value_node.value if isinstance(value_node, SequenceNode) else [value_node]
                for source in sources:
                    part = self.read(source, path, depth + 1)
                    if not isinstance(part, dict):
                        raise self._error(key_node, "'<<' takes a block; write the fields themselves")
                    merged = part | merged  # of several sources the first wins, as YAML's merge key demands
                continue
            if not isinstance(key_node, ScalarNode):
                raise self._error(key_node, "a field's name must be a text; write it as 'name: value'")
            key = str(key_node.value)
            if key in result:
                first = self.lines[(*path, key)]
                advice = COMMA_ADVICE if is_rest_of_number(key) else "keep one of them"
                raise self._error(
                    key_node, f"the field {key!r} is given twice (first in line {first}); {advice}"
                )
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            result[key] = self.read(value_node, (*path, key), depth + 1)
        return merged | result

    def _scalar(self, node: Node) -> str | int | float | bool | None:
        tag = str(node.tag)
        text = str(node.value)
        if tag == _TAG + "null":
            return None
        if tag == _TAG + "bool":
            return text.lower() == "true"
        if tag == _TAG + "int":
            return _integer(text)
        if tag == _TAG + "float":
            return _float(text)
        if tag in (_TAG + "str", _TAG + "timestamp", _TAG + "merge", _TAG + "value"):
            return text
        raise self._error(node, f"the tag {tag.replace(_TAG, '!!')} is not accepted; remove it")

    def _refuse_tag(self, node: Node, expected: str) -> None:
        tag = str(node.tag)
        if tag != _TAG + expected:
            raise self._error(node, f"the tag {tag.replace(_TAG, '!!')} is not accepted; remove it")

    def _error(self, node: Node, problem: str) -> ManifestError:
        mark = node.start_mark
        return ManifestError(f"{self.filename}:{mark.line + 1}:{mark.column + 1}: {problem}")


def _integer(text: str) -> int | str:
    plain = text.replace("_", "")
    sign = -1 if plain.startswith("-") else 1
    digits = plain.lstrip("+-")
    if len(digits) > MAX_DIGITS:
        return text
    bases = {"0b": 2, "0o": 8, "0x": 16}
    base = bases.get(digits[:2].lower(), 10)
    try:
        return sign * int(digits if base == 10 else digits[2:], base)
    except ValueError:  # `0x_` is a number to the parser, and has no digits
        return text


def _float(text: str) -> float | str:
    plain = text.replace("_", "").lower()
    special = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}
    try:
        return float(special.get(plain, plain))
    except ValueError:
        return text
