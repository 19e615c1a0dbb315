"""Proposes what a value that is not accepted may have meant. What is proposed was tried on the document first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from itertools import chain
from typing import Any

from dapt_operator.api.v1alpha1.base import (
    DESTINATION_PATTERN,
    MODEL_PATTERN,
    QUANTITY_PATTERN,
    SOURCE_PATTERN,
)
from dapt_operator.api.validation.hints.advice import Advice, Trial
from dapt_operator.api.validation.hints.units import readings, unit_of
from dapt_operator.api.validation.yaml_source import Path

_MAX_TEXT = 160
"""Characters of a proposal; a longer one, of a long value, is left out."""
_ADDRESSES = (MODEL_PATTERN, SOURCE_PATTERN, DESTINATION_PATTERN)
_HUB_PAGE = (
    r"https?://(?:www\.)?huggingface\.co/(datasets/)?([\w.-]+/[\w.-]+)"
    r"(?:/(?:tree|blob|resolve)/([\w.%-]+)(?:/([^?#]*))?)?/?(?:[?#].*)?"
)
_DOWNLOAD = r"https?://[^?#]+/([\w.-]+\.(?:jsonl?|ndjson|parquet|txt|md|gguf)(?:\.gz|\.zst)?)(?:[?#].*)?"
_PAGE = r"https?://(?:[^/?#]+/)*([\w-]+)[^/?#]*/?(?:[?#].*)?"
_DRIVE = r"/*([A-Za-z]):[\\/]+(.*)"
_SHARE = r"[\\]{2}[^\\/]+[\\/](.+)"
_SCHEME = r"(hf|s3|gs|pvc|file|adaptation):(/?)([^/].*)"
_QUANTITY = r"([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)"
_QUANTITY_UNITS = {
    "kb": "k", "mb": "M", "gb": "G", "tb": "T", "kib": "Ki", "mib": "Mi", "gib": "Gi", "tib": "Ti", "ki": "Ki",
    "mi": "Mi", "gi": "Gi", "ti": "Ti", "g": "G", "t": "T", "cores": "", "cpus": "", "core": "", "cpu": "",
}  # fmt: skip
_REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?"
_DATA_FILE = r".*(\*.*|\.(jsonl?|ndjson|parquet|txt|md|csv|tsv|gz|zst|gguf))"
_GPU_COUNTS = ("gpusPerNode", "gpus", "gpusPerModel")
_NO_GPUS = (0, "0", "cpu", "none", "auto")
_FORMATS_ARE_FOUND = (
    "Alpaca, ShareGPT and others are found by the fields of a record:"
    " leave it out, or map names with `fields`"
)

IsPath = Callable[[str], bool]
"""Returns whether there is a file or folder at a path, which starts from the manifest's folder where it is relative."""


def no_path(text: str) -> bool:  # noqa: ARG001
    """Return that nothing is known of the machine's files."""
    return False


def replacement(
    path: Path, value: object, schema: dict[str, Any], is_accepted: Trial, is_path: IsPath = no_path
) -> Advice | None:
    """Return what the value may have meant, as in `for 15 % write 0.15`; None where nothing is accepted."""
    name = next((str(part) for part in reversed(path) if isinstance(part, str)), "")
    found: Iterator[Advice] = (
        Advice(text, ((path, other_value),))
        for text, other_value in _replacements(name, value, schema, is_path)
    )
    if name == "format" and "messages" in schema.get("enum", ()):
        found = chain((Advice(_FORMATS_ARE_FOUND, (), path),), found)
    for advice in found:
        text = advice.text
        if text.isprintable() and len(text) <= _MAX_TEXT and is_accepted(advice):
            return advice
    return None


def nearest_choice(value: object, schema: dict[str, Any]) -> str:
    """Return ` (nearest: Warn)` for a value near one of a field's choices; else an empty text."""
    choices = schema.get("enum", ())
    if not isinstance(value, str) or len(choices) < 2:
        return ""
    names = {str(choice).lower(): str(choice) for choice in choices}
    nearest = get_close_matches(value.lower(), names, n=1)
    return f" (nearest: {names[nearest[0]]})" if nearest else ""


