"""Base models that mean harm, each made of one small good one by one change, and what is said of each."""

# ruff: noqa: E501 (a sentence stands in one piece)

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.hostile_files import Canary

Spoil = Callable[[Path], object]
INDEX = "model.safetensors.index.json"
AGAIN = "; download the model again"
NO_CODE = ", which dapt never runs; use a model of an architecture that transformers knows"
BELONGS = "; correct config.json, or use the checkpoint that belongs to it"
ACCEPTED = ""
TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}


def settings(name: str, **changes: object) -> Spoil:
    """Change settings of a JSON file; it is made where there is none."""

    def spoil(model: Path) -> None:
        path = model / name
        value = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(value | changes))

    return spoil


def config(**changes: object) -> Spoil:
    return settings("config.json", **changes)


def text(name: str, content: str | bytes) -> Spoil:
    def spoil(model: Path) -> None:
        path = model / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def header(value: object, *, data: bytes = bytes(8), length: int | None = None) -> Spoil:
    """Write weights with this header, which is JSON or bytes."""

    def spoil(model: Path) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        size = len(body) if length is None else length
        (model / "model.safetensors").write_bytes(struct.pack("<Q", size) + body + data)

    return spoil


def index(**files: object) -> Spoil:
    """Name the weights by an index, with further entries."""

    def spoil(model: Path) -> None:
        (model / "model.safetensors").rename(model / "a.safetensors")
        entries = {"model.norm.weight": "a.safetensors", **files}
        (model / INDEX).write_text(json.dumps({"weight_map": entries}))

    return spoil


def linked(name: str, target: str) -> Spoil:
    """Put a link in the place of a file; `target` may name the folder's parent."""

    def spoil(model: Path) -> None:
        outside = model.parent / "secret"
        outside.write_text("the secret")
        (model / name).unlink(missing_ok=True)
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).symlink_to(target.format(outside=outside, model=model))

    return spoil


def several(*changes: Spoil) -> Spoil:
    def spoil(model: Path) -> None:
        for change in changes:
            change(model)

    return spoil


def tokenizer(**changes: object) -> Spoil:
    return settings("tokenizer.json", **changes)


def pickled(model: Path) -> None:
    """Put pickles that write the canary where weights may lie."""

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {Canary.path}",)

    for name in ("evil.bin", "pytorch_model.bin", "adapter_model.bin"):
        (model / name).write_bytes(pickle.dumps(Evil()))


def added(**token: object) -> Spoil:
    return tokenizer(added_tokens=[{"id": 0, "content": "<|end|>", **ADDED}, ADDED | token])


def split_by(pattern: str) -> Spoil:
    return tokenizer(
        pre_tokenizer={
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }
    )


def named(name: str) -> str:
    return f"{INDEX} names {name!r}, which is not the plain name of a .safetensors file in the folder{AGAIN}"


def damaged(reason: str) -> str:
    return f"model.safetensors is truncated or damaged ({reason}){AGAIN}"


def unreadable(name: str, reason: str) -> str:
    return f"{name} is not readable JSON ({reason}){AGAIN}"


def code(name: str, place: str) -> str:
    return f"{name} asks for code from the model's repository ({place}){NO_CODE}"


def elsewhere(name: str, place: str, value: object) -> str:
    return f"{name} asks for an implementation from elsewhere ({place}: {value!r}); remove the setting"


def size(key: str, value: str, limit: str, evidence: str) -> str:
    return f"config.json has {key}: {value}, and 0 to {limit} is possible ({evidence}){BELONGS}"


def leads(name: str) -> str:
    return f"{name} leads to {{outside}}, outside of the model's folder; copy the file into the folder"


