"""The page about serving: its manifests are whole, and its code runs on toy models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_manifests_are_of_the_kinds_that_the_page_names() -> None:
    yaml = YAML(typ="safe", pure=True)
    service, workspace = (yaml.load(block) for block in blocks("yaml"))
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    model = service["spec"]["predictor"]["model"]
    assert model["modelFormat"] == {"name": "huggingface"}
    assert model["storageUri"].startswith("s3://")
    assert model["resources"]["requests"]["nvidia.com/gpu"] == model["resources"]["limits"]["nvidia.com/gpu"]
    assert (workspace["apiVersion"], workspace["kind"]) == ("kaito.sh/v1beta1", "Workspace")
    assert set(workspace) == {"apiVersion", "kind", "metadata", "resource", "inference"}


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_code_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    from support.toy_training import make_work_volume

    model = make_work_volume(tmp_path / "work") / "model"
    for name in ("clinical", "base"):
        (tmp_path / name).symlink_to(model)
    for name in ("clinical", "legal"):
        adapted = peft.get_peft_model(
            AutoModelForCausalLM.from_pretrained(model), peft.LoraConfig(r=2, target_modules=["q_proj"])
        )
        adapted.save_pretrained(tmp_path / "adapters" / name)
    monkeypatch.chdir(tmp_path)
    loading, side_by_side = blocks("python")
    names: dict[str, object] = {}
    exec(compile(loading, "serving.md", "exec"), names)
    assert capsys.readouterr().out.strip()
    exec(compile(side_by_side, "serving.md", "exec"), names)
    served = names["model"]
    assert isinstance(served, peft.PeftModel)
    assert set(served.peft_config) == {"clinical", "legal"}
    assert served.active_adapter == "legal"
