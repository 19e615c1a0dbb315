"""A tokenizer that grows: dapt learns the new tokens and makes their rows; other beginnings for comparison."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dapt_trainer.data.packing.held_out import HeldOutDocument
from dapt_trainer.data.packing.shards import Shard
from science import bed
from science.bed import END_OF_TEXT_ID
from science.digests import code_digest, digest_of
from science.model import Rate, Training, make_model
from science.names import base_parts, rates
from science.world import LOADING, World

ROWS_CODE = ("science.rows", "science.model", "dapt_trainer.tokenization.new_rows")
NEW_TOKENS = 400
MINIMUM_FREQUENCY = 20
READING_STEPS = (0, 40, 200)
_LEARNING = threading.Lock()
_learned: dict[tuple[str, str], Grown] = {}


@dataclass(frozen=True)
class NewRows:
    """Settings of one run."""

    words: str
    """`known`: learned on the general side, whose words the base can spell, and trained and measured there; `foreign`:
    the same with the strong domain."""
    beginning: str
    """`old`: the old tokenizer. `mean`: means of the constituents' rows in both matrices. `random`: at the deviation of
    trained rows in both. `random-head`: means in the embedding, random rows in the head."""
    rate: Rate = field(default_factory=Rate)
    steps: int = READING_STEPS[-1]
    seed: int = 1


@dataclass(frozen=True)
class Grown:
    """A grown tokenizer with everything cut anew by it."""

    constituents: tuple[tuple[int, ...], ...]
    """Old ids of each new token, in the order of their ids."""
    shard: Shard
    held_out: list[HeldOutDocument]
    """Both halves: nothing is chosen here."""
    digest: str


def key_of(world: World, settings: NewRows) -> str:
    """Names a run by its settings, the base, this code, and the tokenizer that dapt grows."""
    grown = grown_tokenizer(world, settings.words)
    of_steps = rates(settings.rate, settings.steps)
    return digest_of(code_digest(*ROWS_CODE), settings, *base_parts(world), grown.digest, of_steps)


def grow_and_adapt(world: World, settings: NewRows) -> dict[str, Any]:
    """Train on the retokenized side; bits a byte at the reading steps."""
    side = world.bed.sides[_side(settings.words)]
    grown = grown_tokenizer(world, settings.words)
    shard, held_out = side.shard, side.held_out["a"] + side.held_out["b"]
    if settings.beginning != "old":
        shard, held_out = grown.shard, grown.held_out
    model = grown_model(world, settings, grown)
    training = Training(
        model,
        [shard],
        rate=settings.rate,
        total_steps=settings.steps,
        replay_fraction=1.0 if shard.side == "general" else 0.0,
        seed=settings.seed,
    )
    readings = []
    while True:
        if training.steps_done in READING_STEPS:
            readings.append(
                {"step": training.steps_done, "bits_per_byte": bits_per_byte(model, held_out, shard)}
            )
        if training.steps_done == settings.steps:
            break
        training.step()
    return {
        "settings": asdict(settings),
        "readings": readings,
        "new_tokens": len(grown.constituents) if settings.beginning != "old" else 0,
        "held_out_tokens": sum(len(document.ids) for document in held_out),
        "cpu_seconds_a_step": training.cpu_seconds / max(1, training.steps_done),
    }


def bits_per_byte(model: Any, documents: list[HeldOutDocument], shard: Shard) -> float:
    """dapt's measure, the one that can be compared between tokenizers."""
    from dapt_trainer.evaluation.perplexity import HeldOutScoring, held_out_perplexity

    scoring = HeldOutScoring(shard.tokens.shape[1])
    measured = held_out_perplexity(model, documents, scoring, end_of_text_id=END_OF_TEXT_ID)
    return measured.bits_per_byte


def grown_tokenizer(world: World, words: str) -> Grown:
    """The tokenizer grown on one side's training text, and that side cut anew by it; made once a process."""
    with _LEARNING:
        known = (world.base_digest, words)
        if known not in _learned:
            _learned[known] = _grow(world, words)
        return _learned[known]


def grown_model(world: World, settings: NewRows, grown: Grown) -> Any:
    """The base model with rows for the new tokens in embedding and head."""
    import torch

    from dapt_trainer.tokenization.new_rows import constituent_mean_rows, random_rows

    if settings.beginning == "old":
        return world.model()
    count = len(grown.constituents)
    state = dict(world.base)
    for place, name in enumerate(("model.embed_tokens.weight", "lm_head.weight")):
        by_mean = settings.beginning == "mean" or (settings.beginning == "random-head" and place == 0)
        new = (
            constituent_mean_rows(state[name], grown.constituents)
            if by_mean
            else random_rows(state[name], count, seed=2 * settings.seed + place)
        )
        state[name] = torch.cat([state[name], new])
    larger = replace(world.settings.bed, vocabulary_size=world.settings.bed.vocabulary_size + count)
    with LOADING:
        model = make_model(world.settings.shape, larger, settings.seed)
    model.load_state_dict(state)
    return model


def _side(words: str) -> str:
    return "general" if words == "known" else "strong"


def _grow(world: World, words: str) -> Grown:
    from tokenizers import Tokenizer

    from dapt_contract.stages.prepare import TokenizerExtensionConfig
    from dapt_trainer.tokenization.extension import grow_tokenizer

    side = world.bed.sides[_side(words)]
    texts = texts_of(side.shard, world.bed.tokenizer)
    wanted = TokenizerExtensionConfig(vocabulary_size=NEW_TOKENS, minimum_frequency=MINIMUM_FREQUENCY)
    made = grow_tokenizer(world.bed.tokenizer.to_str(), lambda: texts, wanted, source="the miniature")
    tokenizer = Tokenizer.from_str(made.tokenizer_json)
    constituents = tuple(tuple(made.constituents[number]) for number in sorted(made.constituents))
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    shard = bed.pack(side.shard.side, encoded, world.settings.bed.context_tokens)
    held = [
        HeldOutDocument(
            tokenizer.encode(document.text, add_special_tokens=False).ids, document.bytes, document.text
        )
        for half in ("a", "b")
        for document in side.held_out[half]
    ]
    data = bed.content_digest(bed.SideData(shard, {"a": held}))
    return Grown(constituents, shard, held, digest_of(list(map(list, constituents)), data))


def texts_of(shard: Shard, tokenizer: Any) -> list[str]:
    """The training text of a shard, piece by piece."""
    texts = []
    for row in range(len(shard)):
        packed = shard.sequence(row)
        ends = [*packed.starts[1:].tolist(), packed.used]
        for start, end in zip(packed.starts.tolist(), ends, strict=True):
            ids = [token for token in packed.input_ids[start:end].tolist() if token != END_OF_TEXT_ID]
            texts.append(tokenizer.decode(ids))
    return [text for text in texts if text]
