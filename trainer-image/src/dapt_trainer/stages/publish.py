"""publish: one merged safetensors model with its tokenizer, a card made of facts, and a manifest, at the destination.

The only stage that writes outside the work volume. The destination's `dapt.json` is written last and carries the run's
digest: a destination that is not empty is written only where its manifest has the same digest.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.publish import PublishConfig, PublishFacts, PublishReport
from dapt_trainer.context import StageContext, beating
from dapt_trainer.digests import sha256_of_file
from dapt_trainer.errors import InfrastructureError
from dapt_trainer.modeling.compose import load_model
from dapt_trainer.modeling.model_folder import load_tokenizer
from dapt_trainer.publishing.card import model_card
from dapt_trainer.publishing.destinations import open_destination
from dapt_trainer.publishing.published_files import MANIFEST, ModelManifest, PublishedFile, manifest_bytes
from dapt_trainer.training.chat import stop_at_end_of_turn


def run(config: PublishConfig, context: StageContext) -> PublishReport:
    """Publish the referenced model.

    Raises:
        InputError: the destination cannot be written by us: not empty with another digest, unknown scheme.
        InfrastructureError: the network or the disk failed.
    """
    destination = open_destination(config.destination, work=context.work)
    context.progress.update(activity="looking at the destination")
    destination.require_writable(config.run_digest)
    staging = context.try_folder / "publish"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        context.progress.update(activity="putting the model together", fraction=0.1)
        with beating(context.progress):
            assemble(config, context.work, staging)
            manifest = manifest_of(config, staging)
        (staging / MANIFEST).write_bytes(manifest_bytes(manifest))
        context.progress.update(activity=f"writing {config.destination}", fraction=0.5)
        destination.write(staging, heartbeat=context.progress.heartbeat)
    except OSError as error:
        raise InfrastructureError(
            f"publishing to {config.destination} failed: {error}; nothing half-written carries a manifest, so the next "
            "try writes it anew"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return PublishReport(
        facts=PublishFacts(
            destination=config.destination,
            digest=manifest.digest,
            files=len(manifest.files) + 1,
            size_bytes=sum(file.size_bytes for file in manifest.files),
        )
    )


def assemble(config: PublishConfig, work: Path, folder: Path) -> None:
    """Merged weights in the base model's own precision, config, generation config, tokenizer and card."""
    folder.mkdir(parents=True)
    model = load_model(work, config.model, precision=stored_precision(work, config.model))
    model.config.use_cache = True
    tokenizer = load_tokenizer(work, tokenizer_folder(work, config.model))
    stop_at_end_of_turn(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if config.model_card:
        (folder / "README.md").write_text(model_card(config), encoding="utf-8")


def stored_precision(work: Path, reference: ModelReference) -> Any:
    """fp32 where the weights' config says so, else bf16, which every published model's users expect."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(work / reference.weights, local_files_only=True)
    return "fp32" if str(config.dtype).endswith("float32") else "bf16"


def tokenizer_folder(work: Path, reference: ModelReference) -> str:
    """The newest part of the model that has a tokenizer: fine-tuning leaves one with its chat template."""
    for folder in (
        *reversed(reference.tuned),
        *reversed(reference.adapters),
        reference.weights,
        reference.origin,
    ):
        if (work / folder / "tokenizer_config.json").is_file():
            return folder
    return reference.weights


def manifest_of(config: PublishConfig, folder: Path) -> ModelManifest:
    """Every file with its size and SHA-256; the digest is over all of them."""
    files = tuple(
        PublishedFile(
            path=path.relative_to(folder).as_posix(),
            size_bytes=path.stat().st_size,
            sha256=sha256_of_file(path),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )
    lines = "".join(f"{file.path} {file.sha256}\n" for file in files)
    return ModelManifest(
        run_digest=config.run_digest,
        adaptation=config.card.adaptation,
        candidate=config.card.candidate,
        digest="sha256:" + hashlib.sha256(lines.encode()).hexdigest(),
        files=files,
    )