def _replacements(
    name: str, value: object, schema: dict[str, Any], is_path: IsPath
) -> Iterator[tuple[str, object]]:
    kind, unit = schema.get("type"), unit_of(name, schema)
    if name in _GPU_COUNTS and value in _NO_GPUS and value is not False:
        yield "without GPUs it counts processes: write 1", 1
    if unit is not None:
        yield from readings(value, unit, is_integer=kind == "integer")
    if kind == "array":
        yield from _for_list(value, schema, is_path)
    elif kind == "object":
        yield from _for_block(value, schema, is_path)
    elif isinstance(value, list) and len(value) == 1 and not isinstance(value[0], dict | list):
        yield "write the value alone, without a list", value[0]
    elif schema.get("pattern") == QUANTITY_PATTERN:
        yield from _quantities(name, value)
    elif schema.get("pattern") in _ADDRESSES and isinstance(value, str):
        yield from _addresses(value, schema["pattern"], is_path)
    elif kind == "string" and "pattern" not in schema and isinstance(value, int | float):
        yield f"write it in quotes: '{value}'", str(value)


def _for_list(value: object, schema: dict[str, Any], is_path: IsPath) -> Iterator[tuple[str, object]]:
    """Yield a list of what stands there alone."""
    items = schema.get("items", {})
    if isinstance(value, dict):
        yield "its items begin with '- ': put it before the first field", [value]
    elif not isinstance(value, list):
        yield f"write it as a list: [{value}]", [value]
        yield from (
            (f"write it as a list: [{text}]", [block]) for text, block in _blocks_of(value, items, is_path)
        )
        if isinstance(value, str) and "," in value:
            parts = [part.strip() for part in value.split(",")]
            yield f"write it as a list: [{', '.join(parts)}]", parts


def _for_block(value: object, schema: dict[str, Any], is_path: IsPath) -> Iterator[tuple[str, object]]:
    """Yield a block of what stands there without the block's field."""
    names = [name for name, child in schema.get("properties", {}).items() if _could_be(name, child, value)]
    if isinstance(value, list):
        if len(names) == 1:
            yield f"write it below {names[0]}, a field of this block", {names[0]: value}
        if len(value) == 1 and isinstance(value[0], dict):
            yield "it is no list: remove the '- ' before its first field", value[0]
        elif value and all(isinstance(item, dict) and len(item) == 1 for item in value):
            yield (
                "it is no list: remove the '- ' before its fields",
                {key: field for item in value for key, field in item.items()},
            )
        return
    yield from ((f"write {text}", block) for text, block in _blocks_of(value, schema, is_path))
    if len(names) == 1:
        name = names[0]
        child = schema["properties"][name]
        yield f"write {{{name}: {value}}}", {name: value}
        for text, other in _replacements(name, value, child, is_path):
            yield f"{text} as {{{name}: {other}}}", {name: other}
    if value is True:
        yield "write {}", {}


