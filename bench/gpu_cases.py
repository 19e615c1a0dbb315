"""The cases of `bench.gpu`: the pretrain stage, and loops by hand with the same kernels or with others. One a process.

python -m bench.gpu_cases CASE --work FOLDER --out FILE
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import gpu_switches
from bench.gpu_public import run_public

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


@dataclass(frozen=True)
class Shape:
    """Of the model and of the rows it reads."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    length: int
    mean_document_tokens: int


LLAMA_1B = Shape(2048, 8192, 16, 32, 8, 128_256, 4096, 700)
"""Llama 3.2 1B's numbers: 1.24 B parameters with a tied head."""
TINY = Shape(64, 128, 2, 4, 2, 512, 128, 24)
"""For the dry run."""
END_OF_TEXT = 0
WARM_STEPS = 2
LORA_RANK = 64


@dataclass(frozen=True)
class Case:
    """What one process measures."""

    method: str
    """`full` or `lora`."""
    loop: str
    """`stage`; `bare`: a loop by hand; `public`: transformers' Trainer as its users set it up."""
    liger: bool | None = None
    """None: as the stage chooses."""
    compile: bool = False
    boundaries: bool = True
    """Whether documents of a row are kept apart."""
    packed: bool = True
    """One document a row otherwise, padded."""
    off: str = ""
    """Switch of the stage that is turned off, of `gpu_switches.SWITCHES`."""


CASES = {
    "full_stage": Case("full", "stage"),
    "full_bare": Case("full", "bare"),
    "lora_stage": Case("lora", "stage"),
    "lora_bare": Case("lora", "bare"),
    "full_public": Case("full", "public", boundaries=False),
    "full_no_compile": Case("full", "stage", off="compile"),
    "full_no_fused_loss": Case("full", "stage", off="fused_loss"),
    "full_no_varlen": Case("full", "stage", off="varlen"),
    "full_no_fp32_accumulation": Case("full", "stage", off="fp32_accumulation"),
    "lora_public": Case("lora", "public", boundaries=False),
    "full_plain": Case("full", "bare", liger=False),
    "full_liger": Case("full", "bare", liger=True),
    "full_compile": Case("full", "bare", liger=False, compile=True),
    "full_one_text": Case("full", "bare", boundaries=False),
    "full_unpacked": Case("full", "bare", packed=False),
}
"""In the order of their importance: those that no time is left for are the last ones."""
OPTIONAL = ("full_plain", "full_liger", "full_compile", "full_one_text", "full_unpacked")
"""What the loop by hand gains by each; the stage's own figures need none of them."""


def make_work(work: Path, shape: Shape, rows: int) -> None:
    """A random model and a work volume of packed random documents, log-normal in length."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from support.toy_training import make_tokenizer, make_work_volume

    make_work_volume(work, sequences=1)
    for file in (work / "model").glob("*.safetensors"):
        file.unlink()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads, max_position_embeddings=shape.length,
        tie_word_embeddings=True, bos_token_id=END_OF_TEXT, eos_token_id=END_OF_TEXT,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(work / "model")
    make_tokenizer().save_pretrained(work / "model")
    _write_rows(work, shape, rows)


def _write_rows(work: Path, shape: Shape, rows: int) -> None:
    from dapt_trainer.data.packing.data_manifest import ShardManifest, read_manifest, write_manifest
    from dapt_trainer.data.packing.shards import ShardWriter

    generator = np.random.default_rng(0)
    shards = []
    for side in ("domain", "general"):
        name = f"{side}-0"
        with ShardWriter(
            work / "data" / name,
            sequence_length_tokens=shape.length,
            token_type="uint32",
            end_of_text_id=END_OF_TEXT,
        ) as writer:
            for _ in range(rows):
                writer.write_row(_documents(generator, shape))
            files = writer.close()
        shards.append(
            ShardManifest(
                name=name, side=side, index=0, source="file:///random", weight=1.0, sequences=rows,
                tokens=rows * shape.length, positions=rows * shape.length,
                filled_positions=rows * shape.length, documents=rows, cut_documents=0, files=files,
            )
        )  # fmt: skip
    manifest = read_manifest(work)
    changed = manifest.model_copy(
        update={"sequence_length_tokens": shape.length, "token_type": "uint32", "shards": tuple(shards)}
    )
    write_manifest(work / "data", changed, run_key="bench")


def _documents(generator: Any, shape: Shape) -> list[Any]:
    """Documents that fill a row; the last one is cut."""
    pieces, left = [], shape.length
    while left:
        length = int(min(left, max(2, generator.lognormal(np.log(shape.mean_document_tokens) - 0.5, 1.0))))
        piece = generator.integers(1, shape.vocabulary, size=length, dtype=np.uint32)
        piece[-1] = END_OF_TEXT
        pieces.append(piece)
        left -= length
    return pieces


def config_of(
    case: Case, shape: Shape, *, steps: int, micro: int, accumulation: int, checkpointing: bool
) -> Any:
    """The stage's configuration of a case."""
    from dapt_contract.stages.common import DistributionConfig, LoraConfig
    from support.toy_training import pretrain_config

    return pretrain_config(
        lora=LoraConfig(rank=LORA_RANK, alpha=2 * LORA_RANK) if case.method == "lora" else None,
        total_steps=steps,
        checkpoint_steps=(steps,),
        sequence_length_tokens=shape.length,
        document_boundaries=case.boundaries,
        global_batch_size=micro * accumulation,
        micro_batch_size=micro,
        distribution=DistributionConfig(zero_stage=1, precision="bf16", gradient_checkpointing=checkpointing),
    )


