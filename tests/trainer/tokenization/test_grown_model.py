"""A grown model from prepare to training: what is measured, what is trained, and that merging loses nothing."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dapt_contract.run_identity import RunIdentity
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.blend import Blend, BlendConfig
from dapt_contract.stages.common import LoraConfig, Member, ModelReference
from dapt_contract.stages.prepare import PrepareConfig, PrepareReport, TextSource, TokenizerExtensionConfig
from dapt_trainer.context import StageContext
from dapt_trainer.data.packing.held_out import HALVES, read_held_out
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.perplexity import HeldOutScoring, side_perplexity
from dapt_trainer.modeling.lora import with_lora
from dapt_trainer.modeling.save_weights import save_weights
from dapt_trainer.modeling.stored_models.model_folder import load_tokenizer
from dapt_trainer.tokenization.grow_model import check_model, grow_model, new_token_ids
from support.toy_adaptation import make_toy
from support.toy_corpus import Board
from support.toy_training import FILTERS, make_context, pretrain_config
from support.written import load_recipe

pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(text) for text in FILTERS)]
GROWN = "model-extended"
TEXT = "the sensor cools the turbine at low pressure."


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PrepareReport]:
    """A work volume after prepare, and its report."""
    from dapt_trainer.data.run_module import FinishedProcess
    from dapt_trainer.stages.prepare import run
    from dapt_trainer.tokenization import grow_in_prepare

    root = tmp_path_factory.mktemp("toy")
    make_toy(root)
    config = PrepareConfig(
        model_source=f"file://{root}/base",
        domain=(TextSource(source=f"file://{root}/text/domain.jsonl"),),
        general=(TextSource(source=f"file://{root}/text/general.jsonl"),),
        held_out_fraction=0.2,
        sequence_length_tokens=32,
        tokenizer_extension=TokenizerExtensionConfig(vocabulary_size=25, minimum_frequency=20),
    )
    identity = RunIdentity(
        namespace="tests", name="toy", uid="0", stage="prepare", attempt=1, try_number=1, fence=1
    )
    work = root / "work"
    work.mkdir()
    context = StageContext(
        stage=StageFile(run=identity, kind="prepare", config=config),
        work=work,
        scratch=root,
        progress=Board(),
    )

    def in_this_process(_module: str, arguments: list[str], *_: object) -> FinishedProcess:
        if arguments[0] == "check":
            check_model(Path(arguments[1]), int(arguments[2]))
        else:
            grow_model(Path(arguments[1]), Path(arguments[2]))
        return FinishedProcess(0, "", "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grow_in_prepare, "run_module", in_this_process)
        report = run(config, context)
    assert isinstance(report, PrepareReport)
    return work, report


@pytest.fixture
def work(prepared: tuple[Path, PrepareReport], tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared[0], tmp_path / "work"))


def naive_nll(model: Any, ids: list[int], context: int, *, lead: int) -> float:
    """Of a document alone, one token after the other, without the tokens of its lead."""
    total = 0.0
    for place in range(lead, len(ids)):
        start = (place - 1) // context * context
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:place]])).logits[0, -1].double()
        total -= float(torch.log_softmax(logits, 0)[ids[place]])
    return total


def lead_of(tokenizer: Any, text: str, size: int) -> int:
    """The tokens that spell the first bytes of a text."""
    spelled = 0
    for number, token in enumerate(tokenizer.convert_ids_to_tokens(tokenizer.encode(text))):
        if spelled == size:
            return number
        spelled += len(token)
    raise AssertionError("the lead ends within a token")


@pytest.mark.parametrize("weights", ["model", GROWN])
def test_held_out_text_is_in_the_tokens_of_the_weights_and_counted_in_the_base_models(
    prepared: tuple[Path, PrepareReport], weights: str
) -> None:
    work, _ = prepared
    model = load_recipe(work, ModelReference(weights=weights), precision="fp32")
    tokenizer: Any = load_tokenizer(work, weights)
    measured = side_perplexity(
        model,
        work,
        "domain",
        HeldOutScoring(32),
        tokenizer=tokenizer,
    )
    base: Any = load_tokenizer(work)
    grown: Any = load_tokenizer(work, GROWN)
    for half, value in zip(HALVES, (measured.a, measured.b), strict=True):
        documents = read_held_out(work, "domain", half)
        texts = [document.text for document in documents]
        # Of each document the first token of the extended tokenizer, in which that of the base model begins.
        leads = [len(grown.convert_ids_to_tokens(grown.encode(text))[0]) for text in texts]
        nll = sum(
            naive_nll(model, tokenizer.encode(text), 32, lead=lead_of(tokenizer, text, size))
            for text, size in zip(texts, leads, strict=True)
        )
        assert value.nll_nats == pytest.approx(nll, rel=1e-5)
        assert value.tokens == sum(
            len(base.encode(text)) - lead_of(base, text, size)
            for text, size in zip(texts, leads, strict=True)
        )
        size = sum(len(text.encode()) for text in texts) - sum(leads)
        assert value.bytes == size
        assert value.bits_per_byte == pytest.approx(nll / math.log(2) / size, rel=1e-5)


def test_tokenizer_facts_report_the_gain_of_the_extension(prepared: tuple[Path, PrepareReport]) -> None:
    work, report = prepared
    facts = report.facts.tokenizer
    assert facts is not None
    assert facts.added_tokens == len(new_token_ids(work)) == 25
    base: Any = load_tokenizer(work)
    grown: Any = load_tokenizer(work, GROWN)
    for side, before, after in (
        ("domain", facts.domain_tokens_per_word_before, facts.domain_tokens_per_word_after),
        ("general", facts.general_tokens_per_word_before, facts.general_tokens_per_word_after),
    ):
        texts = [document.text for half in HALVES for document in read_held_out(work, side, half)]  # type: ignore[arg-type]
        words = sum(len(text.split()) for text in texts)
        assert before == pytest.approx(sum(len(base.encode(text)) for text in texts) / words)
        assert after == pytest.approx(sum(len(grown.encode(text)) for text in texts) / words)
    assert facts.domain_tokens_per_word_after < 0.8 * facts.domain_tokens_per_word_before


def untie(work: Path) -> None:
    """The same grown model with a head of its own."""
    model = load_recipe(work, ModelReference(weights=GROWN), precision="fp32")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone() * 0.5)
    model.save_pretrained(work / GROWN)


def trained(work: Path, folder: str, *, seed: int = 1) -> Any:
    """A few steps on one sentence, with adapters and new rows; saved below the work volume."""
    model = load_recipe(work, ModelReference(weights=GROWN), precision="fp32")
    lora = LoraConfig(rank=4, embeddings=True)
    model = with_lora(model, lora, seed=seed, new_token_ids=new_token_ids(work))
    tokenizer: Any = load_tokenizer(work, GROWN)
    ids = torch.tensor([tokenizer.encode(TEXT)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_weights(model, tokenizer, work / folder)
    return model.eval()


@pytest.mark.parametrize("tied", [True, False])
def test_merging_keeps_the_trained_rows_of_both_matrices(work: Path, tied: bool) -> None:
    if not tied:
        untie(work)
    model = trained(work, "adapter")
    start = load_recipe(work, ModelReference(weights=GROWN), precision="fp32")
    merged = load_recipe(work, ModelReference(weights=GROWN, adapters=("adapter",)), precision="fp32")
    tokenizer: Any = load_tokenizer(work, GROWN)
    new = list(new_token_ids(work))
    ids = torch.tensor([tokenizer.encode(TEXT)])
    assert set(ids[0].tolist()) & set(new)
    assert torch.allclose(merged(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)
    matrices = [(start.get_input_embeddings().weight, merged.get_input_embeddings().weight)]
    matrices.append((start.lm_head.weight, merged.lm_head.weight))
    for before, after in matrices:
        assert torch.equal(before[: new[0]], after[: new[0]]), "old rows stay the base model's"
        assert not torch.allclose(before[new], after[new], atol=1e-3)
    assert (merged.lm_head.weight is merged.get_input_embeddings().weight) == tied
    merged.save_pretrained(work / "published")
    again = load_recipe(work, ModelReference(weights="published"), precision="fp32")
    assert torch.equal(again(input_ids=ids).logits, merged(input_ids=ids).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_blends_of_adapters_with_new_rows_are_blends_of_the_rows(work: Path, tied: bool) -> None:
    if not tied:
        untie(work)
    trained(work, "one")
    trained(work, "other", seed=2)

    def rows(**recipe: Any) -> tuple[torch.Tensor, torch.Tensor]:
        model = load_recipe(work, ModelReference(weights=GROWN, **recipe), precision="fp32")
        return model.get_input_embeddings().weight.detach(), model.lm_head.weight.detach()

    start, one, other = rows(), rows(adapters=("one",)), rows(adapters=("other",))
    halfway = rows(adapters=("one",), interpolation=0.5, origin=GROWN)
    mean = rows(adapters=("one",), averaged_with=(Member(weights=GROWN, adapters=("other",)),))
    for place in range(2):
        assert not torch.allclose(one[place], other[place], atol=1e-3)
        assert torch.allclose(halfway[place], (start[place] + one[place]) / 2, atol=1e-6)
        assert torch.allclose(mean[place], (one[place] + other[place]) / 2, atol=1e-6)


def test_blends_are_measured_in_the_tokens_of_the_grown_tokenizer(work: Path, tmp_path: Path) -> None:
    from dapt_trainer.stages.blend import run

    trained(work, "one")
    halfway = ModelReference(weights=GROWN, adapters=("one",), interpolation=0.5, origin=GROWN)
    config = BlendConfig(blends=(Blend(candidate="a1-s3-i0.5", model=halfway),), context_length_tokens=32)
    (row,) = run(config, make_context(work, tmp_path, config, kind="blend")).facts.rows
    model = load_recipe(work, halfway, precision="fp32")
    tokenizer: Any = load_tokenizer(work, GROWN)
    documents = read_held_out(work, "domain", "a")
    # The first token of the extended tokenizer, in whatever tokens of the base model.
    nll = sum(naive_nll(model, tokenizer.encode(document.text), 32, lead=1) for document in documents)
    assert row.domain_a_nats == pytest.approx(
        nll / sum(document.scored_tokens for document in documents), rel=1e-5
    )


def test_only_adapters_and_new_rows_are_trained(work: Path) -> None:
    untie(work)
    model = load_recipe(work, ModelReference(weights=GROWN), precision="fp32")
    model = with_lora(model, LoraConfig(rank=4, embeddings=True), seed=1, new_token_ids=new_token_ids(work))
    others = {
        name: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "lora_" not in name
    }
    assert sorted(others.values()) == [(25, 32), (25, 32)]
    assert all("trainable_tokens_delta" in name for name in others)


def test_pretraining_trains_the_new_rows_and_its_checkpoints_hold_them(work: Path, tmp_path: Path) -> None:
    from dapt_trainer.stages.pretrain import run

    config = pretrain_config(
        model=ModelReference(weights=GROWN),
        lora=LoraConfig(rank=4, embeddings=True),
        total_steps=2,
        checkpoint_steps=(2,),
        base_general_perplexity=1e6,
    )
    report = run(config, make_context(work, tmp_path, config))
    (checkpoint,) = report.facts.checkpoints
    folder = next((work / "stages").rglob("checkpoint-2/adapter_model.safetensors")).parent
    saved = load_file(folder / "adapter_model.safetensors")
    (rows,) = [tensor for name, tensor in saved.items() if "trainable_tokens_delta" in name]
    start = load_file(work / GROWN / "model.safetensors")["model.embed_tokens.weight"]
    new = list(new_token_ids(work))
    assert rows.shape == (25, 32)
    assert not torch.allclose(rows, start[new], atol=1e-4)
    reference = ModelReference(weights=GROWN, adapters=(str(folder.relative_to(work)),))
    merged = load_recipe(work, reference, precision="fp32")
    assert torch.equal(merged.get_input_embeddings().weight[new], rows)
    measured = side_perplexity(
        merged,
        work,
        "domain",
        HeldOutScoring(32),
        tokenizer=load_tokenizer(work, GROWN),
    )
    for half, value, reported in zip(
        HALVES,
        (measured.a, measured.b),
        (checkpoint.domain_a_nats, checkpoint.domain_b_nats),
        strict=True,
    ):
        base_tokens = sum(document.scored_tokens for document in read_held_out(work, "domain", half))
        assert reported == pytest.approx(value.nll_nats / base_tokens, rel=1e-4)


def test_new_rows_of_a_model_that_is_spread_over_the_ranks_are_refused(work: Path) -> None:
    model = load_recipe(work, ModelReference(weights=GROWN), precision="fp32")
    model.lm_head.weight.ds_id = 0  # DeepSpeed's mark of a parameter whose values lie on several ranks
    with pytest.raises(InputError) as caught:
        with_lora(model, LoraConfig(embeddings=True), seed=1, new_token_ids=(400,))
    assert str(caught.value) == (
        "spec.pretraining.distribution.zeroStage: with 3, adapters cannot train the rows of new tokens "
        "(spec.model.tokenizer.extend); write 2, with offload: optimizer where memory is short, or train all weights"
    )
