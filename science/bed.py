"""The bed: packed rows and held-out halves of each side, made with dapt's own tokenizing, hashing and packing.

A bed is a pure function of text and settings, kept as one file below the cache folder under its digest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dapt_contract.measure import Side
from dapt_trainer.data.choose_held_out import HeldOutChoice, HeldOutLimits, choose
from dapt_trainer.data.dedup.held_out_neighbours import SHINGLE_WORDS, HeldOutShingles, sketches
from dapt_trainer.data.packing.best_fit import Packer
from dapt_trainer.data.packing.held_out import HeldOutDocument
from dapt_trainer.data.packing.shards import Shard
from dapt_trainer.data.slices.spooled_source import HeldOutCandidate
from dapt_trainer.data.text import WordHasher, normalized, text_digest, words
from science.digests import digest_of

END_OF_TEXT = "<|end|>"
END_OF_TEXT_ID = 0


@dataclass(frozen=True)
class BedSettings:
    """Sizes of tokenizer, rows and held-out text."""

    vocabulary_size: int = 1024
    context_tokens: int = 128
    held_out_tokens_a_side: int = 40_000
    held_out_fraction: float = 0.1
    """Of the documents at most: the tokens are reached first."""
    seed: bytes = b"dapt science"


@dataclass(frozen=True)
class SideData:
    """One side: rows to train on, and held-out documents in two halves."""

    shard: Shard
    held_out: Mapping[str, list[HeldOutDocument]]

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return int(self.shard.used.sum(dtype=np.int64))


def cache_folder() -> Path:
    """Where beds, bases and single runs are kept: outside the checkout, so that `make clean` leaves them."""
    return Path(os.environ.get("DAPT_SCIENCE") or Path.home() / ".cache" / "dapt" / "science")


def fit_tokenizer(texts: Sequence[str], settings: BedSettings) -> Any:
    """Byte-level BPE on the general side alone: a base model's tokenizer has not seen the domain."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def make_side(side: Side, texts: Sequence[str], tokenizer: Any, settings: BedSettings) -> SideData:
    """Hold out by hash, drop what is too near to it, pack the rest: what prepare does, without its files."""
    texts = _distinct(texts, settings.seed)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    places = [_place(text, settings.seed) for text in texts]
    candidates = [
        HeldOutCandidate(key, half, 0, number, len(ids[number]), number)
        for number, (key, half) in enumerate(places)
    ]
    chosen = choose(
        side,
        candidates,
        lambda candidate: texts[candidate.document],
        tokenizer,
        num_documents=len(texts),
        limits=HeldOutLimits(settings.held_out_fraction, settings.held_out_tokens_a_side),
    )
    kept = _kept(texts, [key for key, _ in places], chosen)
    return SideData(
        pack(side, [ids[number] for number in kept], settings.context_tokens),
        {str(half): documents for half, documents in chosen.halves.items()},
    )


def pack(side: Side, documents: Sequence[Sequence[int]], context_tokens: int) -> Shard:
    """Best-fit rows of the documents, each ended by end-of-text, as a shard in memory."""
    ended = [np.array([*ids, END_OF_TEXT_ID], dtype=np.uint16) for ids in documents]
    rows, used, starts, index = [], [], [], [0]
    for row in Packer(context_tokens).pack(enumerate(map(len, ended))):
        pieces = [ended[piece.document][piece.start : piece.start + piece.length] for piece in row]
        filled = np.full(context_tokens, END_OF_TEXT_ID, dtype=np.uint16)
        tokens = np.concatenate(pieces)
        filled[: len(tokens)] = tokens
        rows.append(filled)
        used.append(len(tokens))
        starts += np.cumsum([0, *map(len, pieces[:-1])]).tolist()
        index.append(len(starts))
    return Shard(
        name=f"{side}-0",
        side=side,
        weight=1.0,
        tokens=np.stack(rows),
        used=np.array(used, dtype=np.int32),
        row_index=np.array(index, dtype=np.int64),
        starts=np.array(starts, dtype=np.int32),
    )


