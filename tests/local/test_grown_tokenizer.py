"""A whole adaptation whose tokenizer grows, through the command line: the published model is loaded and used.

One process, adapters with new rows, fine-tuning on top; the published folder is read by transformers alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.toy_adaptation import make_toy

pytestmark = [pytest.mark.local, pytest.mark.timeout(600)]

TEXTS = (
    "the sensor cools the turbine at low pressure.",
    "my uncle mends the garden gate before supper.",
    "Ünïcödé — 日本語, русский, العربية, 🙂🙂\n\tdef f(x): return x  \n",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    manifest = make_toy(folder, steps=10, checkpoints=2)
    text = manifest.read_text(encoding="utf-8")
    extend = "model: {source: file://base, tokenizer: {extend: {vocabularySize: 25, minimumFrequency: 20}}}"
    for old, new in (('model: {source: "file://base"}', extend), ("nodes: 2", "nodes: 1")):
        assert old in text
        text = text.replace(old, new)
    manifest.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", "from dapt_operator.cli import main; main()", "run", "toy.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def report(folder: Path, kind: str) -> dict[str, Any]:
    (path,) = (folder / "runs/toy/work/stages").glob(f"{kind}-a1*/try-1/report.json")
    return dict(json.loads(path.read_text())["body"]["report"])


@pytest.mark.torch
def test_plain_transformers_loads_the_published_model_with_its_new_tokens(finished: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    work = finished / "runs/toy/work"
    base, tokenizer = (AutoTokenizer.from_pretrained(path) for path in (finished / "base", finished / "out"))
    model = AutoModelForCausalLM.from_pretrained(finished / "out")
    start = AutoModelForCausalLM.from_pretrained(work / "model-extended")
    facts = report(finished, "prepare")["facts"]["tokenizer"]
    assert len(tokenizer) == len(base) + facts["added_tokens"] == len(base) + 25
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == base.decode(base.encode(text)) == text
    assert len(tokenizer.encode(TEXTS[0])) <= 0.75 * len(base.encode(TEXTS[0]))
    old, new = slice(0, len(base)), slice(len(base), len(tokenizer))
    rows, before = model.get_input_embeddings().weight, start.get_input_embeddings().weight
    assert torch.equal(rows[old], before[old])
    assert not torch.allclose(rows[new], before[new], atol=1e-5)
    ids = torch.tensor([tokenizer.encode("the sensor")])
    written = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert tokenizer.decode(written[0]).startswith("the sensor")


def test_base_and_adapted_models_are_compared_by_the_same_count_of_tokens(finished: Path) -> None:
    base = report(finished, "baseline")["facts"]["measure"]
    final = report(finished, "verify")["facts"]["final"]
    for side in ("domain", "general"):
        for half in ("a", "b"):
            before, after = base[side][half], final[side][half]
            assert (before["tokens"], before["bytes"]) == (after["tokens"], after["bytes"])
            assert before["nll_nats"] != after["nll_nats"]
    nats = [measure["domain"]["a"]["nll_nats"] for measure in (base, final)]
    assert nats[1] < nats[0], "the toy learns its domain"


def test_report_shows_the_gain_of_the_extended_tokenizer(finished: Path) -> None:
    page = (finished / "runs/toy/report.html").read_text(encoding="utf-8")
    assert "The tokenizer learned 25 tokens" in page
    assert "Byte for byte it predicts the domain as well as the base model from" in page
