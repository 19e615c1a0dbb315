"""Reads all weights of a base model once and refuses what is no model: quantized, empty, zero or not finite.

Without torch: numbers are judged by their bits, a block of bytes at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dapt_contract.inputs.model_files import SafetensorsHeader, read_complete_header
from dapt_trainer.data.base_model.files import FIELD, read_json
from dapt_trainer.errors import InputError

_BLOCK_BYTES = 16 * 1024 * 1024
_SHOWN_NAMES = 3
Beat = Callable[[], None]


@dataclass(frozen=True)
class _Bits:
    """Says how a floating-point type of safetensors is read as unsigned integers."""

    dtype: type[np.unsignedinteger]
    without_sign: int
    """Mask of all bits but the sign."""
    infinity: int
    """The bits of infinity; what is larger without its sign is no number."""


_FLOATS: Mapping[str, _Bits] = {
    "BF16": _Bits(np.uint16, 0x7FFF, 0x7F80),
    "F16": _Bits(np.uint16, 0x7FFF, 0x7C00),
    "F32": _Bits(np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
    "F64": _Bits(np.uint64, 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
}
_QUANTIZED_ENDINGS = (".qweight", ".qzeros", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".SCB")
"""Names that quantizers give to what they store for a matrix."""


def weights_problems(folder: Path, source: str, beat: Beat = lambda: None) -> list[str]:
    """Read all tensors of an imported model, and return a sentence for each kind of fault in their numbers.

    Args:
        folder: that the model was imported to.
        source: URI of the model, for messages.
        beat: called after each block.

    Raises:
        InputError: the files hold no weights that could be loaded: quantized, empty, doubled or damaged ones.
    """
    headers = weights_headers(folder, source)
    _require_one_place_each(headers, source)
    if problem := _quantization(folder, headers.values(), source):
        raise InputError(problem)
    if empty := [name for header in headers.values() for name, shape in header.shapes.items() if 0 in shape]:
        raise InputError(
            f"{FIELD}: {source}: {some(empty, 'tensor', 'tensors')} {_are(empty)} empty, as ZeRO stage 3 leaves them "
            "when weights are saved without being gathered; convert the checkpoint with zero_to_fp32.py, use the result"
        )
    faults = _Faults([], [])
    for path, header in headers.items():
        for name in header.shapes:
            if header.dtypes[name] in _FLOATS:
                _judge(path, header, name, faults, beat)
    return [f"{FIELD}: {source}: {sentence}" for sentence in faults.sentences()]


def weights_headers(folder: Path, source: str) -> dict[Path, SafetensorsHeader]:
    """Return the headers of all files of weights, each compared with its file.

    Raises:
        InputError: with a sentence for each damaged file.
    """
    headers: dict[Path, SafetensorsHeader] = {}
    problems = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            headers[path] = read_complete_header(path)
        except ValueError as error:
            problems.append(
                f"{FIELD}: {source}: {path.name} is truncated or damaged ({error}); download the model again"
            )
    if problems:
        raise InputError(*problems)
    return headers


def check_vocabulary(rows: int, ids: Mapping[str, int], source: str) -> None:
    """Refuse a tokenizer with tokens that the embedding has no row for.

    Args:
        rows: of the embedding.
        ids: of the tokens by their texts.
        source: URI of the model, for messages.

    Raises:
        InputError: names the first tokens.
    """
    beyond = sorted((number, token) for token, number in ids.items() if number >= rows)
    if beyond:
        shown = [f"{token!r} ({number})" for number, token in beyond]
        raise InputError(
            f"{FIELD}: {source}: {some(shown, 'token', 'tokens')} of its tokenizer {_are(shown)} beyond the "
            f"{rows:,} rows of its embedding; resize the model (resize_token_embeddings), or remove what was added "
            "to the tokenizer"
        )


def _require_one_place_each(headers: Mapping[Path, SafetensorsHeader], source: str) -> None:
    """Refuse a tensor that two files hold: which one is the model's depends on who reads them."""
    places: dict[str, str] = {}
    for path, header in headers.items():
        for name in header.shapes:
            if name in places:
                raise InputError(
                    f"{FIELD}: {source}: {places[name]} and {path.name} both hold {name}; remove the files of an "
                    "earlier version, or download the model again"
                )
            places[name] = path.name


def _quantization(folder: Path, headers: Iterable[SafetensorsHeader], source: str) -> str | None:
    """Return the sentence for a quantized model; None for one in floating point."""
    settings = read_json(folder / "config.json", source).get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    names = [
        f"{name} ({header.dtypes[name]})"
        for header in headers
        for name in header.shapes
        if name.endswith(_QUANTIZED_ENDINGS)
        or (name.endswith(".weight") and header.dtypes[name] not in _FLOATS)
    ]
    if settings is None and not names:
        return None
    reason = f"config.json has a quantization_config ({method or 'without quant_method'})"
    if names:
        reason = f"{some(names, 'tensor', 'tensors')} {_are(names)} no bf16, fp16 or fp32"
    return f"{FIELD}: {source} is quantized: {reason}; use the model before it was quantized"


@dataclass(frozen=True)
class _Faults:
    """Holds the names of tensors by what is wrong with them."""

    zero: list[str]
    not_finite: list[str]

    def sentences(self) -> list[str]:
        sentences = []
        if names := self.not_finite:
            sentences.append(
                f"{some(names, 'tensor', 'tensors')} {_have(names)} values that are infinite or no number; use another "
                "checkpoint of the model"
            )
        if names := self.zero:
            sentences.append(
                f"{some(names, 'matrix', 'matrices')} {_have(names)} only zeros; use a complete checkpoint of the model"
            )
        return sentences


def _judge(path: Path, header: SafetensorsHeader, name: str, faults: _Faults, beat: Beat) -> None:
    """Read one tensor and note what is wrong with it."""
    bits = _FLOATS[header.dtypes[name]]
    begin, end = header.offsets[name]
    largest = 0
    values = np.memmap(path, mode="r", dtype=np.uint8, offset=begin, shape=(end - begin,))
    for start in range(0, end - begin, _BLOCK_BYTES):
        block = np.frombuffer(values[start : start + _BLOCK_BYTES].tobytes(), dtype=bits.dtype)
        largest = max(largest, int((block & bits.dtype(bits.without_sign)).max()))
        beat()
    if largest >= bits.infinity:
        faults.not_finite.append(name)
    # A vector may be zero: biases, and norms that are stored as the difference from one.
    if not largest and len(header.shapes[name]) > 1:
        faults.zero.append(name)


def some(names: Sequence[str], singular: str, plural: str) -> str:
    """Return the first names with their number: `2 tensors (a, b)`."""
    shown = ", ".join(names[:_SHOWN_NAMES])
    more = f" and {len(names) - _SHOWN_NAMES:,} more" if len(names) > _SHOWN_NAMES else ""
    return f"{len(names):,} {singular if len(names) == 1 else plural} ({shown}{more})"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _have(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"
