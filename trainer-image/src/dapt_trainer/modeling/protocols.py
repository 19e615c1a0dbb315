"""Describes what the trainer uses of objects that libraries return without types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the agent and prepare never load torch
    import torch


class LoraModule(Protocol):
    """Describes a layer with adapters (`peft.tuners.lora.LoraLayer`)."""

    lora_A: Mapping[str, torch.nn.Linear]  # noqa: N815 - the name in PEFT
    lora_B: Mapping[str, torch.nn.Linear]  # noqa: N815
    scaling: Mapping[str, float]
    fan_in_fan_out: bool
    """Whether the layer stores its weight as [in, out]."""

    def get_base_layer(self) -> torch.nn.Linear:
        """Return the layer without its adapters."""
        ...


class AddedToken(Protocol):
    """Describes a token that was added to a tokenizer."""

    content: str


class Tokenizer(Protocol):
    """Describes a tokenizer (`transformers.PreTrainedTokenizerBase`)."""

    chat_template: str | None
    eos_token_id: int
    pad_token_id: int | None

    @property
    def all_special_tokens(self) -> Sequence[str]:
        """Return the texts of the special tokens."""
        ...

    @property
    def special_tokens_map(self) -> Mapping[str, str]:
        """Return the texts of the special tokens by their names, such as eos_token."""
        ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, AddedToken]:
        """Return the added tokens by their ids."""
        ...

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Mapping[str, Sequence[int]]:
        """Return the token ids of a text under `input_ids`."""
        ...

    def save_pretrained(self, save_directory: object) -> object:
        """Write the tokenizer's files into a folder."""
        ...
