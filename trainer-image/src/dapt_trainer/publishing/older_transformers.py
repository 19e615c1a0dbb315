"""Makes configurations of transformers 5 readable for transformers 4.57, and removes what only this machine knows.

transformers 5 reads what earlier versions wrote, but not the reverse: it moved the settings of rotary embeddings into
`rope_parameters`, renamed `torch_dtype`, and names tokenizer classes that 4.57 lacks. A reader that misses a key takes
its default without a word, so a model would compute something else. Both spellings are written; a file of an earlier
version has the old one already and stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import PurePosixPath

from dapt_contract.base import JsonObject

OLDEST_TRANSFORMERS = "4.57"
"""The earliest version that published models are tested with."""
_TYPES = """
apertus arcee aria_text bamba bart bert bert-generation big_bird bigbird_pegasus biogpt bitnet blenderbot
blenderbot-small bloom blt camembert code_llama codegen cohere cohere2 cpmant ctrl data2vec-text dbrx deepseek_v2
deepseek_v3 diffllama doge dots1 electra emu3 ernie ernie4_5 ernie4_5_moe exaone4 falcon falcon_h1 falcon_mamba
flex_olmo fuyu gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text git glm glm4 glm4_moe got_ocr2 gpt-sw3 gpt2
gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granitemoe granitemoehybrid granitemoeshared
helium hunyuan_v1_dense hunyuan_v1_moe jamba jetmoe lfm2 llama llama4 llama4_text longcat_flash mamba mamba2 marian
mbart mega megatron-bert minimax ministral mistral mixtral mllama modernbert-decoder moshi mpt musicgen
musicgen_melody mvp nemotron olmo olmo2 olmo3 olmoe open-llama openai-gpt opt pegasus persimmon phi phi3
phi4_multimodal phimoe plbart prophetnet qdqbert qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next recurrent_gemma reformer
rembert roberta roberta-prelayernorm roc_bert roformer rwkv seed_oss smollm3 speech_to_text_2 stablelm starcoder2
transfo-xl trocr vaultgemma whisper xglm xlm xlm-prophetnet xlm-roberta xlm-roberta-xl xlnet xlstm xmod zamba zamba2
"""
_OLDEST_KNOWS = frozenset(_TYPES.split())
"""Types of models that `AutoModelForCausalLM` of that version loads."""
_LOCAL_KEYS = (
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "attn_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
    "experts_implementation",
    "_commit_hash",
)
"""Settings of the process that saved a configuration, which readers would take over."""
_PATH_KEYS = ("_name_or_path", "name_or_path", "tokenizer_file", "special_tokens_map_file", "vocab_file")
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_SHARED_ROPE_KEYS = ("rope_theta", "partial_rotary_factor")
"""Settings that stood beside `rope_scaling` in earlier versions."""
_OWN_SPELLINGS: Mapping[str, Mapping[str, str]] = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "gpt_neox_japanese": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "modernbert-decoder": {"rope_theta": "global_rope_theta", "rope_local_base_freq": "local_rope_theta"},
    "qwen3_moe": {"num_local_experts": "num_experts"},
}
"""Keys of earlier versions by model type and by the usual key."""


def needed_version(model_type: str | None, written_by: str | None = None) -> str:
    """Return which transformers a published model needs, in a sentence or two.

    Args:
        model_type: of the base model's configuration; None: not known.
        written_by: version of transformers that wrote that configuration, which therefore knows the type.
    """
    if model_type in _OLDEST_KNOWS:
        return (
            f"Needs transformers {OLDEST_TRANSFORMERS} or later: that version knows `{model_type}`, and none before it "
            "was tried."
        )
    installed = version("transformers")
    if model_type is None:
        return f"Trained with transformers {installed}; the version that the base model needs is not known."
    text = (
        f"Needs a transformers that knows `{model_type}`, which {OLDEST_TRANSFORMERS} does not; trained with "
        f"{installed}, and none before it was tried."
    )
    if written_by is None or written_by == installed:
        return text
    return f"{text} The base model's configuration was written by {written_by}."


def published_config(config: JsonObject) -> JsonObject:
    """Return a model's configuration as users get it.

    A key that is there already is never changed, except that generation gets its cache.
    """
    published = _without_local_state(config)
    if published.get("use_cache") is False:  # training switches it off
        published["use_cache"] = True
    if "dtype" in published:
        published.setdefault("torch_dtype", published["dtype"])
    old = _old_rope_keys(published)
    for key, spelling in _OWN_SPELLINGS.get(str(published.get("model_type")), {}).items():
        value = old.get(key, published.get(key))
        if value is not None:
            old[spelling] = value
    return published | {key: value for key, value in old.items() if key not in published}


def published_tokenizer_config(settings: JsonObject, *, adds_begin_of_text: bool) -> JsonObject:
    """Return a tokenizer's configuration as users get it.

    Args:
        settings: of the base model.
        adds_begin_of_text: whether tokenizer.json puts a token before every text.
    """
    published = _without_local_state(settings)
    if "backend" not in published:
        return published
    # transformers 5 wrote it: these keys are its own.
    for key in ("backend", "is_local", "local_files_only"):
        published.pop(key, None)
    if published.get("tokenizer_class") == "TokenizersBackend":
        published["tokenizer_class"] = "PreTrainedTokenizerFast"
    # A list is an error in 4.57, which has only named extra tokens; both versions read the older key.
    if isinstance(published.get("extra_special_tokens"), list):
        published.setdefault("additional_special_tokens", published.pop("extra_special_tokens"))
    # transformers 5 goes by tokenizer.json; classes of 4.57 add the token unless told otherwise.
    published.setdefault("add_bos_token", adds_begin_of_text)
    return published


def _without_local_state(content: JsonObject) -> JsonObject:
    return {
        key: value
        for key, value in content.items()
        if key not in _LOCAL_KEYS and not (key in _PATH_KEYS and _is_local_path(key, value))
    }


def _is_local_path(key: str, value: object) -> bool:
    if not isinstance(value, str) or not value:
        return False
    if key.endswith("name_or_path"):
        return not _HUB_NAME.fullmatch(value)
    return PurePosixPath(value).is_absolute() or "\\" in value


def _old_rope_keys(config: JsonObject) -> JsonObject:
    """Return the keys in which earlier versions write `rope_parameters`; none where there is no such key."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or not rope:
        return {}
    old: JsonObject = {}
    sliding, full = rope.get("sliding_attention"), rope.get("full_attention")
    if isinstance(sliding, dict) and isinstance(full, dict):
        # One rope for each type of layer.
        old["rope_local_base_freq"] = sliding.get("rope_theta")
        rope = full
    old |= {key: rope[key] for key in _SHARED_ROPE_KEYS if key in rope}
    has_scaling = rope.get("rope_type", "default") != "default"
    scaling = {key: value for key, value in rope.items() if key not in _SHARED_ROPE_KEYS}
    old["rope_scaling"] = scaling if has_scaling else None
    return old
