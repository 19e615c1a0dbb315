"""prepare: raw sources in; base model, packed shards, held-out text, evaluation and SFT data on the work volume out.

The only stage that reads hubs and object stores. It works below its own try's folder and moves finished folders into
place at the end, `data/` with the manifest last: killed at any moment and run again, it ends with the same files, and
finds out by the manifest when nothing is left to do.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from dapt_contract.envelope import digest_of
from dapt_contract.layout import (
    DATA,
    EXTENDED_MODEL,
    HARNESS,
    HELD_OUT,
    INSTRUCTIONS,
    MODEL,
    PREFERENCES,
    PROBES,
    TASKS,
)
from dapt_contract.measure import Side
from dapt_contract.stages.prepare import (
    ModelFacts,
    PrepareConfig,
    PrepareReport,
    TokenizerExtensionConfig,
)
from dapt_contract.stages.prepare import TokenizerFacts as GrownFacts
from dapt_trainer.context import StageContext
from dapt_trainer.data.analysis import AnalysisPool, AnalysisSettings
from dapt_trainer.data.base_model.facts import (
    TokenizerDescription,
    read_model_facts,
    read_tokenizer,
    sequence_length,
)
from dapt_trainer.data.base_model.fetch import import_model
from dapt_trainer.data.choose_held_out import HeldOutChoice, choose, held_out_limit
from dapt_trainer.data.dedup.contamination import ContaminationIndex, contamination_index
from dapt_trainer.data.dedup.held_out_neighbours import HeldOutShingles
from dapt_trainer.data.disk_space import check_space
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.items.json_lines import write_lines
from dapt_trainer.data.move_into_place import move_into_place
from dapt_trainer.data.other_inputs import (
    SIDES,
    EvaluationInputs,
    ListedSource,
    check_sources,
    clean_tuning_data,
    find_sources,
    know_all_tasks,
    read_evaluation,
)
from dapt_trainer.data.pack_source import PackedSource, pack_source
from dapt_trainer.data.packing.data_manifest import DataManifest, TokenType, finished_manifest, write_manifest
from dapt_trainer.data.packing.held_out import HALVES, write_held_out
from dapt_trainer.data.reporting import check_size, report_of
from dapt_trainer.data.spool import Rules, SideReader, SpooledSource, first_ones, note_repeats
from dapt_trainer.errors import InfrastructureError, InputError, StopRequested
from dapt_trainer.tokenization.grow_in_prepare import check_model, grow

_FACTS = "facts.json"


def run(config: PrepareConfig, context: StageContext) -> PrepareReport:
    """Prepare everything; all problems of the input are told at once.

    Raises:
        InputError: what the user must correct.
        InfrastructureError: the work volume is full.
        StopRequested: SIGTERM.
    """
    finished = finished_manifest(context.work, digest_of(config))
    if finished is not None:
        return finished.report
    try:
        return _Preparation(config, context).run()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InfrastructureError(
            f"{context.work}: the work volume is full ({error.strerror}); enlarge it, or lower maxTokens"
        ) from error


@dataclass
class _Model:
    facts: ModelFacts
    tokenizer: TokenizerDescription
    sequence_length_tokens: int
    token_type: TokenType


class _Preparation:
    def __init__(self, config: PrepareConfig, context: StageContext) -> None:
        self._config = config
        self._context = context
        self._problems = Problems()
        self._folder = context.try_folder / "prepared"
        self._scratch = context.try_folder / "spool"
        self._seconds: dict[str, float] = {}
        self._resolved: list[tuple[str, str]] = []
        self._warnings: list[str] = []
        self._tokenizer_facts: GrownFacts | None = None

    def run(self) -> PrepareReport:
        try:
            report = self._run()
        finally:
            self._clean_up()
        return report

    def _run(self) -> PrepareReport:
        config = self._config
        for folder in (self._folder, self._scratch):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        with self._step("checking the names of tasks", 0.0):
            named = know_all_tasks(config, self._scratch, self._problems, self._alive)
        with self._step("reading the base model", 0.0):
            model = self._model() if named else None
        with self._step("finding the sources", 0.05):
            sources = find_sources(config, self._problems, self._alive)
        with self._step("reading evaluation and tuning data", 0.08):
            harness = self._folder / HARNESS
            evaluation = read_evaluation(
                config, harness, self._scratch, self._problems, self._alive, harness=named
            )
        if not named:  # told within seconds: the model and the corpus may be large
            raise InputError(*self._problems.sentences())
        if model is None or self._problems:
            with self._step("checking the corpus", 0.1):
                check_sources(sources, config.bad_records_max_fraction, self._problems, self._alive)
            raise InputError(*self._problems.sentences())
        self._resolved += [(source.config.source, source.files.resolved) for source in sources]
        self._resolved += evaluation.resolved
        index = contamination_index(evaluation.items) if config.decontaminate else ContaminationIndex()
        self._warnings += clean_tuning_data(evaluation, index, self._problems)
        with self._step("reading and tokenizing the corpus", 0.1):
            spooled, choices = self._corpus(model, sources, index)
        self._problems.raise_if_any()
        if config.tokenizer_extension is not None:
            with self._step("growing the tokenizer", 0.78):
                model, spooled = self._grown(model, config.tokenizer_extension, spooled, choices)
        with self._step("packing", 0.8):
            packed = self._packed(model, spooled, choices)
        check_size(packed, model.sequence_length_tokens, config.global_batch_size, self._problems)
        with self._step("finishing", 0.95):
            return self._finish(model, evaluation, index, spooled, choices, packed)

    def _clean_up(self) -> None:
        """Remove what this try and killed ones before it left below their folders."""
        own = self._context.stage.run.try_number
        for folder in self._context.try_folder.parent.glob("try-*"):
            if int(folder.name.removeprefix("try-")) <= own:
                for name in (self._folder.name, self._scratch.name):
                    shutil.rmtree(folder / name, ignore_errors=True)

    def _model(self) -> _Model | None:
        config, source = self._config, self._config.model_source
        folder = self._folder / MODEL
        try:
            resolved = import_model(source, folder, self._scratch, self._alive)
            tokenizer = read_tokenizer(folder, source)
            facts = read_model_facts(folder, resolved, has_chat_template=tokenizer.has_chat_template)
            length = sequence_length(config.sequence_length_tokens, facts)
            if config.tokenizer_extension is not None:
                check_model(folder, tokenizer.vocabulary_size, source, self._alive)
            tight = check_space(self._context.work, facts, config)
            self._warnings += [tight] if tight else []
        except InputError as error:
            self._problems.add_error(error)
            return None
        self._resolved.append((source, resolved))
        (folder / _FACTS).write_text(facts.model_dump_json(indent=1) + "\n")
        token_type: TokenType = "uint16" if tokenizer.vocabulary_size <= 1 << 16 else "uint32"
        return _Model(facts, tokenizer, length, token_type)

    def _corpus(
        self,
        model: _Model,
        sources: list[ListedSource],
        index: ContaminationIndex,
    ) -> tuple[list[SpooledSource], dict[Side, HeldOutChoice]]:
        from tokenizers import Tokenizer

        config, tokens = self._config, model.tokenizer
        rules = Rules(
            seed=config.seed,
            deduplicate=config.deduplicate != "none",
            held_out_fraction=config.held_out_fraction,
            bad_records_max_fraction=config.bad_records_max_fraction,
            token_type=model.token_type,
            special_tokens=1 + (tokens.begin_of_text_id is not None),
            tasks=index.tasks,
            keeps_texts=config.tokenizer_extension is not None,
        )
        tokenizer = Tokenizer.from_str(tokens.tokenizer_json)
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        spooled: list[SpooledSource] = []
        choices: dict[Side, HeldOutChoice] = {}
        settings = AnalysisSettings(
            tokens.tokenizer_json,
            tokens.begin_of_text_id,
            tokens.end_of_text_id,
            index,
            signs=config.deduplicate == "near",
        )
        sizes = [sum(file.size_bytes for file in source.files.files) for source in sources]
        done, total = 0, max(1, sum(sizes))
        with AnalysisPool(settings, beat=self._alive) as pool:
            for side in SIDES:
                with SideReader(side, self._scratch / side, rules, pool) as reader:
                    for source, size in zip(sources, sizes, strict=True):
                        if source.side != side:
                            continue

                        def note(kept: int, name: str = f"{side}-{source.index}", done: int = done) -> None:
                            self._beat(f"tokenizing {name}", 0.1 + 0.7 * done / total, tokens=kept)

                        spooled.append(
                            reader.read(source.index, source.config, source.files, self._problems, note)
                        )
                        done += size
                if self._problems:
                    continue
                own = [spool for spool in spooled if spool.side == side]
                if config.deduplicate == "near":
                    self._beat(f"looking for near-duplicates in {side} text", 0.1 + 0.7 * done / total)
                    note_repeats(own, self._scratch / side / "bands", self._alive)
                domain_tokens = sum(int(s.token_counts.sum()) for s in spooled if s.side == "domain")
                step_tokens = model.sequence_length_tokens * config.global_batch_size
                try:
                    choices[side] = choose(
                        side,
                        first_ones(reader.candidates, own),
                        reader.candidate_text,
                        tokenizer,
                        documents=sum(len(spool.token_counts) - spool.repeats for spool in own),
                        fraction=config.held_out_fraction,
                        max_tokens=config.held_out_max_tokens
                        or held_out_limit(config.training, domain_tokens, step_tokens),
                    )
                except InputError as error:
                    self._problems.add_error(error)
        return spooled, choices

    def _grown(
        self,
        model: _Model,
        wanted: TokenizerExtensionConfig,
        spooled: list[SpooledSource],
        choices: dict[Side, HeldOutChoice],
    ) -> tuple[_Model, list[SpooledSource]]:
        """The grown tokenizer beside the base model, and the sources in its tokens."""
        grown = grow(
            self._folder / MODEL,
            self._folder / EXTENDED_MODEL,
            wanted,
            spooled,
            choices,
            source=self._config.model_source,
            begin_of_text_id=model.tokenizer.begin_of_text_id,
            end_of_text_id=model.tokenizer.end_of_text_id,
            beat=self._alive,
        )
        self._warnings += grown.warnings
        self._tokenizer_facts = grown.facts
        return replace(model, token_type=grown.token_type), grown.spooled

    def _packed(
        self, model: _Model, spooled: list[SpooledSource], choices: dict[Side, HeldOutChoice]
    ) -> list[PackedSource]:
        texts = [
            document.text
            for choice in choices.values()
            for half in HALVES
            for document in choice.halves[half]
        ]
        shingles = HeldOutShingles(texts)
        keys = np.array(sorted(set().union(*(choice.keys for choice in choices.values()))), dtype=np.uint64)
        packed = []
        for place, spool in enumerate(spooled):

            def note(share: float, name: str = spool.name, place: int = place) -> None:
                self._beat(f"packing {name}", 0.8 + 0.15 * (place + share) / len(spooled))

            packed.append(
                pack_source(
                    spool,
                    self._folder / DATA / spool.name,
                    held_out={c.document for c, _ in choices[spool.side].chosen if c.source == spool.index},
                    held_out_keys=keys,
                    shingles=shingles,
                    sequence_length_tokens=model.sequence_length_tokens,
                    token_type=model.token_type,
                    end_of_text_id=model.tokenizer.end_of_text_id,
                    progress=note,
                )
            )
        return packed

    def _finish(
        self,
        model: _Model,
        evaluation: EvaluationInputs,
        index: ContaminationIndex,
        spooled: list[SpooledSource],
        choices: dict[Side, HeldOutChoice],
        packed: list[PackedSource],
    ) -> PrepareReport:
        """Write what is left to write, and move all folders into place, the data last."""
        for side, choice in choices.items():
            for half in HALVES:
                write_held_out(self._folder / HELD_OUT, side, half, choice.halves[half])
        for name, data in evaluation.tasks.items():
            write_lines(self._folder / TASKS / f"{name}.jsonl", data.lines)
        for name, data in evaluation.probes.items():
            write_lines(self._folder / PROBES / f"{name}.jsonl", data.lines)
        if self._config.instructions:
            write_lines(self._folder / INSTRUCTIONS / "train.jsonl", evaluation.instructions)
        if self._config.preferences:
            write_lines(self._folder / PREFERENCES / "train.jsonl", evaluation.preferences)
        report = report_of(
            self._config,
            self._folder,
            model.facts,
            sequence_length_tokens=model.sequence_length_tokens,
            tokenizer=self._tokenizer_facts,
            evaluation=evaluation,
            index=index,
            spooled=spooled,
            choices=choices,
            packed=packed,
            resolved=self._resolved,
            warnings=self._warnings,
            seconds=self._seconds,
        )
        manifest = DataManifest(
            config_digest=digest_of(self._config),
            data_digest=report.facts.data_digest,
            sequence_length_tokens=model.sequence_length_tokens,
            token_type=model.token_type,
            end_of_text_id=model.tokenizer.end_of_text_id,
            begin_of_text_id=model.tokenizer.begin_of_text_id,
            document_boundaries=self._config.document_boundaries,
            shards=tuple(pack.manifest for pack in packed),
            report=report,
        )
        write_manifest(self._folder / DATA, manifest, run_key=self._context.stage.run.key)
        move_into_place(self._folder, self._context.work, self._scratch)
        return report

    def _alive(self) -> None:
        """A heartbeat, and the place where a wish to stop is heeded."""
        if self._context.progress.stop_requested():
            raise StopRequested("prepare was asked to stop; run again, it starts its reading over")
        self._context.progress.heartbeat()

    def _beat(self, activity: str, fraction: float, tokens: int | None = None) -> None:
        self._alive()
        self._context.progress.update(activity=activity, fraction=min(1.0, fraction), tokens=tokens)

    @contextmanager
    def _step(self, activity: str, fraction: float) -> Iterator[None]:
        self._beat(activity, fraction)
        started = time.monotonic()
        yield
        self._seconds[activity] = time.monotonic() - started
