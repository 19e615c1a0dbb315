"""Tests publish: a model that transformers loads, a card of facts, and no file of others overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.stages.common import Member, ModelReference
from dapt_contract.stages.publish import PublishConfig, PublishReport
from dapt_trainer.errors import InputError
from dapt_trainer.publishing.destinations import open_destination
from dapt_trainer.stages import pretrain, publish
from support.card_builders import publish_config as config
from support.toy_training import FILTERS, make_context, make_work_volume, pretrain_config

pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]


def published(work: Path, settings: PublishConfig) -> PublishReport:
    return publish.run(settings, make_context(work, work / "scratch", settings, kind="publish"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = make_work_volume(tmp_path_factory.mktemp("work"), chat_template=True)
    settings = pretrain_config()
    pretrain.run(settings, make_context(work, work / "scratch", settings))
    return work


def test_the_merged_model_has_the_outputs_of_base_and_adapter(trained: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter = "stages/pretrain-a1/try-1/checkpoint-6"
    settings = config(f"file://{tmp_path}/out", model=ModelReference(weights="model", adapters=(adapter,)))
    report = published(trained, settings)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    apart = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(trained / "model"), trained / adapter
    ).eval()
    ids = torch.arange(1, 20)[None]
    assert torch.allclose(model(ids).logits, apart(ids).logits, atol=1e-5)
    assert not torch.allclose(
        model(ids).logits, AutoModelForCausalLM.from_pretrained(trained / "model")(ids).logits, atol=1e-3
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template
    assert model.generation_config.max_new_tokens == 8
    assert model.config.use_cache is True
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    found = json.loads((tmp_path / "out" / "dapt.json").read_text())
    assert found["schema_name"] == "dapt.model"
    assert found["body"]["run_digest"] == settings.run_digest
    assert found["body"]["digest"] == report.facts.digest
    assert {entry["path"] for entry in found["body"]["files"]} == {
        path.name for path in (tmp_path / "out").iterdir()
    } - {"dapt.json"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_folder_with_other_files_is_refused_unchanged(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(InputError) as caught:
        published(trained, config(f"file://{out}"))
    assert str(caught.value) == (
        f"output.destination file://{out}: not empty, and no dapt.json says that this run wrote it; empty it, "
        "or choose another place"
    )
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_only_the_same_run_may_publish_again(trained: Path, tmp_path: Path) -> None:
    out = f"file://{tmp_path}/out"
    first = published(trained, config(out))
    (tmp_path / "out" / "README.md").unlink()
    assert published(trained, config(out)).facts.digest == first.facts.digest
    assert (tmp_path / "out" / "README.md").exists()
    with pytest.raises(InputError, match=r"holds the model of another run \(sha256:1111"):
        published(trained, config(out, run_digest="sha256:" + "2" * 64))


def test_an_object_store_gets_the_same_files_with_the_manifest_last(
    trained: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    import fsspec

    from dapt_trainer.publishing import destinations

    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(destinations, "filesystem_of", lambda uri, field: (memory, "/bucket/model", uri))
    written: list[str] = []
    honest = memory.put_file

    def put_file(source: str, target: str) -> None:
        written.append(target)
        honest(source, target)

    monkeypatch.setattr(memory, "put_file", put_file)
    report = published(trained, config("s3://bucket/model"))
    assert written[-1] == "/bucket/model/dapt.json"
    assert len(written) == report.facts.files
    with pytest.raises(InputError, match="holds the model of another run"):
        published(trained, config("s3://bucket/model", run_digest="sha256:" + "3" * 64))
    memory.rm("/bucket", recursive=True)


def test_a_published_recipe_is_the_model_that_was_measured(trained: Path, tmp_path: Path) -> None:
    """The mean of two adapters, most of the way from the base, with a tuned adapter and its tokenizer on top."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from support.written import load_recipe

    steps = [f"stages/pretrain-a1/try-1/checkpoint-{step}" for step in (2, 4, 6)]
    recipe = ModelReference(
        weights="model",
        adapters=(steps[2],),
        averaged_with=(Member(weights="model", adapters=(steps[1],)),),
        interpolation=0.8,
        tuned=(steps[0],),
    )
    published(trained, config(f"file://{tmp_path}/out", model=recipe))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(1, 20)[None]
    wanted = load_recipe(trained, recipe, precision="fp32")(ids).logits
    assert torch.equal(model(ids).logits, wanted)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for other in (recipe.model_copy(update={"tuned": ()}), recipe.model_copy(update={"interpolation": 1.0})):
        assert not torch.allclose(
            load_recipe(trained, other, precision="fp32")(ids).logits, wanted, atol=1e-3
        )
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    ("having", "expected"),
    [
        (("base", "full", "adapter", "tuned"), "tuned"),
        (("base", "full", "adapter"), "adapter"),
        (("base", "full"), "full"),
        (("base",), "base"),
    ],
)
def test_the_tokenizer_is_that_of_the_newest_part(
    tmp_path: Path, having: tuple[str, ...], expected: str
) -> None:
    for name in having:
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer_config.json").touch()
    recipe = ModelReference(
        weights="full", adapters=("adapter",), origin="base", interpolation=0.5, tuned=("tuned",)
    )
    assert publish.tokenizer_folder(tmp_path, recipe) == expected


@pytest.mark.parametrize("uri", ["ftp://host/x", "models/out", "file://"])
def test_an_unknown_scheme_is_refused_with_the_accepted_ones(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        open_destination(uri, work=tmp_path)
    assert str(caught.value) == (
        f"output.destination {uri!r}: accepted is one of file://, pvc://, s3://, gs://, hf:// with a path after it"
    )


def test_folders_of_the_work_volume_are_refused_as_destination(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lies inside the run's own work folder"):
        open_destination(f"file://{tmp_path}/model", work=tmp_path)
