"""Opens the packed training rows of the work volume in the order of a run's mixture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from dapt_contract.stages.pretrain import PretrainConfig
from dapt_trainer.data.packing.data_manifest import DataManifest
from dapt_trainer.data.packing.mixture import Mixture, MixtureTotals
from dapt_trainer.data.packing.recorded_data import changed_shards, read_recorded_data
from dapt_trainer.data.packing.shards import Shard, open_shards
from dapt_trainer.data.packing.torch_dataset import PackedDataset
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InputError

_SENTENCES = TypeAdapter(list[str])


@dataclass(frozen=True)
class TrainingRows:
    """Holds a run's rows, and computes its tokens as a pure function of the step."""

    dataset: PackedDataset
    """Row `step * global_batch_size + i`: input_ids, labels, position_ids, each int64 [sequence_length]."""
    shards: tuple[Shard, ...]
    mixture: Mixture
    end_of_text_id: int
    manifest: DataManifest
    """Of the prepared data, as it was read and compared."""

    def tokens_of_step(self, step: int) -> int:
        """Return the positions of the step's global batch that have a token; `step` counts from 0."""
        return sum(int(self.shards[source].used[row]) for source, row in self.mixture.rows(step))

    def totals(self, steps: int) -> MixtureTotals:
        """Return what the first `steps` steps of this attempt read of each source."""
        return self.mixture.totals(steps, [shard.used for shard in self.shards])


def open_rows(
    work: Path, config: PretrainConfig, ranks: Ranks, beat: Callable[[], None] = lambda: None
) -> TrainingRows:
    """Open the shards and the mixture of a configuration, once the ranks have compared the shards' content.

    Args:
        work: root of the work volume.
        config: of the training.
        ranks: all of them call this together.
        beat: called now and then.

    Raises:
        InputError: shards are missing, damaged or not those that prepare wrote, or their rows have another length.
    """
    manifest = read_recorded_data(work, config.prepared_digest)
    if manifest.sequence_length_tokens != config.sequence_length_tokens:
        raise InputError(
            f"the data was packed to {manifest.sequence_length_tokens} tokens a sequence and pretraining is set to "
            f"{config.sequence_length_tokens}; run prepare again with corpus.sequenceLength "
            f"{config.sequence_length_tokens}"
        )
    shards = tuple(open_shards(work, manifest))
    _require_unchanged(work, manifest, ranks, beat)
    mixture = Mixture.of_shards(
        shards,
        seed=config.seed,
        replay_fraction=config.replay_fraction,
        global_batch_size=config.global_batch_size,
        earlier_phases=config.earlier_phases,
    )
    dataset = PackedDataset(
        shards,
        mixture,
        total_steps=config.total_steps,
        global_batch_size=config.global_batch_size,
        document_boundaries=config.document_boundaries,
    )
    return TrainingRows(dataset, shards, mixture, manifest.end_of_text_id, manifest)


def _require_unchanged(work: Path, manifest: DataManifest, ranks: Ranks, beat: Callable[[], None]) -> None:
    """Compare the content of all shards with the manifest, each rank a part; all ranks learn what all have found.

    Once, when they are opened: what training reads afterwards are the maps of these files.

    Raises:
        InputError: names every file that has changed.
    """
    problems = changed_shards(work, manifest, beat, rank=ranks.rank, world_size=ranks.world_size)
    problems = [problem for found in ranks.gather(problems, _SENTENCES) for problem in found]
    if problems:
        raise InputError(*problems)
