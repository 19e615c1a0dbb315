"""A GGUF file that describes another model than it holds is refused by its header, before it is converted."""

# ruff: noqa: E501 (a sentence stands in one piece)

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from dapt_trainer.data.base_model.fetch import import_model
from dapt_trainer.data.base_model.gguf_header import gguf_problem
from dapt_trainer.errors import InputError


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(
    *, tensors: int = 1, keys: int | None = None, layers: int = 1, width: int = 4, offset: int = 0
) -> bytes:
    """A header with one tensor of four rows."""
    values = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.block_count") + struct.pack("<II", 4, layers),
        text("llama.embedding_length") + struct.pack("<II", 4, width),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
        text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, 2) + bytes(8),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, len(values) if keys is None else keys)
    return head + b"".join(values) + text("a.weight") + struct.pack("<IQIQ", 1, 4, 0, offset) + bytes(16)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (gguf(), ""),
        (gguf(layers=10**9), "it has llama.block_count 1,000,000,000 and 1 tensors"),
        (gguf(width=1 << 30), "it has llama.embedding_length 1,073,741,824 and 4 rows in its largest tensor"),
        (gguf(tensors=1 << 60), "its header has 1,152,921,504,606,846,976 tensors and 5 keys"),
        (gguf(keys=1 << 60), "its header has 1 tensors and 1,152,921,504,606,846,976 keys"),
        (gguf(offset=1 << 60), "a tensor lies behind its end"),
        (gguf()[:60], "its header is damaged"),
        (b"GGUF" + b"\xff" * 99, "its header has 18,446,744,073,709,551,615 tensors and 18,446,744,073,709,551,615 keys"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 1 << 62), "its header is damaged"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("a") + struct.pack("<IIQ", 9, 9, 1 << 62), "its header is damaged"),
        (b"cposix\nsystem\n", "its header is damaged"),
    ],
)  # fmt: skip
def test_a_header_is_compared_with_its_tensors(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    assert gguf_problem(tmp_path / "a.gguf") == problem


def test_a_bad_header_is_bad_input_and_a_link_out_of_the_folder_too(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "a.gguf").write_bytes(gguf(layers=10**9))
    (model / "a.gguf").symlink_to("../a.gguf")
    source = f"file://{model}"
    with pytest.raises(
        InputError, match=r"a\.gguf leads to .*, outside of the model's folder; name that file itself"
    ):
        import_model(source, tmp_path / "first", tmp_path / "scratch")
    (model / "a.gguf").unlink()
    (model / "a.gguf").write_bytes(gguf(layers=10**9))
    with pytest.raises(InputError) as caught:
        import_model(source, tmp_path / "second", tmp_path / "scratch")
    assert str(caught.value) == (
        f"spec.model.source: {source}: a.gguf is damaged or no model (it has llama.block_count 1,000,000,000 and 1 "
        "tensors); download it again, or use the model's safetensors version"
    )
