"""Reads in which number formats a model folder stores its tensors.

Some models keep a few tensors in fp32 (routers, state-space parameters) where all others are in 16 bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dapt_contract.inputs.model_files import read_safetensors_header
from dapt_trainer.errors import InputError

_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTypes:
    """Holds the floating-point formats of a folder's tensors."""

    main: torch.dtype
    """That of most bytes."""
    by_name: Mapping[str, torch.dtype]


def read_stored_types(folder: Path) -> StoredTypes:
    """Read the formats from the headers of a model folder's weights; a folder without any counts as fp32.

    Raises:
        InputError: a file is damaged.
    """
    by_name: dict[str, torch.dtype] = {}
    sizes: Counter[torch.dtype] = Counter()
    for path in sorted(folder.glob("*.safetensors")):
        try:
            header = read_safetensors_header(path)
        except ValueError as error:
            raise InputError(
                f"{path}: is truncated or damaged ({error}); restore it, or run prepare again"
            ) from error
        for name, type_name in header.dtypes.items():
            if type_name in _TYPES:
                begin, end = header.offsets[name]
                by_name[name] = _TYPES[type_name]
                sizes[_TYPES[type_name]] += end - begin
    main = sizes.most_common(1)[0][0] if sizes else torch.float32
    return StoredTypes(main, by_name)
