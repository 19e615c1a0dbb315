"""Tests that every stage is given the digests that were recorded of what it reads."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_contract.envelope import digest_of
from dapt_contract.stage_file import StageFile, digest_of_work, digest_without_checks
from dapt_contract.stages.common import CHECKING_FIELDS, FIELDS_ABSENT_IF_NONE, LAYOUT_FIELDS
from dapt_contract.stages.finetune import FinetuneFacts
from dapt_contract.stages.prepare import PrepareFacts, TokenizerFacts
from dapt_operator.testing.objects import Ends
from support.builders import facts_for, healthy
from support.worlds import World

RESULT = "stages/finetune-a1-a1-s40/try-1/model"
CHOSEN = "stages/pretrain-a1/try-1/checkpoint-40"


def tunes_adapter(stage: StageFile) -> Any:
    """Healthy, and fine-tuning writes an adapter where the trainer writes it."""
    facts = facts_for(stage)
    if not isinstance(facts, FinetuneFacts):
        return healthy(stage)
    model = stage.config.model.with_tuned(RESULT)  # type: ignore[attr-defined]
    return Ends(facts=facts.model_copy(update={"model": model, "weights_digest": "tuned"}))


@pytest.fixture(scope="module")
def finished() -> World:
    world = World({"pretraining": {"method": {"lora": {"rank": 8}}}})
    world.live(tunes_adapter)
    assert world.status["phase"] == "Published"
    return world


def recorded(world: World, kind: str) -> tuple[str | None, dict[str, str]]:
    found = world.config(kind).recorded  # type: ignore[attr-defined]
    return found.recipe, dict(found.folders)


@pytest.mark.parametrize(
    ("kind", "recipe", "folders"),
    [
        ("baseline", None, {"model": "model"}),
        ("pretrain", None, {"model": "base"}),
        ("evaluate", None, {"model": "base", CHOSEN: "000000000028"}),
        ("finetune", "000000000028".ljust(64, "0"), {"model": "base", CHOSEN: "000000000028"}),
        ("publish", "f", {"model": "base", CHOSEN: "000000000028", RESULT: "tuned"}),
    ],
)
def test_stage_that_reads_weights_is_given_their_digests(
    finished: World, kind: str, recipe: str | None, folders: dict[str, str]
) -> None:
    assert recorded(finished, kind) == (recipe, folders)


def grows_tokenizer(stage: StageFile) -> Any:
    """Healthy, and prepare has written the extended model."""
    facts = facts_for(stage)
    if not isinstance(facts, PrepareFacts):
        return healthy(stage)
    words = dict.fromkeys((name for name in TokenizerFacts.model_fields if "per_word" in name), 1.0)
    grown = TokenizerFacts(added_tokens=1, model_digest="grown", **words)
    return Ends(facts=facts.model_copy(update={"tokenizer": grown}))


def test_training_of_an_extended_model_is_given_its_digest() -> None:
    world = World({"model": {"tokenizer": {"extend": {"vocabularySize": 400}}}})
    world.live_until("pretrain", grows_tokenizer)
    assert recorded(world, "pretrain") == (None, {"model-extended": "grown"})


def test_verify_is_given_the_digests_of_every_model(finished: World) -> None:
    models = finished.config("verify").models  # type: ignore[attr-defined]
    assert {named.name: named.recorded.recipe for named in models} == {
        "base": None,
        "chosen": "000000000028".ljust(64, "0"),
        "final": None,
    }
    assert dict(models[-1].recorded.folders)[RESULT] == "tuned"
    assert dict(models[0].recorded.folders) == {"model": "base"}


@pytest.mark.parametrize("kind", ["baseline", "pretrain", "evaluate", "verify"])
def test_stage_that_reads_prepared_data_is_given_its_digest(finished: World, kind: str) -> None:
    assert finished.config(kind).prepared_digest == "sha256:data"  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["pretrain", "verify"])
def test_run_of_a_version_that_recorded_nothing_continues_after_an_upgrade(kind: str) -> None:
    world = World()
    world.live_until_interrupted(kind)
    config = [run for run in world.runs if run.kind == kind][-1].config
    job = world.cluster.stored(world.key).objects["Job", world.job["metadata"]["name"]]
    assert job["metadata"]["annotations"]["dapt.dev/config-digest"] == digest_of_work(config)
    job["metadata"]["annotations"]["dapt.dev/config-digest"] = digest_without_checks(config)
    world.settle()
    assert world.tries[-1] == f"{kind}/1"
    world.live()
    assert world.status["phase"] == "Published"


@pytest.mark.parametrize("kind", ["baseline", "pretrain", "blend", "evaluate", "finetune", "verify"])
def test_digest_of_work_is_that_of_versions_that_did_not_divide_it(kind: str) -> None:
    world = World({"selection": {"interpolate": [0.5]}})
    world.live_until(kind)
    config = world.config(kind)
    earlier = config.model_dump(mode="json")
    absent = {field for field in FIELDS_ABSENT_IF_NONE if earlier.get(field, "") is None}
    for field in ("spread", "keeps", *absent):
        earlier.pop(field, None)
    earlier.get("distribution", {}).pop("sequence_parallel", None)
    assert digest_of_work(config) == digest_of(earlier) != digest_of(config)


def test_digest_without_checks_is_that_of_the_earlier_fields() -> None:
    world = World()
    world.live_until("verify")
    config = world.config("verify")
    fields = config.model_dump(mode="json")
    for named in fields["models"]:
        named.pop("recorded")
    earlier = {
        name: value for name, value in fields.items() if name not in {*CHECKING_FIELDS, *LAYOUT_FIELDS}
    }
    assert digest_without_checks(config) == digest_of(earlier) != digest_of(config)
