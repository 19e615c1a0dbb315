"""Tiny tokenizers of the kinds that models come with, trained on the spot; no network, no torch."""

from __future__ import annotations

import io
import json
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PLAIN = (
    "The patient was seen in the morning and the doctor asked for a scan of the heart.",
    "A small dose was given at night; the fever fell, and the nurse noted it in the file.",
    "Water the garden in summer, paint the gate in winter, and mend the roof before the rain comes.",
    "He said that it's fine, they're late, and we'll go at 10 or 11 in 2024.",
    "def read(path):\n    with open(path) as file:\n        return file.read()\n",
) * 8
DOMAIN = (
    "Thrombosis of the vein, stenosis of the artery: anticoagulation with heparin 5000 units.",
    "The thrombosis recurred after anticoagulation was stopped; stenosis was excluded.",
    "Dose ≥ 15 µg/kg, heparin-induced thrombocytopenia was considered (thrombocytopenia score 6).",
    "血栓症の治療 and тромбоз вены were listed as synonyms of thrombosis.",
    "for artery in stenosis:\n    anticoagulation(artery, dose=15)\n",
) * 30
TEXTS = (
    *PLAIN[:5],
    *DOMAIN[:5],
    "Ünïcödé ñandú — “quotes” … naïve café",
    "Ελληνικά, русский текст, 中文文本, 日本語のテキスト, 한국어, العربية, हिन्दी, ไทย",
    "👩‍⚕️🩺 emojis 🙂🙂, flags 🇩🇪",
    "  two  spaces,\ttabs\t\tand\n\n\nlines\r\n   ",
    " leading and trailing ",
    "thrombosisthrombosis prothrombosis THROMBOSIS Thrombosis thromboses",
    "x = {'a': 1_000, \"b\": [1.5e-3, 0xFF]}  # comment\n\treturn x[::-1]",
    "\u200bzero width, combining e\u0301, \ufeff bom",
    "",
    " ",
    "\n",
)
"""Scripts, code, emojis, white space, and words with new tokens inside others."""
SPECIALS = ("<|end|>", "<|user|>")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
LLAMA3 += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(*, vocabulary: int = 420, pattern: str = GPT2, ignore_merges: bool = False) -> str:
    """As GPT-2, Llama 3 and Qwen have it; the added tokens lie behind the vocabulary."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(PLAIN, trainer)
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.add_tokens(["<tool>"])
    return str(tokenizer.to_str())


def sentencepiece_bpe(*, vocabulary: int = 420, metaspace: bool = True) -> str:
    """As Llama 2 and Mistral have it (`metaspace`), or Gemma: byte fallback, and no split into words before merges."""
    proto = _train("bpe", vocabulary)
    pieces = [(proto.id_to_piece(n), proto.get_score(n)) for n in range(proto.get_piece_size())]
    ids = {text: number for number, (text, _) in enumerate(pieces)}
    merges = sorted(
        (-score, number, text[:cut], text[cut:])
        for number, (text, score) in enumerate(pieces)
        if not text.startswith("<")
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    )
    model = models.BPE(
        vocab=ids,
        merges=[(left, right) for _, _, left, right in merges],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return str(tokenizer.to_str())


def unigram(*, vocabulary: int = 420, behind: bool = False) -> str:
    """Scored pieces with byte fallback; `behind`: an added token follows them."""
    proto = _train("unigram", vocabulary)
    pieces = [(proto.id_to_piece(n), proto.get_score(n)) for n in range(proto.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", *(["<sep>"] if behind else [])])
    return str(tokenizer.to_str())


def _train(kind: str, vocabulary: int) -> Any:
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in PLAIN for line in text.splitlines()]),
        model_writer=written,
        vocab_size=vocabulary,
        model_type=kind,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def added_tokens(tokenizer_json: str) -> list[dict[str, Any]]:
    """As the file has them."""
    return list(json.loads(tokenizer_json)["added_tokens"])
