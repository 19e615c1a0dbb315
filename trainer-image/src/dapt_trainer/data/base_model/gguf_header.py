"""Refuses a GGUF file whose header is damaged, or describes another model than the file holds.

The converter builds a model by the header's numbers alone, so they are compared with the tensors first.
"""

from __future__ import annotations

from pathlib import Path

from dapt_contract.inputs.gguf_header import GgufError, GgufHeader, GgufTooLargeError, read_gguf_header

_LAYERS, _WIDTHS = ("block_count",), ("embedding_length", "feed_forward_length", "vocab_size")


def gguf_problem(path: Path) -> str:
    """Return what is wrong with the header of a GGUF file, as a clause; empty where it can be converted.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        header = read_gguf_header(path)
    except GgufTooLargeError as error:
        return str(error)
    except GgufError:
        return "its header is damaged"
    size = path.stat().st_size
    if any(tensor.offset > size for tensor in header.tensors):
        return "a tensor lies behind its end"
    return _impossible(header)


def _impossible(header: GgufHeader) -> str:
    """Return which number of the header no tensor bears out."""
    values, num_tensors = header.values, len(header.tensors)
    largest = max((size for tensor in header.tensors for size in tensor.shape), default=0)
    family = values.get("general.architecture")
    for keys, limit, of in (
        (_LAYERS, num_tensors, "tensors"),
        (_WIDTHS, largest, "rows in its largest tensor"),
    ):
        for key in keys:
            value = values.get(f"{family}.{key}", 0)
            if isinstance(value, int) and value > limit:
                return f"it has {family}.{key} {value:,} and {limit:,} {of}"
    return ""
