"""What the trainer overrides or uses of libraries beyond their public interface is still there, under the same name.

An override that its library no longer calls fails silently, so each name stands here with its parameters. When one of
these tests fails on new versions of the libraries: read how the library changed, mend the trainer, then the table, and
raise the upper bound in pyproject.toml (docs/decisions/0013-locks-and-bounds.md).
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.torch

SOURCE = Path(__file__).parents[2] / "trainer-image" / "src"

METHODS = {
    # Overridden.
    "transformers.Trainer.get_train_dataloader": "self",
    "transformers.Trainer.create_optimizer": "self, model",
    "transformers.Trainer.training_step": "self, model, inputs, num_items_in_batch",
    "transformers.Trainer._prepare_for_training": "self, max_steps, train_dataloader, resume_from_checkpoint",
    "transformers.Trainer._load_rng_state": "self, checkpoint",
    "transformers.Trainer.floating_point_ops": "self, inputs",
    "transformers.Trainer._prepare_input": "self, data",
    "transformers.Trainer._prepare_inputs": "self, inputs",
    "transformers.Trainer._clip_grad_norm": "self, model",
    "transformers.Trainer._get_grad_norm": "self, model, grad_norm",
    "transformers.Trainer._maybe_log_save_evaluate": (
        "self, tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate"
    ),
    "trl.DPOTrainer._prepare_dataset": "self, dataset, processing_class, args, dataset_name",
    "trl.DPOTrainer._precompute_ref_logps": "self, dataset, name, batch_size",
    "trl.DPOTrainer._send_telemetry": "self",
    "lm_eval.models.huggingface.HFLM.loglikelihood": "self, requests, disable_tqdm",
    "lm_eval.models.huggingface.HFLM._loglikelihood_tokens": "self, requests, disable_tqdm, override_bs",
    "lm_eval.models.huggingface.HFLM.generate_until": "self, requests, disable_tqdm",
    "lm_eval.models.huggingface.HFLM._model_generate": "self, context, max_length, stop, generation_kwargs",
    "transformers.distributed.mixin.initialize_distributed_mesh": "distributed_config",
    # Called.
    "transformers.Trainer._save_optimizer_and_scheduler": "self, output_dir",
    "transformers.Trainer._save_rng_state": "self, output_dir",
    "lm_eval.models.huggingface.HFLM._encode_pair": "self, context, continuation",
    "torch._weights_only_unpickler._get_allowed_globals": "",
    # Replaced on an engine, or called though no documentation has them.
    "deepspeed.DeepSpeedEngine.clip_fp32_gradients": "self",
    "deepspeed.checkpoint.ds_to_universal.main": "args",
    "deepspeed.checkpoint.ds_to_universal._do_parallel_work": "do_work, work_chunks, num_workers",
    "deepspeed.checkpoint.ds_to_universal._get_zero_stage": "optim_files",
    "transformers.modeling_utils._load_state_dict_into_zero3_model": (
        "model_to_load, state_dict, load_config"
    ),
    "trl.models.prepare_deepspeed": "model, accelerator",
}
"""Method or function -> its parameters."""

ATTRIBUTES = {
    "deepspeed.runtime.engine": {"_global_grad_norm"},
    "deepspeed.utils.mixed_precision_linkage": {"_hp_mapping", "_index_in_param_group"},
    "deepspeed.ops": {"__compatible_ops__"},
    "torch": {"_dynamo"},
    "torch.nn.modules.module": {"_call_impl", "_compiled_call_impl"},
    "transformers.configuration_utils": {"_attn_implementation"},
    "transformers.integrations.deepspeed": {"_is_hf_initialized"},
    "transformers.modeling_utils": {
        "_supports_attention_backend",
        "_keys_to_ignore_on_save",
        "_supports_flash_attn",
        "_supports_flex_attn",
        "_supports_sdpa",
    },
    "trl.trainer.dpo_trainer": {"_metrics"},
}
"""Module -> private attributes that its source sets and that the trainer reads or sets."""

LIBRARIES = {"accelerate", "datasets", "datatrove", "deepspeed", "lm_eval", "peft", "transformers", "trl"}
DOCUMENTED = {"_exit", "_replace"}
"""Names with an underscore that the standard library documents."""


def resolve(name: str) -> Any:
    """Return the object of a dotted name: the longest importable module, then its attributes."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_the_parameters_that_we_count_on(name: str) -> None:
    try:
        method = resolve(name)
    except (AttributeError, ModuleNotFoundError):
        pytest.fail(f"{name} is gone")
    assert ", ".join(inspect.signature(method).parameters) == METHODS[name]


@pytest.mark.parametrize(
    ("module", "attribute"),
    [(module, name) for module, names in ATTRIBUTES.items() for name in sorted(names)],
)
def test_a_private_attribute_is_still_there(module: str, attribute: str) -> None:
    source = inspect.getsource(importlib.import_module(module))
    assert re.search(rf"\b{attribute}\b", source), f"{module} has no {attribute} any more"


def test_a_method_that_is_gone_is_named() -> None:
    with pytest.raises(AttributeError, match="_no_such_method"):
        resolve("transformers.Trainer._no_such_method")


def test_every_library_override_is_listed() -> None:
    listed = [inspect.unwrap(resolve(name)) for name in METHODS]
    overrides = {
        f"{cls.__module__}.{cls.__name__}.{name}": original
        for cls in library_subclasses()
        for name in vars(cls)
        if not name.startswith("__") and name != "_abc_impl"
        for original in originals(cls, name)
    }
    assert len(overrides) > 8
    assert [name for name, original in overrides.items() if inspect.unwrap(original) not in listed] == []


def library_subclasses() -> Iterator[type]:
    """Yield the trainer's classes that derive directly from a class of a library."""
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        imported = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES
            for alias in node.names
        }
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and imported & {ast.unparse(base) for base in node.bases}:
                module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
                yield getattr(importlib.import_module(module), node.name)


def originals(cls: type, name: str) -> Iterator[Any]:
    """Yield what an attribute of a class overrides in the first library class that has it."""
    for base in cls.__mro__[1:]:
        if name in vars(base) and base.__module__.split(".")[0] in LIBRARIES:
            yield vars(base)[name]
            return


def test_every_private_library_name_is_listed() -> None:
    trees = [ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    ours = {name for node in nodes for name in names_defined(node)}
    listed = {name.rpartition(".")[2] for name in METHODS}.union(*ATTRIBUTES.values())
    used = {name for node in nodes for name in private_names_used(node)}
    assert "_hp_mapping" in used
    assert sorted(used - ours - listed - DOCUMENTED) == []


def names_defined(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif (
        isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and ast.unparse(node.value) == "self"
    ):
        yield node.attr


def private_names_used(node: ast.AST) -> Iterator[str]:
    name: Any = None
    if isinstance(node, ast.Attribute):
        name = node.attr
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"getattr", "hasattr", "setattr"}:
        name = getattr(node.args[1], "value", None)
    if isinstance(name, str) and name.startswith("_") and not name.startswith("__"):
        yield name
