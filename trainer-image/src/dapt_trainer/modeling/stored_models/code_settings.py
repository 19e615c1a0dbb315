"""Finds settings in a model's configurations that would have code loaded which is not transformers' own.

The settings that name code are few; what they may hold is listed here, at whatever depth they stand, and anything else
is refused. No torch and no transformers: prepare checks a model before either sees it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from dapt_contract.inputs.json_files import BadJsonError, read_json_object

CONFIGURATIONS: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "adapter_config.json",
)
"""Files with settings that decide what is loaded."""
NO_CODE = "which dapt never runs; use a model of an architecture that transformers knows"
_CODE = frozenset(
    {"auto_map", "auto_mapping", "code_revision", "custom_generate", "custom_pipelines", "trust_remote_code"}
)
"""Settings that name code of a repository, or of an installed package."""
_FILES = frozenset({"gguf_file", "transformers_weights"})
"""Settings that name other weights than the folder's own."""
_PARALLEL_PLAN = re.compile(r"_(tp|pp|ep)_plan$")
"""Settings that say how ranks divide a model, which transformers has for each architecture and no file does: another
plan would give other numbers on several accelerators than on one."""
_KERNELS = frozenset({"kernel_config", "kernel_mapping", "use_kernels"})
_QUANTIZERS = frozenset({"compression_config", "quantization_config"})
_MEGATRON: Mapping[str, tuple[JsonValue, ...]] = {
    "megatron_core": (None, "megatron.core"),
    "megatron_config": (None,),
}
"""What adapter_config.json may have for the settings by which PEFT imports a module."""
_IMPLEMENTATION = re.compile(r"_impl(ementation)?(_internal)?$")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_]{1,40}")
"""Names of what transformers has itself: a kernel of the hub has a slash, a colon or an at sign."""
_TOKENIZER_CLASS = re.compile(r"(?!Auto)[A-Za-z0-9_]{1,80}(Tokenizer|TokenizerFast|Backend)")
_MAX_SHOWN = 60


def code_problems(folder: Path, *, allows_quantization: bool = False) -> list[str]:
    """Return a sentence for each setting of a model folder that is refused, and for each unreadable configuration.

    Args:
        folder: of a model or an adapter.
        allows_quantization: leaves a `quantization_config` at the top of config.json to another check.
    """
    problems: list[str] = []
    for name in CONFIGURATIONS:
        try:
            settings = read_json_object(folder / name)
        except FileNotFoundError:
            continue
        except BadJsonError as error:
            problems.append(f"{name} is not readable JSON ({error}); download the model again")
            continue
        if allows_quantization and name == "config.json":
            settings.pop("quantization_config", None)
        reasons = dict.fromkeys(
            reason for place, value in _entries(settings) if (reason := _reason(place, value))
        )
        problems += [f"{name} {reason}" for reason in reasons]
    return problems


def _entries(settings: Mapping[str, JsonValue]) -> Iterator[tuple[str, JsonValue]]:
    """Yield (`key` or `outer.key`, value) of all objects at any depth, without recursion."""
    waiting: list[tuple[str, JsonValue]] = [("", dict(settings))]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            for key, part in value.items():
                inner = f"{place}.{key}" if place else key
                yield inner, part
                waiting.append((inner, part))
        elif isinstance(value, list):
            waiting.extend((place, part) for part in value)


def _reason(place: str, value: JsonValue) -> str:
    """Return why a setting is refused; empty where it may stay."""
    key = place.rpartition(".")[2]
    shown = place if len(place) <= _MAX_SHOWN else f"...{place[-_MAX_SHOWN:]}"
    if key in _CODE and value:
        return f"asks for code from the model's repository ({shown}), {NO_CODE}"
    if key in _FILES and value:
        return f"names other weights than the folder's ({shown}: {_quoted(value)}); remove the setting"
    if _PARALLEL_PLAN.search(key) and value:
        return f"says how accelerators divide the model ({shown}), which only transformers does; remove the setting"
    if key in _KERNELS and value:
        return f"asks for kernels from a hub ({shown}), {NO_CODE}"
    if key in _MEGATRON and value not in _MEGATRON[key]:
        return f"asks for a module of Python ({shown}: {_quoted(value)}), {NO_CODE}"
    if key in _QUANTIZERS and value:
        return f"describes a quantized model ({shown}); use the model before it was quantized"
    if (_IMPLEMENTATION.search(key) or "kernel" in key) and not _is_built_in(value):
        return f"asks for an implementation from elsewhere ({shown}: {_quoted(value)}); remove the setting"
    if key == "tokenizer_class" and value is not None and not _is_tokenizer_class(value):
        return (
            f"names {_quoted(value)} as the class of the tokenizer (tokenizer_class); name one of transformers, such "
            "as PreTrainedTokenizerFast"
        )
    return ""


def _is_built_in(value: JsonValue) -> bool:
    """Return whether a setting holds only plain words, numbers and switches."""
    if isinstance(value, str):
        return bool(_PLAIN_WORD.fullmatch(value))
    if isinstance(value, dict):
        return all(_is_built_in(part) for part in value.values())
    if isinstance(value, list):
        return all(isinstance(part, int | float) for part in value)
    return True


def _is_tokenizer_class(value: JsonValue) -> bool:
    return isinstance(value, str) and _TOKENIZER_CLASS.fullmatch(value) is not None


def _quoted(value: JsonValue) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
