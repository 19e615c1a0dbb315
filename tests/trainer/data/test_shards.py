"""Shards on disk and as training rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dapt_trainer.data.packing.data_manifest import finished_manifest, read_manifest
from dapt_trainer.data.packing.shards import ShardWriter, open_shards
from dapt_trainer.errors import InputError


def test_a_row_restarts_positions_at_each_document(tmp_path: Path, config, prepare) -> None:
    prepare(config)
    shards = open_shards(tmp_path / "work")
    assert [shard.name for shard in shards] == ["domain-0", "general-0"]
    end = read_manifest(tmp_path / "work").end_of_text_id
    for row in range(len(shards[0])):
        packed = shards[0].sequence(row)
        starts = packed.starts.tolist()
        assert starts[0] == 0
        for segment, first in enumerate(starts):
            last = [*starts[1:], packed.used][segment]
            assert packed.position_ids[first:last].tolist() == list(range(last - first))
            assert set(packed.segment_ids[first:last].tolist()) == {segment}
            assert end not in packed.input_ids[first : last - 1].tolist()
        assert packed.segment_ids[packed.used :].tolist() == [-1] * (128 - packed.used)


def test_the_unused_tail_is_a_segment_of_its_own(tmp_path: Path) -> None:
    with ShardWriter(
        tmp_path / "s", sequence_length_tokens=8, token_type="uint16", end_of_text_id=9
    ) as writer:
        writer.write_row([np.array([1, 2, 9]), np.array([3, 9])])
        with pytest.raises(ValueError, match="no row of 8 positions"):
            writer.write_row([np.arange(9)])
        files = {file.name: file.size_bytes for file in writer.close()}
    assert files == {"tokens.bin": 16, "used.bin": 4, "row_index.bin": 16, "starts.bin": 8}
    assert np.fromfile(tmp_path / "s" / "tokens.bin", "<u2").tolist() == [1, 2, 9, 3, 9, 9, 9, 9]


def test_a_shortened_shard_is_not_read(tmp_path: Path, config, prepare) -> None:
    prepare(config)
    work = tmp_path / "work"
    path = work / "data/domain-0/tokens.bin"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-10])
    assert finished_manifest(work, config.corpus_digest) is None
    with pytest.raises(InputError) as caught:
        open_shards(work)
    assert str(caught.value) == (
        f"{path}: has {size - 10} bytes, the manifest says {size}; run prepare again"
    )


def test_shards_without_a_manifest_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file; expected a dapt\.data file; run prepare again"):
        open_shards(tmp_path)


@pytest.mark.torch
def test_training_rows_learn_nothing_across_documents(tmp_path: Path, config, prepare) -> None:
    from dapt_trainer.data.packing.torch_dataset import PackedDataset, stack_packed

    prepare(config)
    rows = PackedDataset.on_work_volume(
        tmp_path / "work", seed=1, replay_fraction=0.25, total_steps=5, global_batch_size=4
    )
    assert len(rows) == 20
    row = rows[7]
    first = row["position_ids"] == 0
    assert (row["labels"][first] == -100).all()
    assert (row["labels"][~first] == row["input_ids"][~first]).all()
    batch = stack_packed([rows[index] for index in range(4)])
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "input_ids": (4, 128),
        "labels": (4, 128),
        "position_ids": (4, 128),
    }
    again = PackedDataset.on_work_volume(
        tmp_path / "work", seed=1, replay_fraction=0.25, total_steps=5, global_batch_size=4
    )
    assert (again[7]["input_ids"] == row["input_ids"]).all()
