"""The whole way on a tiny bed: text, tokens, base, runs of every kind, and a cache that does nothing twice."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from science.adapt import adapt
from science.chain import Chain, follow
from science.settings import Adaptation, Penalty
from science.world import World

from science import base, blends, campaign, digests, kinds, rows, sample, store

pytestmark = pytest.mark.torch
LAST_STEP = sample.SETTINGS.steps


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAPT_SCIENCE", str(tmp_path_factory.mktemp("science")))
        yield sample.open_sample(lambda text: None)


def forgetting(world: World, record: dict[str, Any]) -> float:
    return float(record["readings"][-1]["general_b"] - world.readings["strong"].general_b)


def gain(world: World, record: dict[str, Any]) -> float:
    return float(world.readings["strong"].domain_b - record["readings"][-1]["domain_b"])


def test_held_out_text_is_not_trained_on_and_rows_are_full(world: World) -> None:
    for side in world.bed.sides.values():
        trained = set(rows.texts_of(side.shard, world.bed.tokenizer))
        held = [document for half in ("a", "b") for document in side.held_out[half]]
        assert held
        assert not trained & {document.text for document in held}
        assert side.tokens / side.shard.tokens.size > 0.99


def test_bed_and_base_are_made_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("made again")

    monkeypatch.setattr(base.Training, "step", never)
    again = campaign.open_all(sample.SETTINGS, lambda text: None, texts=never, source=sample.SOURCE)
    assert again.base_digest == world.base_digest
    assert again.readings == world.readings


def test_interrupted_base_training_resumes_to_the_same_weights(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    class CutOffError(Exception):
        pass

    said: list[str] = []

    def cut(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            raise CutOffError

    monkeypatch.setenv("DAPT_SCIENCE", str(tmp_path))
    monkeypatch.setattr(base, "SAVE_EVERY_STEPS", 40)
    with pytest.raises(CutOffError):
        base.open_base(sample.SETTINGS, world.bed, cut)
    resumed = base.open_base(sample.SETTINGS, world.bed, said.append)
    assert said[2] == f"base: goes on from step 80 of {LAST_STEP}"
    assert all(torch.equal(resumed[name], value) for name, value in world.base.items())


def test_replay_forgets_less_and_learns_nearly_as_much(world: World) -> None:
    plain = adapt(world, Adaptation(steps=40))
    mixed = adapt(world, Adaptation(steps=40, replay=0.5))
    assert mixed["replay_fraction"] == pytest.approx(0.5, abs=0.01)
    assert forgetting(world, mixed) < forgetting(world, plain) - 0.05
    assert gain(world, mixed) > 0.2


def test_a_strong_penalty_holds_the_model_where_it_was(world: World) -> None:
    plain = adapt(world, Adaptation(steps=10))
    held = adapt(world, Adaptation(steps=10, penalty=Penalty("ewc", 30.0, samples=20)))
    assert abs(forgetting(world, held)) < 0.5 * abs(forgetting(world, plain))


def test_an_interpolation_is_measured_on_the_weights_between(world: World) -> None:
    import torch

    other = {name: value * 1.1 for name, value in world.base.items()}
    made = dict(blends.made_of(world, other, (0.5,), [world.base, other]))
    for model in (made["i0.5"], made["avg2"]):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, world.base[name] * 1.05, rtol=1e-5, atol=1e-7)


def test_a_run_that_forgets_is_stopped_and_rolled_back_within_its_budget(world: World) -> None:
    record = follow(world, Chain(steps=20, replay=0.1, peak=3e-2))
    first, second, *_ = record["attempts"]
    assert first["steps"] < 20
    assert first["reason"].startswith(f"stopped at step {first['steps']}: general perplexity is +")
    assert (second["rate"], second["replay"]) == (1.5e-2, 0.2)
    assert len(record["attempts"]) <= 3
    assert record["steps_trained"] == sum(attempt["steps"] for attempt in record["attempts"])


def test_new_rows_begin_as_asked(world: World) -> None:
    import torch

    settings = rows.NewRows(words="foreign", beginning="random-head", steps=5)
    grown = rows.grown_tokenizer(world, "foreign")
    state = rows.grown_model(world, settings, grown).state_dict()
    old = world.base["model.embed_tokens.weight"]
    for place, constituents in enumerate(grown.constituents[:5]):
        row = state["model.embed_tokens.weight"][len(old) + place]
        torch.testing.assert_close(row, old[list(constituents)].mean(dim=0))
    head = state["lm_head.weight"][len(old) :]
    assert float(head.std()) == pytest.approx(float(world.base["lm_head.weight"].std()), rel=0.1)
    assert sum(len(document.ids) for document in grown.held_out) < sum(
        len(document.ids) for half in ("a", "b") for document in world.bed.sides["strong"].held_out[half]
    )


def test_campaign_resumes_after_an_interruption_and_repeats_no_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []

    def perform(_: World, settings: Any) -> dict[str, Any]:
        done.append(settings)
        return {"settings": {"seed": settings.seed}}

    monkeypatch.setattr(campaign, "perform", perform)
    wanted = [Adaptation(steps=3, seed=seed) for seed in (7, 8, 9)]
    asked = iter((False, True, True))
    campaign.run_missing(world, wanted, workers=1, ends=lambda: next(asked), say=lambda text: None)
    assert done == wanted[:1]
    keys = campaign.run_missing(
        world, [*wanted, wanted[0]], workers=1, ends=lambda: False, say=lambda text: None
    )
    assert done == wanted
    assert [record["settings"]["seed"] for record in campaign.records_of(keys, wanted)] == [7, 8, 9]


def test_every_setting_and_the_base_name_a_run(world: World) -> None:
    plain = Adaptation(steps=3)
    others = [
        replace(plain, seed=2),
        replace(plain, replay=0.5),
        replace(plain, domain="weak"),
        replace(plain, domain="shuffled"),
        replace(plain, shares=(0.5,)),
        replace(plain, penalty=Penalty("ewc", 0.1)),
        replace(plain, penalty=Penalty("ewc", 0.2)),
    ]
    keys = [kinds.key(world, settings) for settings in (plain, *others)]
    keys.append(kinds.key(replace(world, base_digest="another"), plain))
    assert len(set(keys)) == len(keys)
    assert kinds.key(world, Adaptation(steps=3)) == keys[0]


def test_words_about_the_code_do_not_name_a_run_and_code_does() -> None:
    one = '"""A module."""\nX = 1  # why\n\ndef f():\n    """Says."""\n    return X\n'
    same = "X = 1\ndef f():\n    return X\n"
    assert digests.tree_of(one) == digests.tree_of(same)
    assert digests.tree_of(one) != digests.tree_of(same.replace("1", "2"))


def test_equal_runs_give_equal_records(world: World) -> None:
    settings = Adaptation(steps=5, replay=0.25, readings=2)
    first, second = (adapt(world, settings) for _ in range(2))
    assert first["readings"] == second["readings"]
    assert math.isfinite(first["readings"][-1]["domain_b"])
    assert store.name_of(first["settings"]) == store.name_of(settings)
