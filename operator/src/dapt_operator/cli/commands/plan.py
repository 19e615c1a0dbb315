"""`dapt plan` estimates what a manifest needs. It reads headers and file sizes, uses no network and starts nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from dapt_client.documents import FILE_SCHEME, source_name
from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.quantity import parse_quantity
from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation, DomainAdaptationSpec
from dapt_operator.api.v1alpha1.spec_corpus import Source
from dapt_operator.api.v1alpha1.spec_training import Finetuning, Preference
from dapt_operator.api.validation.problem import grouped
from dapt_operator.cli.display.stage_table import stage_table
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.inputs.local_inputs import (
    bucket_problems,
    local_problems,
    not_looked_at,
    text_field_problems,
)
from dapt_operator.cli.inputs.machine import built_in_profile
from dapt_operator.cli.inputs.manifests import Request
from dapt_operator.cli.inputs.model_shape import (
    active_in_name,
    local_model,
    parameters_in_name,
    typical_model,
)
from dapt_operator.cli.inputs.record_counts import tuning_size
from dapt_operator.cli.inputs.source_sizes import BYTES_PER_TOKEN, source_size
from dapt_operator.number_format import count, duration, plural
from dapt_operator.number_format import size as size_of_bytes
from dapt_operator.plan.admission import limit_breaches
from dapt_operator.plan.observed import DesiredState
from dapt_operator.plan.sizing.compute import ComputeRate, cpu_rate
from dapt_operator.plan.sizing.estimate import Estimate, EstimateFacts, estimate
from dapt_operator.plan.sizing.model_fit.memory import FREE_FRACTION
from dapt_operator.plan.sizing.resolve import pretrain_layout
from dapt_operator.plan.sizing.stage_needs import sharing_text


@dataclass(frozen=True)
class SourceTokens:
    """The tokens of one source, as far as they are known without reading it."""

    field: str
    address: str
    tokens: int | None
    how: str


@dataclass(frozen=True)
class PlanPage:
    """The lines for stdout, and the problems for which a run would be refused."""

    lines: tuple[str, ...]
    problems: tuple[str, ...]
    estimate: Estimate


def plan(
    request: Request,
    parameters: float | None = None,
    *,
    removed: Path | None = None,
    namespace: str = "default",
) -> PlanPage:
    """Return the page for one manifest.

    Args:
        request: manifest and profile.
        parameters: number of the base model's parameters, when neither its files nor its name give it.
        removed: folder that will be gone when the run starts; a destination in it is free.
        namespace: of an adaptation that names none.
    """
    adaptation = request.adaptation
    profile = request.profile or built_in_profile(adaptation)
    model, how = _model(adaptation, parameters)
    sources = list(_sources(adaptation))
    estimated = estimate(
        adaptation.spec,
        profile.spec,
        EstimateFacts(
            model=model,
            domain_tokens=_sum(sources, "domain"),
            general_tokens=_sum(sources, "general"),
            instructions=tuning_size(_tuning_addresses(adaptation.spec.finetuning)),
            preferences=tuning_size(_tuning_addresses(adaptation.spec.preference), sequences_per_record=2),
            items=_items(adaptation.spec),
            cpu_rate=_cpu_rate(adaptation, profile),
        ),
    )
    desired = DesiredState(adaptation.spec, profile.spec, profile.metadata.name)
    breaches = limit_breaches(desired, adaptation.metadata.namespace or namespace)
    problems = [f"profile {profile.metadata.name}: {breach}" for breach in breaches]
    missing = [
        problem
        for problem in local_problems(request.document, request.path, adaptation, removed=removed)
        # Given parameters stand in for a model that is not on this machine.
        if parameters is None or problem.field != "spec.model.source"
    ]
    missing += bucket_problems(request.document, adaptation)
    missing += text_field_problems(request.document, adaptation)
    problems += [*map(str, grouped(missing)), *estimated.problems]
    lines = [
        *_head(adaptation, profile, estimated, how),
        *_data(sources),
        *_training(estimated),
        *_tuning(estimated),
        *_memory(estimated, profile),
        *_stages(estimated, profile),
        *_hours(estimated, profile),
        *_section("How it was counted", estimated.formulas),
        *_section("Warnings", (*request.warnings, *estimated.warnings)),
        *_section("Not looked at", not_looked_at(request.document)),
        *_section("Expected gain", (estimated.expectation,) if estimated.expectation else ()),
    ]
    return PlanPage(
        tuple(lines), tuple(f"{source_name(request.path)}: {problem}" for problem in problems), estimated
    )


def _model(adaptation: DomainAdaptation, parameters: float | None) -> tuple[ModelFacts | None, str]:
    """Return what is known of the base model's shape, and from where."""
    address = adaptation.spec.model.source
    if address.startswith(FILE_SCHEME):
        try:
            facts = local_model(Path(address.removeprefix(FILE_SCHEME)))
            return facts, f"{facts.architecture}, {count(facts.parameters)} parameters, read from its headers"
        except UserError:  # reported with its line, among what is missing on this machine
            if parameters is None:
                return None, "not found"
    if parameters is not None:
        return typical_model(parameters), f"{count(parameters)} parameters as given, in a typical shape"
    from_name = parameters_in_name(address)
    if from_name is not None:
        active = active_in_name(address)
        passed = f", {count(active)} of them for each token" if active is not None else ""
        text = f"{count(from_name)} parameters by its name{passed}, in a typical shape"
        return typical_model(from_name, active), text
    return None, "its size is not in its name: give --parameters (for example 8e9) for memory and hours"


