"""Tokens per second of the pretrain stage against a bare PyTorch loop: same model, rows, batch and threads.

Prints `NAME VALUE BAR ok|short`. The loop is what one writes by hand: forward with labels, backward, clip, AdamW, step;
the stage runs its whole machinery (DeepSpeed, curve, progress, reductions), its saves and evaluations left out of both.
The two take turns in one process, so that a busy machine slows both; ZeRO stage 0 is what the planner gives one
process (a stage above it shards nothing there and still copies every gradient).

    python -m bench.pretrain [--rounds 3] [--steps 8] [--zero-stage 0] [--precision fp32]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

BAR = 0.9


def main() -> int:
    """Measure and print; 0 when both bars are reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--zero-stage", type=int, default=0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    short = False
    for method in ("lora", "full"):
        with tempfile.TemporaryDirectory() as folder:
            ratio = statistics.median(measure(Path(folder), options, method))
        verdict = "ok" if ratio >= BAR else "short"
        print(f"pretrain_{method}_tokens_per_second_ratio {ratio:.3f} {BAR} {verdict}", flush=True)
        short |= ratio < BAR
    return int(short)


def measure(folder: Path, options: Any, method: str) -> list[float]:
    """Stage over loop, one ratio a round."""
    from dapt_contract.stages.common import DistributionConfig, LoraConfig
    from dapt_trainer.stages import pretrain
    from support.toy_training import SEQUENCE_LENGTH, make_context, make_work_volume, pretrain_config

    work = make_work_volume(folder / "work", sequences=512)
    make_larger_model(work / "model")
    config = pretrain_config(
        lora=LoraConfig(rank=16, alpha=32) if method == "lora" else None,
        total_steps=options.steps,
        checkpoint_steps=(options.steps,),
        global_batch_size=32,
        micro_batch_size=16,
        distribution=DistributionConfig(zero_stage=options.zero_stage, precision=options.precision),
    )
    ratios = []
    for number in range(1, options.rounds + 1):
        bare = bare_tokens_per_second(work, config)
        context = make_context(work, folder / "scratch", config.model_copy(update={"seed": number}))
        report = pretrain.run(config.model_copy(update={"seed": number}), context)
        bare_after = bare_tokens_per_second(work, config)
        stage = report.facts.tokens_per_second
        mean = 2 / (1 / bare + 1 / bare_after)
        ratios.append(stage / mean)
        print(
            f"# {method}, round {number}: stage {stage:.0f}, loop {bare:.0f} and {bare_after:.0f} tokens/s "
            f"(rows of {SEQUENCE_LENGTH} tokens)",
            file=sys.stderr,
        )
    return ratios


def make_larger_model(folder: Path) -> None:
    """About 10 M parameters: a step takes long enough for arithmetic to count, as it does in real models."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from support.toy_training import END_OF_TEXT, VOCABULARY

    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY + 4,
            hidden_size=320,
            intermediate_size=960,
            num_hidden_layers=8,
            num_attention_heads=5,
            num_key_value_heads=5,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=END_OF_TEXT,
            eos_token_id=END_OF_TEXT,
        )
    )
    model.save_pretrained(folder)


def bare_tokens_per_second(work: Path, config: Any) -> float:
    """The loop by hand; the first step is left out, as it is in the stage's figure."""
    import torch

    from dapt_trainer.distributed import Ranks
    from dapt_trainer.modeling.attention import stack_rows
    from dapt_trainer.modeling.chunked_loss import use_chunked_loss
    from dapt_trainer.modeling.loading.load_folder import load_model
    from dapt_trainer.modeling.lora import with_lora
    from dapt_trainer.training.batch_order import BatchOrder
    from dapt_trainer.training.training_rows import open_rows

    rows = open_rows(work, config, Ranks(0, 0, 1, torch.device("cpu")))
    model = load_model(work, config.model, precision=config.distribution.precision)
    use_chunked_loss(model)  # the same kernels in both
    if config.lora:
        model = with_lora(model, config.lora, seed=0)
    model.config.use_cache = False
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    order = BatchOrder(config.total_steps, config.global_batch_size, config.micro_batch_size, 0, 1)
    micros = iter(torch.utils.data.DataLoader(rows.dataset, batch_sampler=order, collate_fn=stack_rows))
    accumulation = config.global_batch_size // config.micro_batch_size
    tokens, started = 0, 0.0
    for step in range(config.total_steps):
        if step == 1:
            started = time.monotonic()
        batches = [next(micros) for _ in range(accumulation)]
        count = sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)
        for batch in batches:
            loss = model(**batch, num_items_in_batch=count).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += rows.tokens_of_step(step) if step else 0
    return tokens / (time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main())