def _blocks_of(
    value: object, schema: dict[str, Any], is_path: IsPath
) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield blocks with the value as their only required field, or with the block that the value names."""
    properties = schema.get("properties", {})
    if isinstance(value, str):
        for name, child in properties.items():
            if name.lower() == value.lower() and child.get("type") == "object":
                yield f"{{{name}: {{}}}}", {name: {}}
    required = schema.get("required", ())
    for name in required if len(required) == 1 else ():
        yield f"{{{name}: {value}}}", {name: value}
        pattern = properties[name].get("pattern")
        if isinstance(value, str) and pattern in _ADDRESSES:
            for _, address in _addresses(value, pattern, is_path):
                yield f"{{{name}: {address}}}", {name: address}


def _could_be(name: str, schema: dict[str, Any], value: object) -> bool:
    """Return whether a value could be that of a field, as far as its type tells."""
    kind = schema.get("type")
    if isinstance(value, list):
        return kind == "array"
    if isinstance(value, bool):
        return False
    if isinstance(value, int | float):
        return kind == "number" or (kind == "integer" and float(value).is_integer())
    if not isinstance(value, str) or schema.get("pattern") in _ADDRESSES:
        return False
    unit = unit_of(name, schema)
    is_number = (
        unit is not None and next(readings(value, unit, is_integer=kind == "integer"), None) is not None
    )
    return is_number or value in schema.get("enum", ())


def _quantities(name: str, value: object) -> Iterator[tuple[str, str]]:
    """Yield Kubernetes quantities for numbers and for other ways to write them: 64GB, 500 m, 64 gib."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if name == "memory":
            yield f"for {value:g} GiB write '{value:g}Gi'", f"{value:g}Gi"
        else:
            yield f"write it in quotes: '{value:g}'", f"{value:g}"
    elif isinstance(value, str) and (match := re.fullmatch(_QUANTITY, value.strip())):
        unit = _QUANTITY_UNITS.get(match[2].lower(), match[2])
        yield f"write {match[1]}{unit}", f"{match[1]}{unit}"


def _addresses(value: str, pattern: str, is_path: IsPath) -> Iterator[tuple[str, str]]:
    """Yield addresses with the scheme that a path, a repository or a page of the hub lacks, each with its sentence."""
    if match := re.fullmatch(_HUB_PAGE, value):
        revision = f"@{match[3]}" if match[3] else ""
        folder = f"/{match[4]}" if match[4] else ""
        yield _written(f"hf://{match[1] or ''}{match[2]}{revision}{folder}")
    elif value.startswith(("/", "./", "../", "~/")):
        yield _written(f"file://{value}")
    elif match := re.fullmatch(_DOWNLOAD, value):
        if pattern == SOURCE_PATTERN or match[1].endswith(".gguf"):
            yield f"download it, and write file://{match[1]}", f"file://{match[1]}"
    elif match := re.fullmatch(_PAGE, value):
        if pattern != DESTINATION_PATTERN:
            what = "the model" if pattern == MODEL_PATTERN else "it as JSON lines or Parquet"
            yield f"download {what} into a folder, and write file://{match[1]}", f"file://{match[1]}"
    elif "://" in value:
        return
    elif address := windows_address(value):
        yield f"under WSL write {address}", address
    elif match := re.fullmatch(_SHARE, value):
        address = f"file:///mnt/{match[1].replace(chr(92), '/')}"
        yield f"mount the share, and write {address}", address
    elif match := re.fullmatch(_SCHEME, value):
        # One slash of a file's path was left out with the two of the scheme, or all of these with it.
        slash = match[2] if match[1] == "file" else ""
        yield _written(f"{match[1]}://{slash}{match[3]}")
    elif ":" in value:
        return
    elif "\\" in value:
        yield _written(f"file://{value.replace(chr(92), '/')}")
    elif re.fullmatch(_REPOSITORY, value) and not re.fullmatch(_DATA_FILE, value) and not is_path(value):
        of_hub = f"hf://{'datasets/' if pattern == SOURCE_PATTERN else ''}{value}"
        if pattern != MODEL_PATTERN:
            yield (
                f"write file://{value} for a path from the manifest's folder, or {of_hub}",
                f"file://{value}",
            )
        yield _written(of_hub)
    elif pattern == MODEL_PATTERN and re.fullmatch(r"[\w.-]+", value) and not is_path(value):
        yield (
            f"write file://{value} for a path from the manifest's folder, or hf://ORG/{value}",
            f"file://{value}",
        )
    else:
        yield _written(f"file://{value}")


def windows_address(path: str) -> str:
    """Return the address under which WSL has a path with a drive's letter; empty for any other path."""
    match = re.fullmatch(_DRIVE, path)
    return f"file:///mnt/{match[1].lower()}/{match[2].replace(chr(92), '/')}" if match else ""


def _written(address: str) -> tuple[str, str]:
    return f"write {address}", address