def _sources(adaptation: DomainAdaptation) -> Iterator[SourceTokens]:
    for side in ("domain", "general"):
        for index, source in enumerate(getattr(adaptation.spec.corpus, side)):
            yield _corpus_source(f"{side}[{index}]", source)
    for name, block in (
        ("finetuning", adaptation.spec.finetuning),
        ("preference", adaptation.spec.preference),
    ):
        for index, address in enumerate(_tuning_addresses(block)):
            size = source_size(address)
            tokens = None if size is None else size.tokens
            yield SourceTokens(f"{name}[{index}]", address, tokens, _by_size(size is not None))


def _items(spec: DomainAdaptationSpec) -> dict[str, int]:
    """Return by task how many items its file on this machine has."""
    tasks = (*spec.evaluation.domain.tasks, *spec.evaluation.general.tasks)
    sizes = {task.name: tuning_size((task.source,)) for task in tasks if task.source is not None}
    return {name: size.records for name, size in sizes.items() if size.records is not None}


def _tuning_addresses(block: Finetuning | Preference | None) -> tuple[str, ...]:
    return tuple(data.source for data in block.data) if block is not None else ()


def _cpu_rate(adaptation: DomainAdaptation, profile: AdaptationProfile) -> ComputeRate:
    """Return what a process of a CPU profile computes: with its share of the pod's CPUs, else of this machine's."""
    processes = pretrain_layout(adaptation.spec, profile.spec).processes_per_node
    cpus = adaptation.spec.resources.cpu
    cores = parse_quantity(cpus) if cpus is not None else os.cpu_count() or 1
    return cpu_rate(max(1.0, cores / processes))


def _corpus_source(field: str, source: Source) -> SourceTokens:
    size, limit = source_size(source.source), source.max_tokens
    if size is None:
        how = "its maxTokens" if limit is not None else "unknown until prepared: give it maxTokens"
        return SourceTokens(field, source.source, limit, how)
    if not size.files:
        return SourceTokens(field, source.source, None, "no such file")
    if limit is not None and limit < size.tokens:
        return SourceTokens(field, source.source, limit, "its maxTokens")
    return SourceTokens(field, source.source, size.tokens, _by_size(True))


def _by_size(is_local: bool) -> str:
    return f"by file size, {BYTES_PER_TOKEN:g} bytes a token" if is_local else "unknown until prepared"


