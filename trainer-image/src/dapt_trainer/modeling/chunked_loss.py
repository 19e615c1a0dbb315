"""Computes the loss of causal language models without holding the logits of all tokens.

Logits are the largest tensor of a training step: 64k tokens by 128k entries are 34 GB in fp32, and their gradient as
much. Here they exist for one chunk of tokens at a time. The chunk's gradient is taken at once, while its logits are
there (Hsu et al. 2024, Liger Kernel), so nothing is computed a second time.

Shapes: n tokens, d hidden size, v vocabulary.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, pad
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from dapt_contract.chunked_loss import CHUNKED_LOSS_ARCHITECTURES, chunk_tokens
from dapt_trainer.modeling.labels import IGNORED_LABEL


@dataclass(frozen=True)
class LogitForm:
    """Says what a model does with the head's output: logits = cap * tanh(scale * output / cap)."""

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: PretrainedConfig) -> LogitForm:
        """Return the form of a model's logits."""
        # Granite divides, Cohere multiplies, Gemma 2 and 3 cap.
        divisor = float(getattr(config, "logits_scaling", None) or 1.0)
        scale = float(getattr(config, "logit_scale", None) or 1.0) / divisor
        return cls(scale, getattr(config, "final_logit_softcapping", None))

    def apply(self, output: torch.Tensor) -> torch.Tensor:
        """Return the logits in fp32."""
        logits = output.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def use_chunked_loss(model: PreTrainedModel) -> bool:
    """Make a training model compute its loss in chunks; return whether its architecture allows it.

    A forward pass with labels then returns the loss and no logits; without labels, and in evaluation, nothing changes.
    """
    has_router_loss = bool(getattr(model.config, "output_router_logits", False))
    if type(model).__name__ not in CHUNKED_LOSS_ARCHITECTURES or has_router_loss:
        return False
    form, whole = LogitForm.of(model.config), model.forward

    @functools.wraps(whole)
    def forward(
        *args: object,
        labels: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: object,
    ) -> object:
        if labels is None or not model.training:
            of_loss = {
                "labels": labels,
                "shift_labels": shift_labels,
                "num_items_in_batch": num_items_in_batch,
            }
            given = {name: value for name, value in of_loss.items() if value is not None}
            return whole(*args, **given, **kwargs)
        hidden = model.base_model(*args, **kwargs)[0]
        if shift_labels is None:
            shift_labels = pad(labels, (0, 1), value=IGNORED_LABEL)[..., 1:]
        targets = shift_labels.reshape(-1).to(hidden.device)
        items = (targets != IGNORED_LABEL).sum() if num_items_in_batch is None else num_items_in_batch
        items = torch.as_tensor(items, device=hidden.device)
        return CausalLMOutputWithPast(
            loss=_loss(model, form, hidden.reshape(-1, hidden.shape[-1]), targets, items)
        )

    model.forward = forward
    return True


