"""What two ranks do that exchange values, honest ones and hostile ones."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import TypeAdapter

from dapt_trainer.distributed import MAX_VALUE_BYTES, Ranks, join_ranks, leave_ranks

Value = tuple[str, float, dict[str, list[int]]]
VALUE: TypeAdapter[Value] = TypeAdapter(Value)
HONEST: Value = ("Grüße\x00\u202e", math.nan, {"a": [1, 2, 3]})


class Bomb:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def exchange(rank: int, world_size: int, folder: Path) -> int:
    """Exchange honest values, then have rank 0 send what is none; leaves what rank 1 found in `folder`."""
    ranks = join_ranks(rank, rank, world_size)
    found: list[Any] = [
        ranks.from_first(lambda: HONEST, VALUE),
        ranks.gather((f"rank {rank}" * (1 + 40 * rank), 1e300, {}), VALUE),
    ]
    for hostile in hostile_values(folder):
        if rank == 0:
            _send(hostile)
        else:
            found.append(_receive(ranks))
    for size in (-1, 0, MAX_VALUE_BYTES + 1):
        if rank == 0:
            dist.broadcast(torch.tensor([size]), src=0)
        else:
            found.append(_receive(ranks))
    ranks.barrier()
    leave_ranks()
    (folder / f"found-{rank}.json").write_text(json.dumps(found))
    return 0


def hostile_values(folder: Path) -> list[bytes]:
    """What a compromised rank may send instead of a value."""
    return [
        pickle.dumps(Bomb(folder / "unpickled")),
        b'["text", 1.0, {"a": ["no number"]}]',
        b"[" * 100_000,
        b"\xff\xfe",
        b'["text", 1.0, {}] and more',
    ]


def _send(content: bytes) -> None:
    dist.broadcast(torch.tensor([len(content)]), src=0)
    dist.broadcast(torch.frombuffer(bytearray(content), dtype=torch.uint8), src=0)


def _receive(ranks: Ranks) -> str:
    try:
        ranks.from_first(lambda: HONEST, VALUE)
    except ValueError as error:
        return str(error).splitlines()[0]
    return "accepted"
