"""Perplexity against the naive loop: each token once, one document at a time, whole logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from dapt_trainer.errors import InputError
from dapt_trainer.evaluation import scoring
from dapt_trainer.evaluation.perplexity import HeldOutScoring, held_out_perplexity, windows
from dapt_trainer.evaluation.scoring import Scorer, Tree, batches_by_length, evaluating, score_everywhere
from dapt_trainer.evaluation.sharing.work_share import ALL_WORK

pytestmark = pytest.mark.torch
END = 0


@dataclass(frozen=True)
class Text:
    ids: list[int]
    scored_bytes: int
    lead_tokens: int = 0


def llama(seed: int = 0, **changes: object) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.4, **changes,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def texts(lengths: list[int], seed: int = 1) -> list[Text]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Text(torch.randint(1, 97, (length,), generator=generator).tolist(), scored_bytes=3 * length)
        for length in lengths
    ]


def naive_nll(model: torch.nn.Module, ids: list[int], context: int) -> float:
    total = 0.0
    for start in range(0, len(ids), context):
        before = ids[start - 1] if start else END
        part = ids[start : start + context]
        with torch.no_grad():
            logits = model(torch.tensor([[before, *part[:-1]]])).logits[0].double()
        total -= sum(
            float(torch.log_softmax(row, 0)[target]) for row, target in zip(logits, part, strict=True)
        )
    return total


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_equals_the_naive_loop_whatever_the_batch(batch_tokens: int) -> None:
    model, documents = llama(), texts([1, 5, 33, 16, 17, 70, 2, 40])
    measured = held_out_perplexity(
        model, documents, HeldOutScoring(32, batch_tokens=batch_tokens), end_of_text_id=END
    )
    expected = sum(naive_nll(model, document.ids, 32) for document in documents)
    assert measured.tokens == 184
    assert measured.bytes == 552
    assert measured.loss_nats == pytest.approx(expected / 184, abs=1e-5)
    assert measured.perplexity == pytest.approx(math.exp(expected / 184), rel=1e-5)


@pytest.mark.parametrize(("lead", "context"), [(1, 8), (3, 8), (8, 8), (11, 8), (1, 64)])
def test_a_lead_is_context_and_is_not_scored(lead: int, context: int) -> None:
    """Against the model on the document alone, as training sees it: end-of-text stands nowhere."""
    model = llama()
    documents = [Text(text.ids, text.scored_bytes, lead) for text in texts([33, 16, 12, 11])]
    measured = held_out_perplexity(model, documents, HeldOutScoring(context), end_of_text_id=END)
    nll = 0.0
    for document in documents:
        for place in range(lead, len(document.ids)):
            # Documents longer than the context are cut into windows, each of which begins with one token of context.
            start = (place - 1) // context * context
            with torch.no_grad():
                logits = model(torch.tensor([document.ids[start:place]])).logits[0, -1].double()
            nll -= float(torch.log_softmax(logits, 0)[document.ids[place]])
    assert measured.tokens == 72 - 4 * lead
    assert measured.nll_nats == pytest.approx(nll, rel=1e-5)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity() -> None:
    model = llama()
    torch.nn.init.zeros_(model.lm_head.weight)
    measured = held_out_perplexity(model, texts([9, 50]), HeldOutScoring(16), end_of_text_id=END)
    assert measured.perplexity == pytest.approx(97.0, rel=1e-6)
    assert measured.bits_per_byte == pytest.approx(math.log2(97) / 3, rel=1e-6)


def test_every_token_is_predicted_once_in_windows_of_the_context_length() -> None:
    cut = windows([11, 12, 13, 14, 15], 2, END)
    assert [(list(tree.context), [list(tokens) for tokens in tree.continuations]) for tree in cut] == [
        ([END], [[11, 12]]),
        ([12], [[13, 14]]),
        ([14], [[15]]),
    ]


def test_logits_in_small_chunks_change_nothing() -> None:
    model, tree = llama(), Tree([END], (texts([60])[0].ids,))
    with evaluating(model):
        whole = Scorer(model, pad_id=END).score([tree])[0][0]
        chunked = Scorer(model, pad_id=END, logits_bytes=1).score([tree])[0][0]
    assert chunked.log_likelihood_nats == pytest.approx(whole.log_likelihood_nats, abs=1e-5)


def test_soft_capped_logits_are_the_models_own() -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64, final_logit_softcapping=2.0,
        initializer_range=0.5, attn_implementation="eager",
    )  # fmt: skip
    model, documents = Gemma2ForCausalLM(config).eval(), texts([20, 31])
    measured = held_out_perplexity(model, documents, HeldOutScoring(32), end_of_text_id=END)
    expected = sum(naive_nll(model, document.ids, 32) for document in documents)
    assert measured.nll_nats == pytest.approx(expected, rel=1e-5)
    passes: list[tuple[int, ...]] = []
    model.register_forward_hook(lambda _model, _inputs, output: passes.append(tuple(output.logits.shape)))
    held_out_perplexity(model, documents, HeldOutScoring(32), end_of_text_id=END)
    assert set(passes) == {(1, 1, 97)}, "the logits of all positions are never computed at once"


def test_training_mode_is_restored_for_every_module() -> None:
    model = llama(attention_dropout=0.5)
    model.train()
    model.model.layers[0].eval()
    documents = texts([30])
    first = held_out_perplexity(model, documents, HeldOutScoring(32), end_of_text_id=END)
    assert first == held_out_perplexity(model, documents, HeldOutScoring(32), end_of_text_id=END)
    assert model.training
    assert model.model.layers[1].self_attn.training
    assert not model.model.layers[0].self_attn.training


def test_no_documents_is_an_input_error() -> None:
    with pytest.raises(InputError) as caught:
        held_out_perplexity(llama(), [Text([], 0)], HeldOutScoring(8), end_of_text_id=END)
    assert str(caught.value) == (
        "held-out text: no token to score; raise corpus.heldOut.fraction or give more text"
    )


def test_rows_that_are_too_long_for_a_mask_hold_one_continuation(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = texts([30, 3, 4, 5, 2, 2])
    trees = [
        Tree(ids[0].ids, tuple(text.ids for text in ids[1:3])),
        Tree(ids[3].ids, tuple(text.ids for text in ids[4:])),
    ]
    model = llama()
    in_shared_rows = score_everywhere(Scorer(model, pad_id=END), trees, batch_tokens=64, share=ALL_WORK)
    masked: list[int] = []

    def note(_model: object, _arguments: object, inputs: dict[str, torch.Tensor]) -> None:
        if "attention_mask" in inputs:
            masked.append(inputs["input_ids"].shape[1])

    model.register_forward_pre_hook(note, with_kwargs=True)
    monkeypatch.setattr(scoring, "LONGEST_SHARED_TOKENS", 10)
    found = score_everywhere(Scorer(model, pad_id=END), trees, batch_tokens=10, share=ALL_WORK)
    assert max(masked) <= 10
    assert [scored.greedy for scored in found] == [scored.greedy for scored in in_shared_rows]
    assert [scored.log_likelihood_nats for scored in found] == pytest.approx(
        [scored.log_likelihood_nats for scored in in_shared_rows], abs=1e-4
    )


@pytest.mark.parametrize("kind", ["llama-sdpa", "llama-eager", "gpt2", "bloom"])
def test_answers_that_share_a_context_score_as_in_separate_rows(kind: str) -> None:
    if kind == "gpt2":
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=2)
        ).eval()
    elif kind == "bloom":  # its positions come from the mask, so answers cannot share a row
        torch.manual_seed(0)
        model = BloomForCausalLM(BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=2)).eval()
    else:
        model = llama(attn_implementation=kind.removeprefix("llama-"))
    ids = texts([12, 3, 1, 7, 5, 2, 4])
    trees = [
        Tree(ids[0].ids, tuple(text.ids for text in ids[1:4])),
        Tree(ids[4].ids, tuple(text.ids for text in ids[5:7])),
    ]
    with evaluating(model):
        shared = Scorer(model, pad_id=END).score(trees)
        for tree, row in zip(trees, shared, strict=True):
            for tokens, result in zip(tree.continuations, row, strict=True):
                logits = model(torch.tensor([[*tree.context, *tokens]])).logits[0, len(tree.context) - 1 : -1]
                expected = (
                    torch.log_softmax(logits.double(), -1).gather(1, torch.tensor(tokens)[:, None]).sum()
                )
                assert result.log_likelihood_nats == pytest.approx(float(expected), abs=1e-4)
                assert result.greedy == (logits.argmax(-1).tolist() == list(tokens))


def test_batches_are_sorted_and_bounded_by_padded_tokens() -> None:
    assert batches_by_length([3, 9, 4, 4, 20], 12) == [[4], [1], [2, 3, 0]]
