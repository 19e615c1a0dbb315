"""What every rank of a toy gang imports sooner or later; `rank_processes` imports it once for all of them."""

from __future__ import annotations

from contextlib import suppress

import peft
import transformers.models.llama.modeling_llama
import transformers.trainer

import dapt_trainer.evaluation.perplexity
import dapt_trainer.stages.pretrain
import dapt_trainer.training.pretrain_penalty
import dapt_trainer.training.setup
import dapt_trainer.training.step_trainer

# Parts of libraries, which may have other places in other releases: then the ranks import them, and take longer.
with suppress(ImportError):
    import deepspeed.module_inject.auto_ep_layer
with suppress(ImportError):
    import deepspeed.runtime.zero.muon.muon_optimizer
with suppress(ImportError):
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("llama")  # compiles a thousand regular expressions, and keeps them

__all__ = ["dapt_trainer", "deepspeed", "peft", "transformers"]