def _sum(sources: list[SourceTokens], side: str) -> int | None:
    tokens = [source.tokens for source in sources if source.field.startswith(side)]
    # One unknown source makes the whole unknown: a sum of the others would be read as the total.
    return sum(number for number in tokens if number is not None) if tokens and None not in tokens else None


def _head(
    adaptation: DomainAdaptation, profile: AdaptationProfile, estimated: Estimate, how: str
) -> list[str]:
    unit = ("GPU", "GPUs") if profile.spec.accelerator.kind == "gpu" else ("CPU process", "CPU processes")
    nodes = adaptation.spec.resources.nodes
    return [
        f"{adaptation.metadata.name} on profile {profile.metadata.name}:"
        f" {plural(nodes, 'node')} with {plural(estimated.world_size // nodes, *unit)} each",
        f"  model     {adaptation.spec.model.source}: {how}",
    ]


def _data(sources: list[SourceTokens]) -> list[str]:
    lines = ["", "Data"]
    for source in sources:
        tokens = "unknown" if source.tokens is None else f"{count(source.tokens)} tokens"
        lines.append(f"  {source.field:<14} {tokens:>16}  {source.address} ({source.how})")
    return lines


def _training(estimated: Estimate) -> list[str]:
    assumed = ", assumed until the base model is measured" if estimated.replay_is_assumed else ""
    lines = [
        "",
        "Pretraining",
        f"  method         {estimated.method}, learning rate {estimated.learning_rate:g}",
        f"  replay         {estimated.replay_fraction:g} of the tokens{assumed}",
    ]
    batch = f"{estimated.global_batch_size} sequences of {estimated.sequence_length_tokens:,} tokens"
    if estimated.total_tokens is None or estimated.total_steps is None:
        lines.append(f"  tokens         unknown until prepared; a step is {batch}")
    else:
        lines.append(f"  tokens         {count(estimated.total_tokens)}")
        lines.append(
            f"  steps          {estimated.total_steps:,} of {batch}, {plural(estimated.checkpoints or 0, 'checkpoint')}"
        )
    if estimated.batch is not None:
        lines.append(f"  each rank      {sharing_text(estimated.batch)}")
    if estimated.trainable_parameters is not None:
        lines.append(f"  trained        {count(estimated.trainable_parameters)} parameters")
    if estimated.checkpoint_bytes is not None:
        lines.append(f"  checkpoints    {size_of_bytes(estimated.checkpoint_bytes)} on the work volume")
    return lines


def _tuning(estimated: Estimate) -> list[str]:
    """Return a section for each tuning stage."""
    lines = []
    for stage in estimated.tuning:
        is_sft = stage.name == "finetuning"
        lines += [
            "",
            "Fine-tuning" if is_sft else "Preference tuning",
            f"  method         {stage.method}, learning rate {stage.learning_rate:g}",
        ]
        of_step = plural(stage.global_batch_size, "sequence" if is_sft else "pair")
        batch = f"{of_step} of up to {stage.sequence_length_tokens:,} tokens"
        if stage.size.records is None:
            lines.append("  data           unknown until prepared")
        else:
            records = "examples" if is_sft else "pairs"
            tokens = "" if stage.size.tokens is None else f", {count(stage.size.tokens)} tokens a pass"
            lines.append(f"  data           about {count(stage.size.records)} {records}{tokens}")
        steps = (
            "unknown until prepared; a step is" if stage.total_steps is None else f"{stage.total_steps:,} of"
        )
        lines.append(f"  steps          {steps} {batch}")
        if stage.batch is not None:
            memory = size_of_bytes(stage.batch.memory.total)
            lines.append(f"  each rank      {sharing_text(stage.batch)}")
            lines.append(f"  memory         {memory} of {size_of_bytes(estimated.memory_limit_bytes)}")
        if stage.trainable_parameters is not None:
            lines.append(f"  trained        {count(stage.trainable_parameters)} parameters")
    return lines