def _loss(
    model: PreTrainedModel,
    form: LogitForm,
    hidden_nd: torch.Tensor,
    targets_n: torch.Tensor,
    items: torch.Tensor,
) -> torch.Tensor:
    """Return the sum of the tokens' losses over `items`."""
    head, chunk = model.get_output_embeddings(), chunk_tokens(model.config.vocab_size)
    if type(head) is not torch.nn.Linear:
        return _recomputed(head, form, hidden_nd, targets_n, chunk) / items

    # The head's own call, with another forward in it: ZeRO 3 gathers a module's weight around its call, once.
    def loss_of_head(hidden: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = _HeadLoss.apply(hidden, head.weight, head.bias, targets_n, form, items, chunk)
        return loss

    vars(head)["forward"] = loss_of_head
    try:
        loss: torch.Tensor = head(hidden_nd)
    finally:
        del vars(head)["forward"]
    return loss


def _recomputed(
    head: torch.nn.Module, form: LogitForm, hidden_nd: torch.Tensor, targets_n: torch.Tensor, chunk: int
) -> torch.Tensor:
    """Return the sum of the losses by a head that is more than a matrix, whose logits are computed twice."""

    def of_chunk(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(
            form.apply(head(hidden)), targets, ignore_index=IGNORED_LABEL, reduction="sum"
        )

    chunks = zip(hidden_nd.split(chunk), targets_n.split(chunk), strict=True)
    losses = [checkpoint(of_chunk, hidden, targets, use_reentrant=False) for hidden, targets in chunks]
    return torch.stack(losses).sum()


class _Gradients(Protocol):
    """Is what torch passes from the forward pass to the backward pass."""

    needs_input_grad: tuple[bool, ...]
    gradients: tuple[torch.Tensor | None, ...]
    """Of hidden states, weight and bias."""


class _HeadLoss(torch.autograd.Function):
    """Computes loss and gradients of a linear head, chunk by chunk, in one pass."""

    @staticmethod
    def forward(
        ctx: _Gradients,
        hidden_nd: torch.Tensor,
        weight_vd: torch.Tensor,
        bias_v: torch.Tensor | None,
        targets_n: torch.Tensor,
        form: LogitForm,
        items: torch.Tensor,
        chunk: int,
    ) -> torch.Tensor:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden_nd = torch.empty_like(hidden_nd) if needs_hidden else None
        # In fp32: the sum over many chunks would lose digits in bf16.
        grad_weight_vd = torch.zeros_like(weight_vd, dtype=torch.float32) if needs_weight else None
        grad_bias_v = (
            torch.zeros_like(bias_v, dtype=torch.float32) if needs_bias and bias_v is not None else None
        )
        loss = torch.zeros((), dtype=torch.float32, device=hidden_nd.device)
        for start in range(0, len(hidden_nd), chunk):
            part = slice(start, start + chunk)
            hidden_cd, targets_c = hidden_nd[part], targets_n[part]
            logits_cv = form.apply(linear(hidden_cd, weight_vd, bias_v))
            is_kept_c = targets_c != IGNORED_LABEL
            targets_c1 = targets_c.clamp(min=0)[:, None]
            normalizers_c = logits_cv.logsumexp(dim=1)
            losses_c = normalizers_c - logits_cv.gather(1, targets_c1)[:, 0]
            loss += torch.where(is_kept_c, losses_c, 0.0).sum()
            slope_cv = None if form.cap is None else 1.0 - (logits_cv / form.cap) ** 2
            # From here on `logits_cv` becomes the gradient: (softmax - one-hot) / items, zero where no label is.
            grad_cv = logits_cv.sub_(normalizers_c[:, None]).exp_()
            grad_cv.scatter_add_(1, targets_c1, torch.full_like(targets_c1, -1.0, dtype=grad_cv.dtype))
            grad_cv.mul_((is_kept_c * (form.scale / items))[:, None])
            if slope_cv is not None:
                grad_cv.mul_(slope_cv)
            rounded_cv = grad_cv.to(hidden_nd.dtype)
            if grad_hidden_nd is not None:
                torch.mm(rounded_cv, weight_vd, out=grad_hidden_nd[part])
            if grad_weight_vd is not None:
                if rounded_cv.dtype == torch.float32:
                    grad_weight_vd.addmm_(rounded_cv.t(), hidden_cd)
                else:
                    grad_weight_vd.add_(rounded_cv.t() @ hidden_cd)
            if grad_bias_v is not None:
                grad_bias_v.add_(grad_cv.sum(dim=0))
        ctx.gradients = (
            grad_hidden_nd,
            None if grad_weight_vd is None else grad_weight_vd.to(weight_vd.dtype),
            None if grad_bias_v is None or bias_v is None else grad_bias_v.to(bias_v.dtype),
        )
        return loss / items

    @staticmethod
    @once_differentiable
    def backward(ctx: _Gradients, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = ctx.gradients
        ctx.gradients = (None, None, None)
        scaled = (None if gradient is None else gradient.mul_(grad_loss) for gradient in gradients)
        return (*scaled, None, None, None, None)