def shuffled(shard: Shard, seed: int) -> Shard:
    """The same rows with the tokens of each put in any order: the same words, and nothing to learn from their order."""
    generator = np.random.default_rng(seed)
    tokens = np.array(shard.tokens)
    for row, used in zip(tokens, shard.used, strict=True):
        generator.shuffle(row[:used])
    return Shard(shard.name, shard.side, shard.weight, tokens, shard.used, shard.row_index, shard.starts)


def some_rows(shard: Shard, tokens: int, seed: int) -> Shard:
    """Rows drawn at random that hold so many tokens: a domain too small for its budget.

    At random, for packing puts the longest documents first.
    """
    order = np.random.default_rng(seed).permutation(len(shard))
    rows = order[: int(np.searchsorted(np.cumsum(shard.used[order]), tokens)) + 1]
    starts = [shard.starts[shard.row_index[row] : shard.row_index[row + 1]] for row in rows]
    index = np.cumsum([0, *map(len, starts)], dtype=np.int64)
    return Shard(
        shard.name,
        shard.side,
        shard.weight,
        shard.tokens[rows],
        shard.used[rows],
        index,
        np.concatenate(starts),
    )


def content_digest(side: SideData) -> str:
    """Names rows and held-out text by what they are."""
    arrays = (side.shard.tokens, side.shard.used, side.shard.row_index, side.shard.starts)
    held = {half: [document.ids for document in documents] for half, documents in side.held_out.items()}
    return digest_of(
        *(hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for array in arrays), held
    )


def save(side: SideData, path: Path) -> None:
    """One file a side; it exists when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = {
        half: [(document.ids, document.bytes, document.text) for document in documents]
        for half, documents in side.held_out.items()
    }
    shard = side.shard
    partial = path.with_suffix(".partial.npz")
    np.savez(
        partial,
        tokens=shard.tokens,
        used=shard.used,
        row_index=shard.row_index,
        starts=shard.starts,
        held_out=np.frombuffer(json.dumps(held).encode(), dtype=np.uint8),
    )
    partial.replace(path)


def load(side: Side, path: Path) -> SideData:
    """What `save` wrote."""
    with np.load(path) as stored:
        held = json.loads(stored["held_out"].tobytes())
        shard = Shard(
            f"{side}-0", side, 1.0, stored["tokens"], stored["used"], stored["row_index"], stored["starts"]
        )
    return SideData(
        shard,
        {half: [HeldOutDocument(*document) for document in documents] for half, documents in held.items()},
    )


def _place(text: str, seed: bytes) -> tuple[int, int]:
    """(key, half): where a text stands among those that may be held out, as prepare decides it."""
    place = hashlib.blake2b(text_digest(normalized(text)), digest_size=9, key=seed).digest()
    return int.from_bytes(place[:8], "little"), place[8] & 1


def _distinct(texts: Sequence[str], seed: bytes) -> list[str]:
    return list({_place(text, seed)[0]: text for text in reversed(texts)}.values())[::-1]


def _kept(texts: Sequence[str], keys: Sequence[int], chosen: HeldOutChoice) -> list[int]:
    """Documents to train on: not held out, and not near to what is."""
    held = [document.text for half in chosen.halves.values() for document in half]
    shingles, hasher = HeldOutShingles(held), WordHasher()
    kept = []
    for number, (text, key) in enumerate(zip(texts, keys, strict=True)):
        if key in chosen.keys:
            continue
        hashes = hasher.hashes(words(normalized(text)))
        (ngrams,) = hasher.ngrams(hashes, [SHINGLE_WORDS])
        sketch, _ = sketches(ngrams, np.array([len(hashes)], dtype=np.int64))
        if not shingles.is_near(sketch):
            kept.append(number)
    return kept
