"""prepare with a tokenizer that grows: what it learns from, what it leaves, and the same again after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from dapt_contract.stages.prepare import PrepareConfig, TextSource, TokenizerExtensionConfig, TokenizerFacts
from dapt_trainer.data.packing.data_manifest import read_manifest
from dapt_trainer.data.packing.held_out import HALVES, read_held_out
from dapt_trainer.data.packing.shards import open_shards
from dapt_trainer.data.run_module import FinishedProcess
from dapt_trainer.digests import sha256_of_file, weights_digest
from dapt_trainer.errors import InputError
from dapt_trainer.tokenization import grow_in_prepare
from dapt_trainer.tokenization.grow_model import read_extension
from support.toy_corpus import Board, documents, write_jsonl

WANTED = TokenizerExtensionConfig(vocabulary_size=30, minimum_frequency=10)
WORDS = ("thrombosis", "anticoagulation", "stenosis", "heparin")


@pytest.fixture
def extending(config: PrepareConfig, tmp_path: Path) -> PrepareConfig:
    """The small corpus with four words that the tokenizer does not know."""
    texts = [f"{text} {WORDS[number % 4]} {WORDS[number % 3]}" for number, text in enumerate(documents(120))]
    domain = write_jsonl(tmp_path / "unknown-words.jsonl", texts)
    return config.model_copy(
        update={"domain": (TextSource(source=f"file://{domain}"),), "tokenizer_extension": WANTED}
    )


@pytest.fixture(autouse=True)
def matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the helper that grows the matrices with torch: links the weights as they are."""

    def run(_module: str, arguments: list[str], _environment: object, beat: object) -> FinishedProcess:
        what, origin, target = arguments[0], *map(Path, arguments[1:])
        if what == "check":
            return FinishedProcess(0, "", "")
        for path in origin.glob("*.safetensors"):
            (target / path.name).write_bytes(path.read_bytes())
        beat()  # type: ignore[operator]
        return FinishedProcess(0, "", "")

    monkeypatch.setattr(grow_in_prepare, "run_module", run)


def held_out(work: Path, side: str) -> list[str]:
    return [document.text for half in HALVES for document in read_held_out(work, side, half)]  # type: ignore[arg-type]


