"""Turns one switch of the pretrain stage off, so that `bench.gpu` shows what it brings."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock


def _without_compilation(stack: contextlib.ExitStack) -> None:
    """Nothing is compiled. FlexAttention is useless without it, so SDPA with a mask takes its place."""
    import torch

    stack.enter_context(torch._dynamo.config.patch(disable=True))
    _without_flex(stack)


def _without_fused_loss(stack: contextlib.ExitStack) -> None:
    """All logits of a micro-batch exist at once."""
    from dapt_trainer.modeling import kernels
    from dapt_trainer.training import setup

    choose = setup.choose_kernels

    def chosen(*arguments: Any, **options: Any) -> Any:
        found = choose(*arguments, **options)
        if found.liger is None:
            return found
        return dataclasses.replace(found, liger=found.liger | {"fused_linear_cross_entropy": False})

    stack.enter_context(mock.patch.object(setup, "choose_kernels", chosen))
    # Where the trainer computes the loss by chunks itself.
    if hasattr(kernels, "use_chunked_loss"):
        stack.enter_context(mock.patch.object(kernels, "use_chunked_loss", return_value=False))


def _without_varlen(stack: contextlib.ExitStack) -> None:
    """Documents are kept apart by a mask, for which SDPA has no flash kernel."""
    from dapt_trainer.modeling import attention
    from dapt_trainer.training import setup

    def masked(model: Any, *_: Any, **__: Any) -> Any:
        implementation = attention.plain_attention(model)
        return attention.Attention(implementation, "left out for comparison", attention.stack_rows)

    stack.enter_context(mock.patch.object(setup, "choose_attention", masked))


def _without_flex(stack: contextlib.ExitStack) -> None:
    from dapt_trainer.modeling import attention
    from dapt_trainer.training import setup

    choose = setup.choose_attention

    def chosen(model: Any, *arguments: Any, **options: Any) -> Any:
        found = choose(model, *arguments, **options)
        if found.implementation != attention.FLEX:
            return found
        return attention.Attention(
            attention.plain_attention(model), "without compilation", attention.stack_rows
        )

    stack.enter_context(mock.patch.object(setup, "choose_attention", chosen))


def _without_fp32_accumulation(stack: contextlib.ExitStack) -> None:
    """Gradients of micro-batches are summed, and reduced, in bf16."""
    from dapt_trainer.training import arguments

    make = arguments.deepspeed_settings

    def settings(*positional: Any, **options: Any) -> dict[str, object]:
        left_out = ("data_types", "communication_data_type")
        return {name: value for name, value in make(*positional, **options).items() if name not in left_out}

    stack.enter_context(mock.patch.object(arguments, "deepspeed_settings", settings))


SWITCHES: dict[str, Callable[[contextlib.ExitStack], None]] = {
    "compile": _without_compilation,
    "fused_loss": _without_fused_loss,
    "varlen": _without_varlen,
    "fp32_accumulation": _without_fp32_accumulation,
}


@contextlib.contextmanager
def turned_off(switch: str) -> Iterator[None]:
    """Run the block without a switch; an empty name changes nothing."""
    with contextlib.ExitStack() as stack:
        if switch:
            SWITCHES[switch](stack)
        yield