def _memory(estimated: Estimate, profile: AdaptationProfile) -> list[str]:
    unit = "GPU" if profile.spec.accelerator.kind == "gpu" else "process"
    if estimated.memory is None:
        is_known = estimated.trainable_parameters is not None
        why = (
            "not counted, since pretraining is refused as below"
            if is_known
            else "unknown without the model's size"
        )
        return ["", f"Memory of one {unit}: {why}"]
    total = f"{size_of_bytes(estimated.memory.total)} of {size_of_bytes(estimated.memory_limit_bytes)}"
    parts = [
        f"  {name.replace('_', ' '):<14} {size_of_bytes(value):>10}"
        for name, value in asdict(estimated.memory).items()
        if value
    ]
    return ["", f"Memory of one {unit}: {total}", *parts]


def _stages(estimated: Estimate, profile: AdaptationProfile) -> list[str]:
    has_gpus = profile.spec.accelerator.kind == "gpu"
    table, unit = stage_table(estimated.needs, has_gpus=has_gpus), "GPU" if has_gpus else "process"
    lines = ["", f"Stages ({FREE_FRACTION:.0%} of a {unit} stay free)", *table] if table else []
    return [*lines, *_volume(estimated, profile)]


def _volume(estimated: Estimate, profile: AdaptationProfile) -> list[str]:
    """Return what one attempt writes, and what is known of the volume."""
    volume, storage = estimated.volume, profile.spec.storage
    if volume is None:
        return []
    if volume.size_bytes is not None:
        offered = f"of {size_of_bytes(volume.size_bytes)} that the profile's claimTemplate asks for"
    elif storage.existing_claim is not None:
        offered = (
            f"the size of the claim {storage.existing_claim} is not known here: look that it has them free"
        )
    else:
        offered = "the profile gives no size: prepare looks at the free space when it runs"
    return ["", f"Work volume: up to {size_of_bytes(volume.needed_bytes)} for one attempt; {offered}"]


def _hours(estimated: Estimate, profile: AdaptationProfile) -> list[str]:
    if profile.spec.accelerator.kind == "cpu":
        return _cpu_hours(estimated)
    if estimated.gpu_hours is None:
        missing = [
            name
            for name, is_absent in (
                ("the profile's accelerator.peakTflops", profile.spec.accelerator.peak_tflops is None),
                ("the model's size", estimated.trainable_parameters is None),
                ("the number of tokens", estimated.total_tokens is None),
            )
            if is_absent
        ]
        return ["", f"GPU-hours: unknown without {' and '.join(missing)}"]
    cost = "" if estimated.cost is None else f", cost {estimated.cost:,.0f}"
    clock = (
        ""
        if estimated.clock_hours is None
        else f"; pretraining takes about {duration(estimated.clock_hours * 3600)}"
    )
    stages = [f"  {stage.kind:<14} {stage.hours:>10.1f}" for stage in estimated.stages]
    return ["", f"GPU-hours: {estimated.gpu_hours:.1f}{cost}{clock}", *stages]


def _cpu_hours(estimated: Estimate) -> list[str]:
    """Return the time on the clock without a GPU, by the rate that it is counted with."""
    lines = ["", "GPU-hours: 0 (this profile has no GPU)"]
    if estimated.rate is None or estimated.total_clock_hours is None:
        return [*lines, "Time: unknown without the model's size and the number of tokens"]
    stages = [
        f"  {stage.kind:<14} {duration(3600 * stage.hours / stage.ranks):>14}" for stage in estimated.stages
    ]
    total = duration(estimated.total_clock_hours * 3600)
    return [*lines, f"Time: about {total}, by a rate of {estimated.rate.training_text}", *stages]


def _section(title: str, sentences: tuple[str, ...]) -> list[str]:
    return ["", title, *(f"  - {sentence}" for sentence in sentences)] if sentences else []
