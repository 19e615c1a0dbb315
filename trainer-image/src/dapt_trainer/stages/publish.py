"""Publishes one merged model, or one adapter, with tokenizer, model card and manifest to the destination (publish).

It is the only stage that writes outside the work volume. The destination's `dapt.json` is written last and has the
run's digest: a destination that is not empty is overwritten only where its manifest has the same digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from transformers import GenerationConfig

from dapt_contract.checkpoint import FileEntry
from dapt_contract.inputs.json_files import read_json_object
from dapt_contract.layout import STAGES
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.publish import CardFacts, PublishConfig, PublishFacts, PublishReport
from dapt_contract.untrusted.folders import paths_below, remove_folder
from dapt_trainer.context import StageContext
from dapt_trainer.digests import HeldWeights, check_weights, sha256_of_file, size_of_reference
from dapt_trainer.errors import InfrastructureError
from dapt_trainer.modeling.stored_models.model_folder import load_tokenizer
from dapt_trainer.modeling.stored_models.stored_types import read_stored_types
from dapt_trainer.modeling.written_models.combined_adapter import BaseModelName, write_adapter
from dapt_trainer.modeling.written_models.tensor_folders import empty_model
from dapt_trainer.modeling.written_models.write_down import write_weights
from dapt_trainer.publishing.base_files import GENERATION_CONFIG, Changes, write_base_files
from dapt_trainer.publishing.card import model_card
from dapt_trainer.publishing.card_metadata import hub_name, read_base_card
from dapt_trainer.publishing.destinations import open_destination
from dapt_trainer.publishing.public_text import shown_source
from dapt_trainer.publishing.published_files import MANIFEST, ModelManifest, manifest_bytes
from dapt_trainer.training.tuning.chat import stop_at_end_of_turn

_TUNING_STAGES = ("finetune", "align")


def run(config: PublishConfig, context: StageContext) -> PublishReport:
    """Publish the referenced model.

    Raises:
        InputError: the destination is not empty and has another digest, or its scheme is unknown.
        InfrastructureError: the network or the disk failed.
    """
    destination = open_destination(config.destination, work=context.work)
    context.progress.update(activity="checking the destination")
    destination.require_writable(config.run_digest)
    own = context.try_folder / "publish"
    remove_folder(own)
    # Beside the destination where that is a folder: then publishing is a rename.
    staging = destination.staging(own)
    try:
        context.progress.update(activity="writing the weights", fraction=0.1)
        with context.keep_alive(size_of_reference(context.work, config.model)):
            recipes = [] if config.adapter is None else [config.adapter.recipe]
            held = HeldWeights(context.work, [config.model, *recipes])
            check_weights(context.work, config.model, config.recorded, {})
            assemble(config, context.work, staging, context.progress.heartbeat)
            held.require_unchanged()
            manifest = manifest_of(config, staging)
        (staging / MANIFEST).write_bytes(manifest_bytes(manifest))
        context.progress.update(activity=f"writing {config.destination}", fraction=0.5)
        destination.write(staging, heartbeat=context.progress.heartbeat)
    except OSError as error:
        raise InfrastructureError(
            f"publishing to {config.destination} failed: {error}; what was written has no manifest, so the next run "
            "completes it"
        ) from error
    finally:
        remove_folder(staging)
    return PublishReport(
        facts=PublishFacts(
            destination=config.destination,
            digest=manifest.digest,
            files=len(manifest.files) + 1,
            size_bytes=sum(file.size_bytes for file in manifest.files),
        )
    )


def assemble(config: PublishConfig, work: Path, folder: Path, heartbeat: Callable[[], None]) -> None:
    """Write weights in the base model's own precision or an adapter, the base model's files, and the model card.

    Args:
        config: of the stage.
        work: root of the work volume.
        folder: to create.
        heartbeat: called once a block of the weights.
    """
    folder.mkdir(parents=True)
    reference = config.model
    origin = work / reference.origin
    dtype = None
    if config.adapter is None:
        written = write_weights(work, reference, folder, heartbeat=heartbeat).dtype
        dtype = None if written == read_stored_types(origin).main else str(written).removeprefix("torch.")
    else:
        write_adapter(work, config.adapter.recipe, folder, base_model_name(config.card), heartbeat)
    changes = Changes(
        chat_template=_new_template(work, reference), end_token_ids=_new_ends(work, reference), dtype=dtype
    )
    # Whoever loads a folder with both configurations gets a model without weights.
    write_base_files(origin, folder, changes, has_weights=config.adapter is None)
    if config.model_card:
        has_generation_config = (folder / GENERATION_CONFIG).is_file()
        card = model_card(config, read_base_card(origin), has_generation_config=has_generation_config)
        (folder / "README.md").write_text(card, encoding="utf-8")


def base_model_name(card: CardFacts) -> BaseModelName:
    """Return the model that an adapter belongs to: of the hub with its revision, else the last name of its place."""
    name = hub_name(card.base_model, "hf://")
    if name is None:
        return BaseModelName(shown_source(card.base_model))
    return BaseModelName(name, card.base_revision)


def _new_template(work: Path, reference: ModelReference) -> str | None:
    """Return the chat template that tuning has added; None where the base model's files have it."""
    tuned = load_tokenizer(work, tokenizer_folder(work, reference)).chat_template
    own = load_tokenizer(work, reference.origin).chat_template
    # Of several templates, tuning uses one.
    known = (own, *own.values()) if isinstance(own, dict) else (own,)
    return tuned if isinstance(tuned, str) and tuned not in known else None


def _new_ends(work: Path, reference: ModelReference) -> list[int] | None:
    """Return the tokens at which a tuned model stops; None where they are the base model's."""
    if not _is_tuned(reference):
        return None
    # Without values: what is asked for is the generation config alone.
    model = empty_model(work, reference.weights)
    own = work / reference.weights / GENERATION_CONFIG
    if own.is_file():
        model.generation_config = GenerationConfig.from_dict(read_json_object(own))
    before = model.generation_config.eos_token_id
    stop_at_end_of_turn(model, load_tokenizer(work, tokenizer_folder(work, reference)))
    after = model.generation_config.eos_token_id
    return None if after == before else list(after)


def _is_tuned(reference: ModelReference) -> bool:
    """Return whether a stage after selection has trained the model."""
    parts = (reference.weights, *reference.tuned)
    return any(part.startswith(tuple(f"{STAGES}/{stage}-" for stage in _TUNING_STAGES)) for part in parts)


def tokenizer_folder(work: Path, reference: ModelReference) -> str:
    """Return the newest part of the model that has a tokenizer: fine-tuning writes one with its chat template."""
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
    """Return the manifest of a folder: every file with its size and SHA-256, and a digest over all of them."""
    files = tuple(
        FileEntry(
            path=path.relative_to(folder).as_posix(),
            size_bytes=path.stat().st_size,
            sha256=sha256_of_file(path),
        )
        for path in paths_below(folder)
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