def run_stage(work: Path, config: Any) -> dict[str, Any]:
    """The pretrain stage as it is, but for its saves and evaluations."""
    from dapt_trainer.distributed import join_ranks
    from dapt_trainer.stages.pretrain import PretrainRun
    from support.toy_training import make_context

    class Timed(PretrainRun):
        def _save(self, step: int, _tokens: int) -> None:
            self.saved_step = step

        def _measure(self, _step: int) -> None:
            return

    ranks = join_ranks(0, 0, 1)
    reset_peak()
    stage = Timed(config, make_context(work, work / "scratch", config), ranks)
    report = stage.run()
    warm, last = report.curve[WARM_STEPS - 1], report.curve[-1]
    return {
        "tokens_per_second": (last.tokens - warm.tokens) / (last.seconds - warm.seconds),
        "peak_bytes": peak_bytes(),
        "attention": report.attention,
        "kernels": report.kernels,
        "mean_document_tokens": mean_document(stage.rows, config),
        "flops_per_token": exact_flops(stage.model, mean_document(stage.rows, config)),
    }


def run_bare(work: Path, config: Any, case: Case) -> dict[str, Any]:
    """What one writes by hand: bf16 weights with fp32 masters, forward, backward, clip, fused AdamW."""
    import torch

    from dapt_trainer.distributed import join_ranks
    from dapt_trainer.modeling.attention import choose_attention, use_attention
    from dapt_trainer.modeling.kernels import choose_kernels
    from dapt_trainer.modeling.loading.load_folder import load_model
    from dapt_trainer.modeling.lora import with_lora
    from dapt_trainer.training.batch_order import BatchOrder
    from dapt_trainer.training.block_compilation import choose_compilation, compile_blocks
    from dapt_trainer.training.training_rows import open_rows

    ranks = join_ranks(0, 0, 1)
    device = ranks.device
    rows = open_rows(work, config, ranks)
    model = load_model(work, config.model, precision="bf16", device=str(device))
    attention = choose_attention(model, device, document_boundaries=case.boundaries, precision="bf16")
    use_attention(model, attention)
    kernels = choose_kernels(
        model.config,
        device,
        tokens_per_pass=config.micro_batch_size * config.sequence_length_tokens,
        zero_stage=0,
    )
    if case.liger is False:
        kernels = type(kernels)(None, "left out for comparison")
    if kernels.liger is not None:
        from transformers.integrations.liger import apply_liger_kernel

        apply_liger_kernel(model, kernels.liger)
    if config.lora:
        model = with_lora(model, config.lora, seed=0).to(torch.bfloat16)
    model.config.use_cache = False
    model.train()
    if config.distribution.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    # With the same kernels as the stage, unless the case compares kernels.
    if case.liger is None and choose_compilation(device, config.distribution).is_used:
        compile_blocks(model)
    forward = (
        torch.compile(model, backend="inductor" if device.type == "cuda" else "eager")
        if case.compile
        else model
    )
    reset_peak()
    result = _bare_steps(rows, config, case, model, forward, attention.collate, BatchOrder, device)
    return result | {
        "peak_bytes": peak_bytes(), "attention": attention.text, "kernels": kernels.text,
        "flops_per_token": exact_flops(model, mean_document(rows, config)),
    }  # fmt: skip