def test_it_learns_from_the_domains_training_text_alone(
    extending, prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    grow_tokenizer = grow_in_prepare.grow_tokenizer

    def noted(tokenizer_json, texts, *rest, **options):
        seen.extend(texts())
        return grow_tokenizer(tokenizer_json, texts, *rest, **options)

    monkeypatch.setattr(grow_in_prepare, "grow_tokenizer", noted)
    facts = prepare(extending).facts
    out = held_out(tmp_path / "work", "domain")
    assert out
    assert not set(seen) & set(out)
    assert len(set(seen)) == len(seen) == facts.sources[0].documents
    lines = (tmp_path / "unknown-words.jsonl").read_text().splitlines()
    whole = {json.loads(line)["text"] for line in lines}
    assert set(seen) | set(out) == whole


def test_of_a_large_corpus_a_share_is_read_the_same_each_time(
    extending, prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    grow_tokenizer = grow_in_prepare.grow_tokenizer

    def noted(tokenizer_json, texts, *rest, **options):
        seen.append(list(texts()))
        return grow_tokenizer(tokenizer_json, texts, *rest, **options)

    monkeypatch.setattr(grow_in_prepare, "grow_tokenizer", noted)
    prepare(extending)
    size = (tmp_path / "unknown-words.jsonl").stat().st_size
    monkeypatch.setattr(grow_in_prepare, "SAMPLE_BYTES", size // 3)
    for name in ("one", "two"):
        prepare(extending, work=tmp_path / name)
    whole, one, two = seen
    assert one == two
    assert set(one) < set(whole)
    assert 0.15 < len(one) / len(whole) < 0.55
    assert not set(one) & set(held_out(tmp_path / "one", "domain"))


def test_shards_and_only_they_are_in_new_tokens(extending, prepare, tmp_path: Path) -> None:
    facts = prepare(extending).facts
    work = tmp_path / "work"
    old = Tokenizer.from_file(str(work / "model/tokenizer.json"))
    new = Tokenizer.from_file(str(work / "model-extended/tokenizer.json"))
    ids = {
        int(number)
        for shard in open_shards(work)
        for row in range(len(shard))
        for number in shard.sequence(row).input_ids
    }
    note = read_extension(work / "model-extended")
    assert facts.tokenizer is not None
    assert facts.tokenizer.added_tokens == len(note.ids) > 0
    assert facts.tokenizer.model_digest == weights_digest(work / "model-extended")
    assert len(ids & set(note.ids)) > 4
    for half in HALVES:
        for document in read_held_out(work, "domain", half):
            assert document.ids == old.encode(document.text, add_special_tokens=False).ids
    words = " ".join(f" {word}" for word in WORDS)
    assert len(new.encode(words).ids) < 0.7 * len(old.encode(words).ids)
    documents_of_shards = [
        new.decode(piece.tolist())
        for shard in open_shards(work)
        if shard.side == "domain"
        for row in range(len(shard))
        for packed in [shard.sequence(row)]
        for piece in np.split(packed.input_ids[: packed.used], packed.starts[1:])
    ]
    assert any("anticoagulation" in text for text in documents_of_shards)
    assert facts.domain_tokens == facts.sources[0].train_tokens
    plain = prepare(extending.model_copy(update={"tokenizer_extension": None}), work=tmp_path / "plain").facts
    assert facts.domain_tokens < 0.9 * plain.domain_tokens
    assert facts.sources[0].held_out_tokens == plain.sources[0].held_out_tokens
    assert facts.model == plain.model


def test_the_base_model_lies_there_as_without_an_extension(extending, prepare, tmp_path: Path) -> None:
    prepare(extending)
    prepare(extending.model_copy(update={"tokenizer_extension": None}), work=tmp_path / "plain")
    for path in sorted((tmp_path / "plain/model").iterdir()):
        assert (tmp_path / "work/model" / path.name).read_bytes() == path.read_bytes()
    assert not (tmp_path / "plain/model-extended").exists()


class Killed(BaseException):
    """Ends a stage where no handler stands."""


class Killer(Board):
    """Kills at the n-th sign of life."""

    left = 0

    def update(self, **fields: object) -> None:
        self.heartbeat()

    def heartbeat(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


def test_killed_anywhere_it_ends_with_the_same_grown_model(
    extending, prepare, tmp_path: Path, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(work: Path) -> dict[str, str]:
        return {
            str(path.relative_to(work)): sha256_of_file(path)
            for name in ("model", "model-extended", "data", "held-out")
            for path in sorted((work / name).rglob("*"))
            if path.is_file() and path.name != "manifest.json"
        }

    whole = prepare(extending, work=tmp_path / "whole")
    killer, work = Killer(), tmp_path / "broken"
    monkeypatch.setattr(board, "update", killer.update)
    monkeypatch.setattr(board, "heartbeat", killer.heartbeat)
    beats = 0
    while True:
        killer.left = beats
        try:
            again = prepare(extending, work=work, try_number=beats + 1)
            break
        except Killed:
            assert not (work / "data/manifest.json").exists()
        beats += 1
    assert beats > 10
    assert files(work) == files(tmp_path / "whole")
    assert again.facts == whole.facts
    assert read_manifest(work).report.facts.tokenizer == whole.facts.tokenizer


def test_a_tokenizer_without_candidates_stays_and_gets_a_warning(extending, prepare, tmp_path: Path) -> None:
    rare = TokenizerExtensionConfig(vocabulary_size=30, minimum_frequency=100_000)
    facts = prepare(extending.model_copy(update={"tokenizer_extension": rare})).facts
    assert facts.tokenizer is not None
    assert facts.tokenizer.added_tokens == 0
    assert facts.tokenizer.domain_tokens_per_word_after == facts.tokenizer.domain_tokens_per_word_before
    assert (
        "The tokenizer got no new token: no two tokens inside a word occur together 100000 times in the domain's "
        "training text; remove spec.model.tokenizer.extend, or lower its minimumFrequency." in facts.warnings
    )
    work = tmp_path / "work"
    assert (work / "model-extended/model.safetensors").samefile(work / "model/model.safetensors")


def test_little_gain_gets_a_warning_with_its_number() -> None:
    facts = TokenizerFacts(
        added_tokens=1200,
        domain_tokens_per_word_before=1.50,
        domain_tokens_per_word_after=1.485,
        general_tokens_per_word_before=1.3,
        general_tokens_per_word_after=1.3,
    )
    assert grow_in_prepare.warnings_of(facts, WANTED) == (
        "The 1,200 new tokens save 1.0% of the domain's held-out tokens: below 2% the larger matrices and the rows "
        "that must be learned cost more than that saves; consider removing spec.model.tokenizer.extend.",
    )
    better = facts.model_copy(update={"domain_tokens_per_word_after": 1.47})
    assert grow_in_prepare.warnings_of(better, WANTED) == ()


def test_a_tokenizer_that_cannot_grow_is_refused_before_the_corpus_is_read(
    extending, prepare, tmp_path: Path, board: Board
) -> None:
    path = Path(extending.model_source.removeprefix("file://")) / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["end_of_word_suffix"] = "</w>"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        prepare(extending)
    assert caught.value.problems == (
        f"spec.model.tokenizer.extend: the tokenizer of {extending.model_source} marks the inside or the end of words "
        "in its tokens, which appended merges cannot keep; remove the field",
    )
    assert "reading and tokenizing the corpus" not in board.activities


def test_tokens_outside_of_tokenizer_json_are_refused(extending, prepare) -> None:
    path = Path(extending.model_source.removeprefix("file://")) / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["added_tokens_decoder"] = {"0": {"content": "<|end|>"}, "400": {"content": "<think>"}}
    path.write_text(json.dumps(settings))
    # The embedding has rows for more tokens than tokenizer.json has.
    weights = path.with_name("model.safetensors")
    tensors = load_file(weights)
    rows = len(tensors["model.embed_tokens.weight"])
    padded = {
        name: np.pad(tensor, ((0, 416 - rows), (0, 0))) if len(tensor) == rows else tensor
        for name, tensor in tensors.items()
    }
    save_file(padded, weights, metadata={"format": "pt"})
    config = path.with_name("config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 416}))
    with pytest.raises(InputError) as caught:
        prepare(extending)
    assert str(caught.value) == (
        f"spec.model.tokenizer.extend: the tokenizer of {extending.model_source} has a token that its tokenizer.json "
        "lacks (<think>, id 400), whose id an appended one would take; save the model with a tokenizer.json that has "
        "it, or remove the field"
    )


def test_matrices_that_cannot_grow_are_refused_before_the_corpus_is_read(
    extending, prepare, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def run(_module: str, arguments: list[str], *_: object) -> FinishedProcess:
        calls.append(arguments)
        return FinishedProcess(1, "", "its embedding has 399 rows for 400 tokens")

    monkeypatch.setattr(grow_in_prepare, "run_module", run)
    with pytest.raises(InputError) as caught:
        prepare(extending)
    assert caught.value.problems == (
        f"spec.model.tokenizer.extend: {extending.model_source} cannot be extended: its embedding has 399 rows for 400 "
        "tokens; remove the field",
    )
    assert [(call[0], call[2]) for call in calls] == [("check", "400")]
    assert "reading and tokenizing the corpus" not in board.activities
