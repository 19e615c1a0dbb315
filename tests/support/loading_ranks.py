"""What ranks do that load a model of which each keeps a share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from dapt_contract.stages.common import DistributionConfig, ModelReference
from dapt_trainer.distributed import join_ranks, leave_ranks
from dapt_trainer.modeling.loading import own_shares
from dapt_trainer.modeling.loading.load_folder import load_model
from dapt_trainer.modeling.loading.sharding import gathered, load_to_train
from dapt_trainer.training.arguments import training_arguments
from support.toy_training import pretrain_config


def load_and_count(rank: int, world_size: int, work: Path) -> int:
    """Load the work volume's model by ZeRO stage 3; leave the bytes that were read and how the weights differ."""
    ranks = join_ranks(rank, rank, world_size)
    num_bytes = count_bytes_read()
    config = pretrain_config(lora=None, distribution=DistributionConfig(zero_stage=3, precision="fp32"))
    arguments = training_arguments(config, work / f"scratch-{rank}", ranks, total_steps=1)
    reference = ModelReference(weights="model")
    model = load_to_train(
        lambda device: load_model(work, reference, precision="fp32", device=device),
        arguments,
        device=ranks.device,
        folder=work / "model",
    )
    read = sum(num_bytes)
    from safetensors.torch import load_file

    expected = load_file(work / "model" / "model.safetensors")
    wrong = []
    for name, parameter in model.named_parameters():
        with gathered(parameter):
            if not torch.equal(parameter.detach(), expected[name]):
                wrong.append(name)
    (work / f"loaded-{rank}.json").write_text(json.dumps({"bytes": read, "wrong": wrong}))
    leave_ranks()
    return 0


def count_bytes_read() -> list[int]:
    """Return a list that gets the bytes of each piece of a file that this process reads from now on."""
    num_bytes: list[int] = []
    honest = own_shares.safe_open

    class Slice:
        def __init__(self, values: Any) -> None:
            self._values = values
            self.get_shape = values.get_shape

        def __getitem__(self, rows: Any) -> torch.Tensor:
            piece: torch.Tensor = self._values[rows]
            num_bytes.append(piece.nbytes)
            return piece

    class File:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._file = honest(*arguments, **options)

        def __enter__(self) -> Any:
            return self._file.__enter__()

        def __exit__(self, *error: object) -> None:
            self._file.__exit__(*error)

        def get_slice(self, name: str) -> Slice:
            return Slice(self._file.get_slice(name))

    own_shares.safe_open = File  # type: ignore[misc, assignment]
    return num_bytes
