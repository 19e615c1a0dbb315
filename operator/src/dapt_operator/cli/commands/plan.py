"""`dapt plan`: what a manifest would need. Reads headers and file sizes, asks no network and starts nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.api.v1alpha1.spec_corpus import Source
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.inputs.machine import built_in_profile
from dapt_operator.cli.inputs.manifests import FILE_SCHEME, Request, sources_of
from dapt_operator.cli.inputs.model_shape import local_model, parameters_in_name, typical_model
from dapt_operator.cli.inputs.source_sizes import BYTES_PER_TOKEN, missing_files, source_size
from dapt_operator.number_format import count, duration, plural
from dapt_operator.number_format import size as size_of_bytes
from dapt_operator.plan.admission import problems as breaches
from dapt_operator.plan.observed import Wish
from dapt_operator.plan.sizing.estimate import Estimate, estimate


@dataclass(frozen=True)
class SourceTokens:
    """What is known of one source without reading it."""

    field: str
    address: str
    tokens: int | None
    how: str


@dataclass(frozen=True)
class PlanPage:
    """Lines for stdout, and what would be refused."""

    lines: tuple[str, ...]
    problems: tuple[str, ...]


def plan(request: Request, parameters: float | None = None) -> PlanPage:
    """The page for one manifest.

    Args:
        request: manifest and profile.
        parameters: of the base model, when neither its files nor its name say so.
    """
    adaptation = request.adaptation
    profile = request.profile or built_in_profile(adaptation)
    model, how, problems = _model(adaptation, parameters)
    sources = list(_sources(adaptation))
    found = estimate(
        adaptation.spec,
        profile.spec,
        model,
        _sum(sources, "domain"),
        general_tokens=_sum(sources, "general"),
        instruction_tokens=_sum(sources, "finetuning"),
    )
    wish = Wish(adaptation.spec, profile.spec, profile.metadata.name)
    allowed = breaches(wish, adaptation.metadata.namespace or "default")
    problems += [f"profile {profile.metadata.name}: {breach}" for breach in allowed]
    problems += [*missing_files(list(sources_of(adaptation))), *found.problems]
    lines = [
        *_head(adaptation, profile, found, how),
        *_data(sources),
        *_training(found),
        *_memory(found, profile),
        *_hours(found, profile),
        *_section("How it was counted", found.formulas),
        *_section("Warnings", found.warnings),
        *_section("To hope for", (found.expectation,) if found.expectation else ()),
    ]
    return PlanPage(tuple(lines), tuple(f"{request.path}: {problem}" for problem in problems))


def _model(
    adaptation: DomainAdaptation, parameters: float | None
) -> tuple[ModelFacts | None, str, list[str]]:
    address = adaptation.spec.model.source
    if address.startswith(FILE_SCHEME):
        try:
            facts = local_model(Path(address.removeprefix(FILE_SCHEME)))
            return (
                facts,
                f"{facts.architecture}, {count(facts.parameters)} parameters, read from its headers",
                [],
            )
        except UserError as error:
            if parameters is None:
                return None, "not found", [f"spec.model.source: {problem}" for problem in error.problems]
    if parameters is not None:
        return typical_model(parameters), f"{count(parameters)} parameters as given, in a usual shape", []
    named = parameters_in_name(address)
    if named is not None:
        return typical_model(named), f"{count(named)} parameters by its name, in a usual shape", []
    return None, "its size is not in its name: give --parameters (for example 8e9) for memory and hours", []


def _sources(adaptation: DomainAdaptation) -> Iterator[SourceTokens]:
    for side in ("domain", "general"):
        for index, source in enumerate(getattr(adaptation.spec.corpus, side)):
            yield _corpus_source(f"{side}[{index}]", source)
    for index, data in enumerate(adaptation.spec.finetuning.data if adaptation.spec.finetuning else ()):
        size = source_size(data.source)
        tokens = None if size is None else size.tokens
        yield SourceTokens(f"finetuning[{index}]", data.source, tokens, _by_size(size is not None))


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


def _by_size(known: bool) -> str:
    return f"by file size, {BYTES_PER_TOKEN:g} bytes a token" if known else "unknown until prepared"


def _sum(sources: list[SourceTokens], side: str) -> int | None:
    known = [source.tokens for source in sources if source.field.startswith(side)]
    return sum(one for one in known if one is not None) if known and None not in known else None


def _head(adaptation: DomainAdaptation, profile: AdaptationProfile, found: Estimate, how: str) -> list[str]:
    unit = ("GPU", "GPUs") if profile.spec.accelerator.kind == "gpu" else ("CPU process", "CPU processes")
    nodes = adaptation.spec.resources.nodes
    return [
        f"{adaptation.metadata.name} on profile {profile.metadata.name}:"
        f" {plural(nodes, 'node')} with {plural(found.world_size // nodes, *unit)} each",
        f"  model     {adaptation.spec.model.source}: {how}",
    ]


def _data(sources: list[SourceTokens]) -> list[str]:
    lines = ["", "Data"]
    for source in sources:
        tokens = "unknown" if source.tokens is None else f"{count(source.tokens)} tokens"
        lines.append(f"  {source.field:<14} {tokens:>16}  {source.address} ({source.how})")
    return lines


def _training(found: Estimate) -> list[str]:
    assumed = ", assumed until the base model is measured" if found.replay_is_assumed else ""
    lines = [
        "",
        "Pretraining",
        f"  method         {found.method}, learning rate {found.learning_rate:g}",
        f"  replay         {found.replay_fraction:g} of the tokens{assumed}",
    ]
    batch = f"{found.global_batch_size} sequences of {found.sequence_length_tokens:,} tokens"
    if found.total_tokens is None or found.total_steps is None:
        lines.append(f"  tokens         unknown until prepared; a step is {batch}")
    else:
        lines.append(f"  tokens         {count(found.total_tokens)}")
        lines.append(
            f"  steps          {found.total_steps:,} of {batch}, {plural(found.checkpoints or 0, 'checkpoint')}"
        )
    if found.batch is not None:
        one = found.batch
        again = ", activations recomputed" if one.gradient_checkpointing else ""
        away = f"offload {one.offload}, " if one.offload != "none" else ""
        lines.append(
            f"  each rank      micro-batch {one.micro_batch_size} x {one.accumulation} accumulated,"
            f" ZeRO {one.zero_stage}, {away}{one.precision}{again}"
        )
    if found.trainable_parameters is not None:
        lines.append(f"  trained        {count(found.trainable_parameters)} parameters")
    if found.checkpoint_bytes is not None:
        lines.append(f"  checkpoints    {size_of_bytes(found.checkpoint_bytes)} on the work volume")
    return lines


def _memory(found: Estimate, profile: AdaptationProfile) -> list[str]:
    unit = "GPU" if profile.spec.accelerator.kind == "gpu" else "process"
    if found.memory is None:
        return ["", f"Memory of one {unit}: unknown without the model's size"]
    total = f"{size_of_bytes(found.memory.total)} of {size_of_bytes(found.memory_limit_bytes)}"
    parts = [
        f"  {name.replace('_', ' '):<14} {size_of_bytes(value):>10}"
        for name, value in asdict(found.memory).items()
        if value
    ]
    return ["", f"Memory of one {unit}: {total}", *parts]


def _hours(found: Estimate, profile: AdaptationProfile) -> list[str]:
    if profile.spec.accelerator.kind == "cpu":
        return ["", "GPU-hours: 0 (this profile has no GPU)"]
    if found.gpu_hours is None:
        missing = [
            word
            for word, absent in (
                ("the profile's accelerator.peakTflops", profile.spec.accelerator.peak_tflops is None),
                ("the model's size", found.trainable_parameters is None),
                ("the number of tokens", found.total_tokens is None),
            )
            if absent
        ]
        return ["", f"GPU-hours: unknown without {' and '.join(missing)}"]
    cost = "" if found.cost is None else f", cost {found.cost:,.0f}"
    clock = (
        "" if found.clock_hours is None else f"; pretraining takes about {duration(found.clock_hours * 3600)}"
    )
    stages = [f"  {stage.kind:<14} {stage.hours:>10.1f}" for stage in found.stages]
    return ["", f"GPU-hours: {found.gpu_hours:.1f}{cost}{clock}", *stages]


def _section(title: str, sentences: tuple[str, ...]) -> list[str]:
    return ["", title, *(f"  - {sentence}" for sentence in sentences)] if sentences else []
