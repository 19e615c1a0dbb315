"""CPU time of the pretrain stage against a bare PyTorch loop: same model, rows, batch and kernels, one thread each.

Prints `NAME VALUE BAR ok|short`: CPU time of the loop over that of the stage, and the milliseconds that the stage takes
more for a micro-batch. The loop is what one writes by hand: forward with labels, backward, clip, AdamW, step; the stage
runs its whole machinery (DeepSpeed, curve, progress, reductions), its saves and evaluations left out of both. After
each step of the stage the loop takes one, in the same process, so a busy machine slows both alike; and CPU time does
not count what others take. ZeRO stage 0 is what the planner gives one process.

    python -m bench.pretrain [--size 10M] [--steps 16] [--zero-stage 0] [--precision fp32]
    python -m bench pretrain --size 135M
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.random_models import SIZES, give_shape

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

BARS = {"10M": 0.95, "135M": 0.98}
WARM_STEPS = 3


@dataclass
class Seconds:
    """CPU time of each step after the first ones."""

    stage: list[float] = field(default_factory=list)
    loop: list[float] = field(default_factory=list)


def main() -> int:
    """Measure and print; 0 when all bars are reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=BARS, default="10M")
    parser.add_argument("--method", choices=("lora", "full"), action="append")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--zero-stage", type=int, default=0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    bar, is_short = BARS[options.size], False
    for method in options.method or ("lora", "full"):
        with tempfile.TemporaryDirectory() as folder:
            seconds, micro_batches = measure(Path(folder), options, method)
        stage, loop = (
            1000 * statistics.median(values) / micro_batches for values in (seconds.stage, seconds.loop)
        )
        print(f"# {method}: stage {stage:.1f} ms, loop {loop:.1f} ms a micro-batch", file=sys.stderr)
        is_good = loop / stage >= bar
        is_short |= not is_good
        verdict, name = "ok" if is_good else "short", f"pretrain_{options.size}_{method}"
        print(f"{name}_cpu_ratio {loop / stage:.3f} {bar} {verdict}")
        most = loop / bar - loop
        print(f"{name}_overhead_ms_a_micro_batch {stage - loop:.2f} {most:.2f} {verdict}", flush=True)
    return int(is_short)


def measure(folder: Path, options: Any, method: str) -> tuple[Seconds, int]:
    """CPU time of the steps of both, and the micro-batches of a step."""
    import torch

    from dapt_contract.stages.common import DistributionConfig, LoraConfig
    from dapt_trainer.distributed import join_ranks
    from dapt_trainer.stages.pretrain import PretrainRun
    from support.toy_training import make_context, make_work_volume, pretrain_config

    torch.set_num_threads(1)
    work = make_work_volume(folder / "work", sequences=512)
    if options.size == "10M":
        make_larger_model(work / "model")
    else:
        make_model_of_size(work / "model", options.size)
    config = pretrain_config(
        lora=LoraConfig(rank=16, alpha=32) if method == "lora" else None,
        total_steps=options.steps,
        checkpoint_steps=(options.steps,),
        global_batch_size=32,
        micro_batch_size=16,
        distribution=DistributionConfig(zero_stage=options.zero_stage, precision=options.precision),
    )
    seconds = Seconds()

    class Timed(PretrainRun):
        loop: Iterator[None]
        started = in_between = 0.0

        def _save(self, step: int, _tokens: int) -> None:
            self.saved_step = step

        def _measure(self, _step: int) -> None:
            return

        def _after_step(self, reading: Any) -> None:
            super()._after_step(reading)
            stage = time.process_time() - self.started + self.in_between
            if reading.step == 1:
                self.loop = bare_steps(work, config)
            whole, own = time.process_time(), time.thread_time()
            next(self.loop)
            loop = time.thread_time() - own
            # What the stage's threads do meanwhile is its own.
            self.in_between = time.process_time() - whole - loop
            if reading.step > WARM_STEPS:
                seconds.stage.append(stage)
                seconds.loop.append(loop)
            self.started = time.process_time()

    Timed(config, make_context(work, folder / "scratch", config), join_ranks(0, 0, 1)).run()
    return seconds, config.global_batch_size // config.micro_batch_size


def make_model_of_size(folder: Path, size: str) -> None:
    """A random model of a size."""
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    config = AutoConfig.from_pretrained(folder)
    give_shape(config, SIZES[size])
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(folder)


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


def bare_steps(work: Path, config: Any) -> Iterator[None]:
    """The loop by hand, one step for each value."""
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
    for _ in range(config.total_steps):
        batches = [next(micros) for _ in range(accumulation)]
        count = sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)
        for batch in batches:
            loss = model(**batch, num_items_in_batch=count).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield


if __name__ == "__main__":
    sys.exit(main())