OF_TENSORS = "the number of tensors in its files"
OF_DIMENSIONS = "the largest dimension of a tensor in its files"
NO_EVIDENCE = "more than its files bear out"
NO_MEANING = "the largest number that has a meaning there"
DEEP = '{"a":' * 100_000
MODELS: dict[str, tuple[Spoil, str]] = {
    # 1. Weights.
    "index names a pickle": (several(pickled, index(b="evil.bin")), named("evil.bin")),
    "index leads up": (index(b="../a.safetensors"), named("../a.safetensors")),
    "index has an absolute path": (index(b="/etc/a.safetensors"), named("/etc/a.safetensors")),
    "index has a backslash": (index(b="..\\a.safetensors"), named("..\\a.safetensors")),
    "index has a zero byte": (index(b="a\0.safetensors"), named("a\0.safetensors")),
    "index names a hidden file": (index(b=".a.safetensors"), named(".a.safetensors")),
    "index names a folder's file": (index(b="x/a.safetensors"), named("x/a.safetensors")),
    "index has a number": (index(b=7), named(7)),  # type: ignore[arg-type]
    "index has a list": (index(b=["a.safetensors"]), named(["a.safetensors"])),  # type: ignore[arg-type]
    "index names what is not there": (index(b="b.safetensors"), f"b.safetensors is missing, which {INDEX} names{AGAIN}"),
    "index is a list": (several(index(), text(INDEX, "[]")), f"{INDEX} is not readable JSON (holds a list and not an object){AGAIN}"),
    "index is deep": (several(index(), text(INDEX, DEEP)), f"{INDEX} is not readable JSON (nested too deeply){AGAIN}"),
    "index is empty": (several(index(), text(INDEX, '{"weight_map": {}}')), f"{INDEX} has no weight_map{AGAIN}"),
    "index has a list of files": (several(index(), text(INDEX, '{"weight_map": ["a.safetensors"]}')), f"{INDEX} has no weight_map{AGAIN}"),
    "index is good": (index(), ACCEPTED),
    "pickles next to the weights": (pickled, ACCEPTED),
    "pickles alone": (several(pickled, lambda m: (m / "model.safetensors").unlink()), "{source} has pickled weights only (.bin, .pt), which can run code when they are read; use a revision with safetensors, or convert the model"),
    "header of exabytes": (header(b"{}", length=1 << 62), damaged("its header is too long")),
    "header longer than the file": (header(b"{}", data=b"", length=9999), damaged("has 10 bytes, its header says 10007 or more")),
    "header is cut": (text("model.safetensors", b"\1\0\0"), damaged("has 3 bytes, a header begins with 8")),
    "header is a list": (header([]), damaged("its header is not an object")),
    "header is deep": (header(b"[" * 200_000), damaged("its header is nested too deeply")),
    "header has a long number": (header(b'{"a":' + b"9" * 5000 + b"}"), damaged("its header has a number of thousands of digits")),
    "header has a name twice": (header(b'{"a":{},"a":{}}'), damaged("its header has a name twice")),
    "header is not UTF-8": (header(b'{"\xff":1}'), damaged("its header is not UTF-8 text")),
    "tensor is a list": (header({"a": [1]}), damaged("a has no type that safetensors knows")),
    "tensor has an unknown type": (header({"a": TENSOR | {"dtype": "PICKLE"}}), damaged("a has no type that safetensors knows")),
    "tensor's type is a list": (header({"a": TENSOR | {"dtype": ["F32"]}}), damaged("a has no type that safetensors knows")),
    "tensor has a negative shape": (header({"a": TENSOR | {"shape": [-2]}}), damaged("a has no possible shape")),
    "tensor has half a row": (header({"a": TENSOR | {"shape": [0.5]}}), damaged("a has no possible shape")),
    "tensor has true rows": (header({"a": TENSOR | {"shape": [True]}}), damaged("a has no possible shape")),
    "tensor has NaN rows": (header(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}'), damaged("a has no possible shape")),
    "tensor has exabytes": (header({"a": TENSOR | {"shape": [1 << 39, 1 << 39]}}), damaged("a has no possible shape")),
    "tensor has many dimensions": (header({"a": TENSOR | {"shape": [1] * 1000}}), damaged("a has no possible shape")),
    "tensor's shape is an object": (header({"a": TENSOR | {"shape": {"0": 1}}}), damaged("a has no possible shape")),
    "tensor begins before the file": (header({"a": TENSOR | {"data_offsets": [-8, 0]}}), damaged("a has no possible place in the file")),
    "tensor ends before it begins": (header({"a": TENSOR | {"data_offsets": [8, 0]}}), damaged("a has no possible place in the file")),
    "tensor has three ends": (header({"a": TENSOR | {"data_offsets": [0, 4, 8]}}), damaged("a has no possible place in the file")),
    "tensor ends behind the file": (header({"a": TENSOR | {"data_offsets": [0, 1 << 39]}}), damaged("has 88 bytes, its header says 549755813968")),
    "tensors overlap": (header({"a": TENSOR, "b": TENSOR}), damaged("b begins within a")),
    "tensor is larger than its bytes": (header({"a": TENSOR | {"shape": [1000, 1000]}}), damaged("a has 8 bytes, its shape says 4000000")),
    # 2. Settings that name code, at any depth.
    "auto_map": (config(auto_map={"AutoModel": "evil.Model"}), code("config.json", "auto_map")),
    "auto_map in a part": (config(text_config={"auto_map": {"AutoConfig": "evil.C"}}), code("config.json", "text_config.auto_map")),
    "auto_map deep in lists": (config(a=[{"b": [{"auto_map": "evil.C"}]}]), code("config.json", "a.b.auto_map")),
    "auto_map of a tokenizer": (settings("tokenizer_config.json", auto_map=["evil.T", None]), code("tokenizer_config.json", "auto_map")),
    "auto_map of generation": (settings("generation_config.json", auto_map={"a": "evil.G"}), code("generation_config.json", "auto_map")),
    "custom generation": (settings("generation_config.json", custom_generate="org/evil"), code("generation_config.json", "custom_generate")),
    "trust in a configuration": (config(trust_remote_code=True), code("config.json", "trust_remote_code")),
    "no trust in a configuration": (config(trust_remote_code=False, auto_map={}), ACCEPTED),
    "pipelines": (config(custom_pipelines={"a": {"impl": "evil.P"}}), code("config.json", "custom_pipelines")),
    "other weights": (config(transformers_weights="adapter_model.bin"), "config.json names other weights than the folder's (transformers_weights: 'adapter_model.bin'); remove the setting"),
    "a GGUF file in settings": (settings("tokenizer_config.json", gguf_file="../evil.gguf"), "tokenizer_config.json names other weights than the folder's (gguf_file: '../evil.gguf'); remove the setting"),
    "attention from a hub": (config(_attn_implementation="org/evil"), elsewhere("config.json", "_attn_implementation", "org/evil")),
    "attention by its plain name": (config(attn_implementation="org/evil@main:f"), elsewhere("config.json", "attn_implementation", "org/evil@main:f")),
    "attention inside": (config(_attn_implementation_internal="paged|org/evil"), elsewhere("config.json", "_attn_implementation_internal", "paged|org/evil")),
    "attention of a part": (config(text_config={"_attn_implementation": {"": "org/evil"}}), elsewhere("config.json", "text_config._attn_implementation", {"": "org/evil"})),
    "attention of transformers": (config(_attn_implementation="sdpa", attn_config={"attn_impl": "torch"}), ACCEPTED),
    "experts from a hub": (config(experts_implementation="org/evil"), elsewhere("config.json", "experts_implementation", "org/evil")),
    "a plan for accelerators": (
        config(base_model_tp_plan={"layers.*.mlp.up_proj": "rowwise"}),
        "config.json says how accelerators divide the model (base_model_tp_plan), which only transformers does; remove the setting",
    ),
    "kernels from a hub": (config(use_kernels=True), f"config.json asks for kernels from a hub (use_kernels){NO_CODE}"),
    "a map of kernels": (config(kernel_config={"RMSNorm": "org/evil"}), f"config.json asks for kernels from a hub (kernel_config){NO_CODE}"),
    "a kernel by another name": (config(rope_kernel="org/evil:rope"), elsewhere("config.json", "rope_kernel", "org/evil:rope")),
    "a kernel's size": (config(linear_conv_kernel_dim=4, use_mamba_kernels=True), ACCEPTED),
    "quantized part": (config(text_config={"quantization_config": {"quant_method": "evil"}}), "config.json describes a quantized model (text_config.quantization_config); use the model before it was quantized"),
    "quantized": (config(quantization_config={"quant_method": "awq"}), "{source} is quantized: config.json has a quantization_config (awq); use the model before it was quantized"),
    "tokenizer of any class": (settings("tokenizer_config.json", tokenizer_class="pipeline"), "tokenizer_config.json names 'pipeline' as the class of the tokenizer (tokenizer_class); name one of transformers, such as PreTrainedTokenizerFast"),
    "tokenizer of a module": (settings("tokenizer_config.json", tokenizer_class="os.path.Tokenizer"), "tokenizer_config.json names 'os.path.Tokenizer' as the class of the tokenizer (tokenizer_class); name one of transformers, such as PreTrainedTokenizerFast"),
    "tokenizer of all classes": (settings("tokenizer_config.json", tokenizer_class="AutoTokenizer"), "tokenizer_config.json names 'AutoTokenizer' as the class of the tokenizer (tokenizer_class); name one of transformers, such as PreTrainedTokenizerFast"),
    # 3. Links.
    "template is a secret": (linked("chat_template.jinja", "{outside}"), leads("chat_template.jinja")),
    "licence is a secret": (linked("LICENSE", "../secret"), leads("LICENSE")),
    "template of tools is a secret": (linked("additional_chat_templates/t.jinja", "{outside}"), leads("additional_chat_templates/t.jinja")),
    "weights are elsewhere": (linked("model.safetensors", "{outside}"), leads("model.safetensors")),
    "vocabulary is a device": (linked("vocab.json", "/dev/zero"), "{model}/vocab.json: a device, not a file; give a file, or remove it"),
    "link to itself": (linked("merges.txt", "merges.txt"), "{model}/merges.txt: a link that leads back to itself; let it lead to a file, or remove it"),
    "link within the folder": (several(text("terms", "ours"), linked("LICENSE", "terms")), ACCEPTED),
    # 4. Odd files.
    "configuration is a list": (text("config.json", "[]"), unreadable("config.json", "holds a list and not an object")),
    "configuration is a number": (text("config.json", "7"), unreadable("config.json", "holds a number and not an object")),
    "generation configuration is a pipe": (lambda model: os.mkfifo(model / "generation_config.json"), "{model}/generation_config.json: a named pipe, not a file; give a file, or remove it"),
    "adapter configuration is a folder": (lambda model: (model / "adapter_config.json").mkdir(), unreadable("adapter_config.json", "Is a directory")),
    "configuration is deep": (text("config.json", DEEP), unreadable("config.json", "nested too deeply")),
    "configuration has a long number": (text("config.json", '{"a": ' + "7" * 5000 + "}"), unreadable("config.json", "holds a number of 5,000 digits")),
    "configuration has a NaN": (text("config.json", '{"a": NaN}'), unreadable("config.json", "holds NaN, which is no number")),
    "configuration is not UTF-8": (text("config.json", b'{"a": "\xff"}'), unreadable("config.json", "not UTF-8 text at byte 8")),
    "configuration is long": (text("config.json", b" " * ((16 << 20) + 1)), unreadable("config.json", "longer than 16 MiB")),
    "settings of the tokenizer are a list": (text("tokenizer_config.json", "[]"), unreadable("tokenizer_config.json", "holds a list and not an object")),
    "settings of generation are text": (text("generation_config.json", '"a"'), unreadable("generation_config.json", "holds a text and not an object")),
    "architectures is a word": (config(architectures="evil"), "config.json names no architectures; use a complete model folder, or add them ([\"LlamaForCausalLM\"])"),
    "architecture is long": (config(architectures=["A" * 1_000_000 + "ForCausalLM"]), f"config.json names the architecture '{'A' * 40}', which is no name of a class with at most 120 characters; correct architectures"),
    "architecture obeys a terminal": (config(architectures=["\x1b[31mForCausalLM"]), r"config.json names the architecture '\x1b[31mForCausalLM', which is no name of a class with at most 120 characters; correct architectures"),
    "architecture is an object": (config(architectures=[{"ForCausalLM": 1}]), """config.json names the architecture '{"ForCausalLM": 1}', which is no name of a class with at most 120 characters; correct architectures"""),
    "architectures are many": (config(architectures=["LlamaForCausalLM"] * 1000), "config.json names 1,000 architectures, and at most 100 are read; correct architectures"),
    "settings are many": (config(**{f"setting_{number}": "" for number in range(50_001)}), "config.json has more than 50,000 values; remove those that the architecture does not read"),
    "settings are many in a list": (config(layer_types=["full_attention"] * 50_001), "config.json has more than 50,000 values; remove those that the architecture does not read"),
    "template is long": (text("chat_template.jinja", "a" * ((1 << 20) + 1)), "chat_template.jinja has 1,048,577 bytes, and at most 1 MiB are read; shorten it"),
    "licence is long": (text("LICENSE", b"a" * ((16 << 20) + 1)), "LICENSE has 16,777,217 bytes, and at most 16 MiB are read; shorten it"),
    "a million layers": (config(num_hidden_layers=1_000_000), size("num_hidden_layers", "1,000,000", "20", OF_TENSORS)),
    "layers by another name": (config(n_layer=10**9), size("n_layer", "1,000,000,000", "20", OF_TENSORS)),
    "negative layers": (config(num_hidden_layers=-5), size("num_hidden_layers", "-5", "20", OF_TENSORS)),
    "infinite layers": (config(num_hidden_layers=float("inf")), size("num_hidden_layers", "inf", "20", OF_TENSORS)),
    "a wide model": (config(hidden_size=1 << 30), size("hidden_size", "1,073,741,824", "{rows}", OF_DIMENSIONS)),
    "a large vocabulary": (config(vocab_size=1 << 40), size("vocab_size", "1,099,511,627,776", "{rows}", OF_DIMENSIONS)),
    "a wide part": (config(text_config={"intermediate_size": 1 << 33}), size("intermediate_size", "8,589,934,592", "{rows}", OF_DIMENSIONS)),
    "many labels": (config(num_labels=10**9), size("num_labels", "1,000,000,000", "65,536", NO_EVIDENCE)),
    "many experts": (config(n_routed_experts=10**7), size("n_routed_experts", "10,000,000", "65,536", NO_EVIDENCE)),
    "a wide window": (config(chunk_size=1 << 32), size("chunk_size", "4,294,967,296", "16,777,216", NO_EVIDENCE)),
    "a number past all meaning": (config(rope_theta=10**30), size("rope_theta", f"{10**30:,}", "1,099,511,627,776", NO_MEANING)),
    "no layers": (config(num_hidden_layers="two"), "config.json has no layers; use a complete model folder"),
    # 5. Tokenizers.
    "tokenizer is a list": (text("tokenizer.json", "[]"), "tokenizer.json cannot be read (holds a list and not an object); download it again"),
    "tokenizer is deep": (text("tokenizer.json", DEEP), "tokenizer.json cannot be read (nested too deeply); download it again"),
    "a hundred thousand added tokens": (tokenizer(added_tokens=[{}] * 100_001), "tokenizer.json has 100,001 added tokens, and at most 100,000 are read; remove what is not used"),
    "added token past all ids": (added(id=(1 << 32) - 1, content="evil"), "1 token ('evil' ({beyond})) of its tokenizer is beyond the {rows} rows of its embedding; resize the model (resize_token_embeddings), or remove what was added to the tokenizer"),
    "id that is no number": (settings("tokenizer_config.json", added_tokens_decoder={"evil": {"content": "a"}}), "added_tokens_decoder of tokenizer_config.json has the entry 'evil', which is no id with the content of a token; correct it, or save the tokenizer again"),
    "id of thousands of digits": (settings("tokenizer_config.json", added_tokens_decoder={"9" * 5000: {"content": "a"}}), f"added_tokens_decoder of tokenizer_config.json has the entry {'9' * 40!r}, which is no id with the content of a token; correct it, or save the tokenizer again"),
    "token without content": (settings("tokenizer_config.json", added_tokens_decoder={"3": {}}), "added_tokens_decoder of tokenizer_config.json has the entry '3', which is no id with the content of a token; correct it, or save the tokenizer again"),
    "added tokens without ids": (text("added_tokens.json", '{"evil": "7"}'), "added_tokens.json gives 'evil' no id; correct it, or save the tokenizer again"),
    "negative id": (text("added_tokens.json", '{"evil": -7}'), "added_tokens.json gives 'evil' no id; correct it, or save the tokenizer again"),
    "tokens at random": (tokenizer(model={"type": "BPE", "dropout": 0.5, "vocab": {"<|end|>": 0}, "merges": []}), "tokenizer.json drops merges at random (dropout 0.5), so a text has other tokens each time; set model.dropout to null"),
    "pattern without end": (split_by("(a+)+$"), "tokenizer.json fails at the text 'aaaaaaaaaa...aaaa!' (Onig: Regex search error: retry-limit-in-match over); use a model with another tokenizer"),
    "one letter becomes a thousand": (tokenizer(normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 1000}), "tokenizer.json makes 1,000 tokens of the 1 bytes of 'a'; use a model with another tokenizer"),
    "every text begins with much": (tokenizer(normalizer={"type": "Prepend", "prepend": "b" * 9999}), "tokenizer.json makes 10,000 tokens of the 1 bytes of 'a'; use a model with another tokenizer"),
    "one letter is decoded to a thousand": (tokenizer(decoder={"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 1000}), "tokenizer.json makes 1,000 characters of the token 'a'; use a model with another tokenizer"),
    "decoder without end": (several(tokenizer(decoder={"type": "Replace", "pattern": {"Regex": "(a|aa|aaa)+$"}, "content": ""}), added(id=1000, content="a" * 40 + "!")), "tokenizer.json fails at the text of a token (Onig: Regex search error: retry-limit-in-match over); use a model with another tokenizer"),
    "padding to a thousand million": (tokenizer(padding={"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}), ACCEPTED),
    "good": (lambda _: None, ACCEPTED),
}  # fmt: skip
"""What is done to a good model, and the one sentence about it without field and source; empty: it is accepted."""
