"""Files that lie next to data are left out, and named."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapt_trainer.data.reading.sources import resolve
from dapt_trainer.errors import InputError


def notes_of(folder: Path, *names: str) -> tuple[list[str], list[str]]:
    """The names that are read, and the notes, of a folder with these files."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text")
    source = resolve(f"file://{folder}", "f")
    files = [file.path.removeprefix(f"{folder}/") for file in source.files]
    return files, [note.replace(f"{folder}/", "") for note in source.notes]


@pytest.mark.parametrize(
    ("names", "read", "notes"),
    [
        (("a.jsonl", "b.csv", "c.jsonl.xz"), ["a.jsonl"], ["2 files of types that are not read are left out (b.csv)"]),
        (("a.jsonl", "_SUCCESS", "a.jsonl.crc", "figure.png"), ["a.jsonl"], []),
        (("data/a.parquet", "README.md", "dataset_infos.json"), ["data/a.parquet"],
         ["2 files describing the data are left out (README.md)"]),
        (("a/README.md", "b/README.md"), ["a/README.md", "b/README.md"], []),
        (("a.jsonl", "README.md", "b.txt"), ["README.md", "a.jsonl", "b.txt"], []),
        (("state.json",), ["state.json"], []),
    ],
)  # fmt: skip
def test_what_a_folder_has_besides_data_is_left_out_and_named(
    tmp_path: Path, names: tuple[str, ...], read: list[str], notes: list[str]
) -> None:
    assert notes_of(tmp_path, *names) == (read, notes)


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (("a.csv", "b.xlsx"), "(the first is {}/a.csv); accepted are .jsonl, "),
        (("data-00000-of-00001.arrow", "dataset_info.json", "state.json"),
         "(the first is {}/data-00000-of-00001.arrow); write a data set that `save_to_disk` wrote as Parquet: "),
    ],
)  # fmt: skip
def test_a_folder_of_other_types_is_refused_by_its_first_file(
    tmp_path: Path, names: tuple[str, ...], advice: str
) -> None:
    with pytest.raises(InputError) as caught:
        notes_of(tmp_path, *names)
    assert advice.replace("{}", str(tmp_path)) in str(caught.value)
