"""A base model, two sources and a context for prepare."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from dapt_contract.run_identity import RunIdentity
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.prepare import PrepareConfig, PrepareReport, TextSource
from dapt_trainer.context import StageContext
from dapt_trainer.data.base_model import check
from dapt_trainer.data.base_model.complete import Comparison
from support.toy_corpus import Board, documents, train_tokenizer, write_jsonl, write_model


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Trained once."""
    return train_tokenizer(documents(60, first=9_000_000))


@pytest.fixture(autouse=True)
def names_not_compared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the tensors' names to test_base_weights.py: comparing them takes a process with torch, for seconds."""
    if request.node.get_closest_marker("torch"):
        return

    def compare(folder: Path, end_of_text: str, source: str, beat: Callable[[], None]) -> Comparison:
        rows = int(json.loads((folder / "config.json").read_text())["vocab_size"])
        return Comparison(architecture="LlamaForCausalLM", embedding_rows=rows)

    monkeypatch.setattr(check, "compare", compare)


@pytest.fixture
def model(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A base model's folder."""
    return write_model(tmp_path / "base", tokenizer)


@pytest.fixture
def board() -> Board:
    """What prepare says while it works."""
    return Board()


@pytest.fixture
def config(tmp_path: Path, model: Path) -> PrepareConfig:
    """Two small sources, valid as it stands."""
    domain = write_jsonl(tmp_path / "domain.jsonl", documents(120))
    general = write_jsonl(tmp_path / "general.jsonl", documents(80, first=10_000))
    return PrepareConfig(
        model_source=f"file://{model}",
        domain=(TextSource(source=f"file://{domain}"),),
        general=(TextSource(source=f"file://{general}"),),
        held_out_fraction=0.05,
        sequence_length_tokens=128,
        global_batch_size=4,
        seed=7,
    )


@pytest.fixture
def prepare(tmp_path: Path, board: Board) -> Callable[..., PrepareReport]:
    """Runs the stage in a work folder."""
    from dapt_trainer.stages.prepare import run

    def prepared(config: PrepareConfig, *, work: Path | None = None, try_number: int = 1) -> PrepareReport:
        work = work or tmp_path / "work"
        work.mkdir(exist_ok=True)
        identity = RunIdentity(
            namespace="default",
            name="toy",
            uid="u",
            stage="prepare",
            attempt=1,
            try_number=try_number,
            fence=1,
        )
        stage = StageFile(run=identity, kind="prepare", config=config)
        report = run(config, StageContext(stage=stage, work=work, scratch=tmp_path, progress=board))
        assert isinstance(report, PrepareReport)
        return report

    return prepared