def _bare_steps(
    rows: Any, config: Any, case: Case, model: Any, forward: Any, collate: Any, order_of: Any, device: Any
) -> dict[str, Any]:
    import torch

    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    masters = [weight.detach().float().clone() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    order = order_of(config.total_steps, config.global_batch_size, config.micro_batch_size, 0, 1)
    data: Any = rows.dataset if case.packed else FirstDocuments(rows.dataset)
    loader = torch.utils.data.DataLoader(
        data, batch_sampler=order, collate_fn=collate, pin_memory=device.type == "cuda"
    )
    micros, accumulation = iter(loader), config.global_batch_size // config.micro_batch_size
    tokens, started = 0, 0.0
    for step in range(config.total_steps):
        if step == WARM_STEPS:
            synchronize()
            started = time.monotonic()
        batches = [next(micros) for _ in range(accumulation)]
        count = sum((batch["labels"][:, 1:] != -100).sum() for batch in batches).to(device)
        for batch in batches:
            moved = {
                name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
                for name, value in batch.items()
            }
            forward(**moved, num_items_in_batch=count).loss.backward()
        for master, weight in zip(masters, weights, strict=True):
            master.grad = weight.grad.float()
            weight.grad = None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_copy_(weights, masters)
        if step >= WARM_STEPS and case.packed:
            tokens += rows.tokens_of_step(step)
        elif step >= WARM_STEPS:
            tokens += int(sum(batch["labels"].ne(-100).sum() for batch in batches))
    synchronize()
    return {"tokens_per_second": tokens / (time.monotonic() - started)}


class FirstDocuments:
    """Rows that hold their first document alone; the rest is padding, as without packing."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        row = dict(self._dataset[index])
        starts = torch.nonzero(row["position_ids"] == 0).flatten()
        labels = row["labels"].clone()
        if len(starts) > 1:
            labels[int(starts[1]) :] = -100
        return row | {"labels": labels, "position_ids": torch.arange(len(labels))}


def mean_document(rows: Any, config: Any) -> float:
    """Sum of squared segment lengths over their sum, over the first rows: as far as a token's attention goes."""
    if not config.document_boundaries:
        return float(config.sequence_length_tokens)
    squared = total = 0
    for index in range(min(64, len(rows.dataset))):
        positions = rows.dataset[index]["position_ids"].numpy()
        edges = np.append(np.flatnonzero(positions == 0), len(positions))
        lengths = np.diff(edges)
        squared, total = squared + int((lengths**2).sum()), total + int(lengths.sum())
    return squared / total


def exact_flops(model: Any, mean_document_tokens: float) -> float:
    """By the formula of `modeling/flops.py`, attention included."""
    from dapt_trainer.modeling.flops import exact_flops_per_token

    config = model.config
    width = config.num_attention_heads * (config.hidden_size // config.num_attention_heads)
    return exact_flops_per_token(
        model,
        layers=config.num_hidden_layers,
        attention_width=width,
        mean_document_tokens=mean_document_tokens,
    )


def reset_peak() -> None:
    """Of the accelerator's memory."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """Allocated at most since then; 0 without an accelerator."""
    import torch

    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0


def synchronize() -> None:
    """Wait for the accelerator."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def run(name: str, work: Path, options: dict[str, Any]) -> dict[str, Any]:
    """One case on a work volume that `make_work` made."""
    case = CASES[name]
    shape = Shape(**options["shape"])
    config = config_of(
        case, shape, steps=options["steps"], micro=options["micro"], accumulation=options["accumulation"],
        checkpointing=options["checkpointing"],
    )  # fmt: skip
    if case.loop == "public":
        return run_public(work, config)
    if case.loop == "bare":
        return run_bare(work, config, case)
    with gpu_switches.turned_off(case.off):
        return run_stage(work, config)


def main() -> int:
    """Run one case and write what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--options", type=json.loads, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.write_text(json.dumps(run(options.case, options.work, options.options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
